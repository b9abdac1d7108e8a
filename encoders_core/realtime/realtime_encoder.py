"""Streams of frames to vectors, under a latency budget, for many cameras with one model.

Three ways in. `encode_stream` takes frames and returns their vectors, all of them, for notebooks and files. `stream` is
the same for an async source, newest first. A worker process drives `offer`, `next_job` and `RealtimeJob.step` from its own loop.
One thread calls everything, but for `RealtimeJob.step`, which may run in another.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders_core.config import QUALITY_TARGETS, GateConfig, Priority, QualityLevel, TemporalConfig
from encoders_core.errors import EncoderError, InputError, OptionError
from encoders_core.models.temporal import TemporalHead
from encoders_core.realtime.frame_encoder import (
    EncoderDescriptor,
    FrameEncoder,
    ScalableFrameEncoder,
    dense_steps,
    fingerprint,
)
from encoders_core.realtime.frame_gate import Decision
from encoders_core.realtime.intake import Frames, as_frame, as_frames
from encoders_core.realtime.results import StreamFeature, StreamFeatures, StreamQuality, stack
from encoders_core.realtime.scheduler import CameraCounts, Dropped, FrameScheduler, Held, Job, Outcome
from encoders_core.realtime.session import Output, Session
from encoders_core.realtime.temporal import TemporalStepper

_NOMINAL_INTERVAL_US = 40_000


@dataclass(slots=True)
class Arrival:
    """A frame that was offered, with what was handed over beside it."""

    pixels: NDArray[np.uint8]
    arrived_ns: int
    at_ns: int
    tag: Any
    session: Session
    decision: Decision


@dataclass(frozen=True, slots=True)
class CameraStatistics:
    """`counts` adds up at any moment; `estimated_fvu` is what holding frames has cost, as the audits suggest."""

    counts: CameraCounts
    estimated_fvu: float


class RealtimeJob:
    """The encoding of one frame, in steps. Call `step` until it is True, then `result` once."""

    def __init__(self, encoder: "RealtimeVideoEncoder", job: Job[Arrival]) -> None:
        self._owner, self._job = encoder, job
        arrival = job.frame
        self.camera, self.tag = job.camera, arrival.tag
        self._features: NDArray[np.float32] | None = None
        self._error: Exception | None = None
        self._spent_ns = 0
        try:
            self._plan = arrival.session.begin(arrival.pixels, arrival.at_ns, arrival.decision, job.rung)
            self._steps = encoder.frame_encoder.encode([self._plan])
        except Exception as error:  # noqa: BLE001  as in `step`
            self._error = error

    @property
    def cold(self) -> bool:
        """Whether it runs however late it is; between its steps warm jobs of other cameras should be let through."""
        return self._job.cold

    @property
    def started_ns(self) -> int:
        """When the scheduler let it start, in the encoder's clock."""
        return self._job.started_ns

    @property
    def deadline_ns(self) -> int:
        """When its budget ends."""
        return self._job.deadline_ns

    def step(self) -> bool:
        """One block of the model. True when nothing is left to do. Never raises; an error comes out of `result`."""
        if self._error is not None:
            return True
        started_ns = self._owner.clock()
        try:
            next(self._steps)
        except StopIteration as done:
            self._features = done.value[0]
        except Exception as error:  # noqa: BLE001  whatever a model raises, the frame must be booked as failed
            self._error = error
        self._spent_ns += self._owner.clock() - started_ns
        return self._features is not None or self._error is not None

    def result(self) -> StreamFeature:
        """The vector. Raises EncoderError when the model failed; the frame is then booked as `abandon` does."""
        if self._error is not None:
            self.abandon()
            raise EncoderError(f"camera {self.camera!r}: encoding failed: {self._error}") from self._error
        if self._features is None:
            raise AssertionError("result() before step() returned True")
        now_ns = self._owner.clock()
        output = self._job.frame.session.complete(self._features)
        self._owner.scheduler.finish(self._job, now_ns, cost_ns=self._spent_ns)
        quality = StreamQuality(
            reason=self._job.frame.decision.reason,
            rung=self._job.rung,
            tokens_updated=self._plan.rows,
            tokens_total=self._plan.rows_total,
            cold=self._plan.cold,
            change=self._plan.change,
            cut=self._plan.cut,
            encode_us=self._spent_ns // 1000,
            budget_met=now_ns <= self._job.deadline_ns,
        )
        return _feature(self.camera, output, quality, now_ns - self._job.arrived_ns, self.tag)

    def abandon(self) -> None:
        """Give the job up: its frame counts as failed, and its camera, whose memory may be half written, starts anew."""
        self._owner.scheduler.finish(self._job, self._owner.clock(), failed=True)
        self._owner.forget(self.camera, self._job.frame.session)


class RealtimeVideoEncoder:
    """One model for many cameras; what it remembers of each is its own.

    `budget_ms`: from a frame's arrival to its vector, for cameras that name none. `gate`: a fidelity level, a GateConfig,
    or None to encode every frame. `temporal`: adds the temporal head. `rungs`: sizes of the model, in pixels, largest
    first, to step down when the predicted cost misses the budget; without them only the model's own. `lossless`: `stream`
    encodes or holds every frame in order, and its source waits. `clock`: monotonic nanoseconds.
    """

    def __init__(
        self,
        frame_encoder: FrameEncoder,
        *,
        budget_ms: float = 100.0,
        gate: GateConfig | QualityLevel | None = "balanced",
        temporal: TemporalConfig | None = None,
        rungs: Sequence[int] | None = None,
        lossless: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.frame_encoder, self.clock = frame_encoder, clock
        self.scheduler: FrameScheduler[Arrival] = FrameScheduler()
        self.budget_ms = budget_ms
        self._gate = _gate_config(gate)
        self._stepper = TemporalStepper(TemporalHead(frame_encoder.descriptor.dim, temporal)) if temporal else None
        self._sessions: dict[str, Session] = {}
        self._rungs = _rungs(frame_encoder, rungs)
        self.lossless = lossless

    @property
    def temporal_descriptor(self) -> EncoderDescriptor | None:
        """Which model the temporal vectors come from, a second one beside that of the frames; None without a head."""
        if self._stepper is None:
            return None
        head, frames = self._stepper.head, self.frame_encoder.descriptor
        pooling = f"causal over {head.config.window} frames, held frames {head.config.skipped}"
        mark = fingerprint(
            head.state_dict(), frames.input, pooling=pooling, head=frames.fingerprint, variant=repr(head.config)
        )
        name = f"{frames.name}, temporal head without training"
        return replace(
            frames, model_id=f"{frames.model_id}-temporal", name=name, fingerprint=mark, trained=False, pooling=pooling
        )

    # Cameras

    def add_camera(self, camera: str, *, budget_ms: float | None = None, priority: Priority = "normal") -> None:
        """Take frames of `camera`. Raises OptionError when it is there already, or for a bad budget or priority."""
        self.scheduler.add_camera(
            camera, budget_ms=self.budget_ms if budget_ms is None else budget_ms, priority=priority
        )
        self._sessions[camera] = self._new_session()

    def remove_camera(self, camera: str) -> list[Dropped[Arrival]]:
        """Forget `camera`; returns the frame that waited, if one did."""
        dropped = self.scheduler.remove_camera(camera)
        del self._sessions[camera]
        return dropped

    def reset(self, camera: str) -> None:
        """Forget what was seen of `camera`: its next frame is cold."""
        self._session(camera)
        self._sessions[camera] = self._new_session()

    # Frames and vectors, in one call

    def encode_stream(
        self,
        frames: Frames,
        *,
        update_temporal_context: bool = True,
        camera: str = "default",
        timestamps_us: Sequence[int] | None = None,
    ) -> StreamFeatures:
        """(T, C, H, W) or (C, H, W), or channels last, or a list; uint8, or float from 0 to 1 -> StreamFeatures of T.

        Frames of another size are resized. They continue the stream of `camera`; with `update_temporal_context=False` the
        result is the same, and the stream stays where it was. `timestamps_us` increase; without them frames count as
        40 ms apart. Raises InputError for frames or timestamps that do not fit.
        """
        pixels = list(as_frames(frames, self.frame_encoder.descriptor.input))
        times = _timestamps(timestamps_us, len(pixels))
        if camera not in self._sessions:
            self.add_camera(camera)
        session = self._sessions[camera]
        if not update_temporal_context:
            self._sessions[camera] = session.copy()
        try:
            done = [self._encode_one(camera, *pair) for pair in zip(pixels, times, strict=True)]
        finally:
            if not update_temporal_context:
                self._sessions[camera] = session
        return stack(done, self.frame_encoder.descriptor.dim, temporal=self._stepper is not None)

    async def stream(
        self, frames: AsyncIterable[torch.Tensor | NDArray[Any]], *, camera: str = "default"
    ) -> AsyncIterator[StreamFeature]:
        """Frames as they come, each (C, H, W) or (H, W, C) -> the vectors of those that could be encoded or held in time.

        Newest wins: a frame that comes while another is encoded takes the place of one that waits, and what it replaced
        is counted in `statistics`. Ends with `frames`; raises what `frames` raises.
        """
        if camera not in self._sessions:
            self.add_camera(camera)
        if self.lossless:
            async for feature in self._stream_all(frames, camera):
                yield feature
            return
        inbox = _Inbox()
        reader = asyncio.create_task(self._read(frames, camera, inbox), name=f"camvec.stream[{camera}]")
        try:
            while not reader.done() or inbox.changed.is_set():
                await inbox.changed.wait()
                inbox.changed.clear()
                # A held frame is older than one that waits, and newer than one whose encoding ran when it came.
                if inbox.held:
                    held, inbox.held = inbox.held, None
                    yield self._held(held)
                job, _ = self.next_job(camera=camera)
                if job:
                    await _run_in_thread(job)
                    inbox.changed.set()
                    yield job.result()
            await reader
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    # The surface of a worker's loop

    def offer(
        self,
        camera: str,
        pixels: NDArray[np.uint8],
        arrived_ns: int,
        *,
        pts_us: int | None = None,
        lossless: bool = False,
        reset: bool = False,
        tag: Any = None,
    ) -> list[Outcome[Arrival]]:
        """A frame of the model's size that came: gated now; returns what this settles, oldest first.

        `reset` starts the camera anew with this frame. A held frame that comes while a job of its camera runs follows
        that job's frame: account for it after the job's result.
        """
        expected = (*self.frame_encoder.descriptor.input.size_hw, 3)
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise InputError(
                f"camera {camera!r}: expected a uint8 frame of shape {expected}, got {pixels.dtype} of {pixels.shape}"
            )
        if reset:
            self.reset(camera)
        session = self._session(camera)
        at_ns = arrived_ns if pts_us is None else pts_us * 1000
        arrival = Arrival(pixels, arrived_ns, at_ns, tag, session, session.decide(pixels, at_ns))
        held, cold = not arrival.decision.encode, arrival.decision.reason in ("cold", "cut")
        outcomes = self.scheduler.offer(
            camera,
            arrival,
            arrived_ns,
            now_ns=self.clock(),
            held=held,
            cold=cold,
            lossless=lossless,
            rung=self.scheduler.fit_rung(camera, arrived_ns, self.clock(), self._rungs),
        )
        if held:
            session.hold()
        return outcomes

    def next_job(
        self, now_ns: int | None = None, *, camera: str | None = None
    ) -> tuple[RealtimeJob | None, list[Dropped[Arrival]]]:
        """The job to do now, if any (of `camera` alone, if named), and the frames given up because they would be late."""
        job, dropped = self.scheduler.next(self.clock() if now_ns is None else now_ns, camera=camera)
        return (RealtimeJob(self, job) if job else None), dropped

    def pace_us(self, camera: str) -> int:
        """How far apart frames of `camera` should come, so that what comes can be used; 0: no limit."""
        return self.scheduler.pace_us(camera)

    def warm_up(self, passes: int = 5) -> float:
        """Median milliseconds of a full pass here, after one pass that does not count; the scheduler starts from it."""
        frame = np.zeros((*self.frame_encoder.descriptor.input.size_hw, 3), np.uint8)
        costs_ns = []
        for _ in range(passes + 1):
            started_ns = self.clock()
            for _step in dense_steps(self.frame_encoder, frame):
                pass
            costs_ns.append(self.clock() - started_ns)
        for cost_ns in costs_ns[1:]:
            self.scheduler.measured(self._rungs[0], cost_ns)
        return float(np.median(costs_ns[1:])) / 1e6

    def statistics(self) -> dict[str, CameraStatistics]:
        """What became of each camera's frames."""
        return {
            camera: CameraStatistics(self.scheduler.counts(camera), session.estimated_fvu)
            for camera, session in self._sessions.items()
        }

    def forget(self, camera: str, session: Session) -> None:
        """Start `camera` anew if `session` is still its memory."""
        if self._sessions.get(camera) is session:
            self.reset(camera)

    def _new_session(self) -> Session:
        return Session(self.frame_encoder, self._gate, self._stepper)

    def _session(self, camera: str) -> Session:
        if camera not in self._sessions:
            known = ", ".join(sorted(self._sessions)) or "none"
            raise OptionError(f"unknown camera {camera!r}; there are: {known}")
        return self._sessions[camera]

    def _encode_one(self, camera: str, frame: NDArray[np.uint8], pts_us: int | None) -> StreamFeature:
        if pts_us is None:
            pts_us = self._sessions[camera].at_ns // 1000 + _NOMINAL_INTERVAL_US
        for outcome in self.offer(camera, frame, self.clock(), pts_us=pts_us, lossless=True):
            if isinstance(outcome, Held):
                return self._held(outcome)
        job, _ = self.next_job(camera=camera)
        if job is None:
            raise EncoderError(f"camera {camera!r}: another frame of it is being encoded; finish that job first")
        _run(job)
        return job.result()

    def _held(self, outcome: Held[Arrival]) -> StreamFeature:
        arrival = outcome.frame
        output = arrival.session.output
        if output is None:
            raise AssertionError("held before anything was encoded")
        latency_ns = self.clock() - arrival.arrived_ns
        quality = StreamQuality(
            reason="held",
            rung=arrival.session.rung,
            tokens_updated=0,
            tokens_total=arrival.session.tokens_total,
            cold=False,
            change=arrival.decision.change.share,
            cut=False,
            encode_us=0,
            budget_met=True,
        )
        return _feature(outcome.camera, output, quality, latency_ns, arrival.tag)

    async def _stream_all(
        self, frames: AsyncIterable[torch.Tensor | NDArray[Any]], camera: str
    ) -> AsyncIterator[StreamFeature]:
        async for frame in frames:
            pixels = as_frame(frame, self.frame_encoder.descriptor.input)
            for outcome in self.offer(camera, pixels, self.clock(), lossless=True):
                if isinstance(outcome, Held):
                    yield self._held(outcome)
            job, _ = self.next_job(camera=camera)
            if job:
                await asyncio.to_thread(_run, job)
                yield job.result()

    async def _read(self, frames: AsyncIterable[torch.Tensor | NDArray[Any]], camera: str, inbox: "_Inbox") -> None:
        try:
            async for frame in frames:
                pixels = as_frame(frame, self.frame_encoder.descriptor.input)
                for outcome in self.offer(camera, pixels, self.clock()):
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


def _run(job: RealtimeJob) -> None:
    while not job.step():
        pass


async def _run_in_thread(job: RealtimeJob) -> None:
    try:
        await asyncio.to_thread(_run, job)
    except asyncio.CancelledError:
        job.abandon()
        raise


def _gate_config(gate: GateConfig | QualityLevel | None) -> GateConfig | None:
    if gate is None or isinstance(gate, GateConfig):
        return gate
    if gate not in QUALITY_TARGETS:
        raise OptionError(f"gate: expected one of {', '.join(QUALITY_TARGETS)}, a GateConfig or None, got {gate!r}")
    return GateConfig(target_fvu=QUALITY_TARGETS[gate])


def _rungs(frame_encoder: FrameEncoder, rungs: Sequence[int] | None) -> list[int]:
    """The sizes to choose from, largest first. Raises OptionError for one that the model does not take."""
    own = frame_encoder.descriptor.input.size_hw[0]
    if rungs is None:
        return [own]
    known = frame_encoder.sizes_px if isinstance(frame_encoder, ScalableFrameEncoder) else (own,)
    if not rungs or rungs[0] != own or sorted(set(rungs), reverse=True) != list(rungs) or not set(rungs) <= set(known):
        raise OptionError(
            f"rungs: expected some of {list(known)}, largest first, beginning with {own}, got {list(rungs)}"
        )
    if isinstance(frame_encoder, ScalableFrameEncoder):
        frame_encoder.prepare(rungs)
    return list(rungs)


def _timestamps(timestamps_us: Sequence[int] | None, count: int) -> Sequence[int | None]:
    if timestamps_us is None:
        return [None] * count
    if len(timestamps_us) != count:
        raise InputError(f"timestamps_us: expected one for each of {count} frames, got {len(timestamps_us)}")
    if any(later <= earlier for earlier, later in pairwise(timestamps_us)):
        raise InputError(f"timestamps_us: expected increasing microseconds, got {list(timestamps_us)}")
    return timestamps_us


def _feature(camera: str, output: Output, quality: StreamQuality, latency_ns: int, tag: Any) -> StreamFeature:
    vector, norm = _unit(output.features)
    temporal = None if output.temporal is None else _unit(output.temporal)[0]
    return StreamFeature(camera, vector, norm, temporal, quality, latency_ns / 1e6, tag)


def _unit(vector: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    norm = float(np.linalg.norm(vector))
    return (vector / np.float32(norm) if norm > 0 else vector), norm
