"""An async source of frames to an async stream of vectors: the newest frame wins, or, lossless, every frame in order."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from encoders_core.realtime.intake import as_frame
from encoders_core.realtime.jobs import Held
from encoders_core.realtime.realtime_job import Arrival, RealtimeJob
from encoders_core.realtime.results import StreamFeature

if TYPE_CHECKING:
    from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder

Source = AsyncIterable["torch.Tensor | NDArray[Any]"]


async def stream_newest(encoder: "RealtimeVideoEncoder", frames: Source, camera: str) -> AsyncIterator[StreamFeature]:
    """The vectors of those frames that could be encoded or held in time; audits run while none waits."""
    inbox = _Inbox()
    reader = asyncio.create_task(_read(encoder, frames, camera, inbox), name=f"camvec.stream[{camera}]")
    try:
        while not reader.done() or inbox.changed.is_set():
            while not inbox.changed.is_set() and encoder.audit_step(in_slack=True):  # noqa: ASYNC110  as below
                await asyncio.sleep(0)  # a block at a time: frames that came in between are looked at first
            await inbox.changed.wait()
            inbox.changed.clear()
            # A held frame is older than one that waits, and newer than one whose encoding ran when it came.
            if inbox.held:
                held, inbox.held = inbox.held, None
                yield encoder.held_feature(held)
            job, _ = encoder.next_job(camera=camera)
            if job:
                await _run_in_thread(job)
                inbox.changed.set()
                yield job.result()
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def stream_all(encoder: "RealtimeVideoEncoder", frames: Source, camera: str) -> AsyncIterator[StreamFeature]:
    """The vectors of all frames, in order; the source waits, and audits are done before its next frame is asked for."""
    async for frame in frames:
        pixels = as_frame(frame, encoder.frame_encoder.descriptor.input)
        for outcome in encoder.offer(camera, pixels, encoder.clock(), lossless=True):
            if isinstance(outcome, Held):
                yield encoder.held_feature(outcome)
        job, _ = encoder.next_job(camera=camera)
        if job:
            await asyncio.to_thread(run, job)
            yield job.result()
        while encoder.audit_step():  # noqa: ASYNC110  nothing is waited for: others get their turn between blocks
            await asyncio.sleep(0)


def run(job: RealtimeJob) -> None:
    """All steps of `job`."""
    while not job.step():
        pass


async def _read(encoder: "RealtimeVideoEncoder", frames: Source, camera: str, inbox: "_Inbox") -> None:
    try:
        async for frame in frames:
            pixels = as_frame(frame, encoder.frame_encoder.descriptor.input)
            for outcome in encoder.offer(camera, pixels, encoder.clock()):
                if isinstance(outcome, Held):
                    inbox.held = outcome
            inbox.changed.set()
    finally:
        inbox.changed.set()


class _Inbox:
    """Between the reader of an async source and the encoder: the newest held frame, and that there is something to do."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.held: Held[Arrival] | None = None


async def _run_in_thread(job: RealtimeJob) -> None:
    try:
        await asyncio.to_thread(run, job)
    except asyncio.CancelledError:
        job.abandon()
        raise
