"""Gated passes of several cameras in one: what comes of each, and what of its account."""

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders_core.config import GateConfig
from encoders_core.errors import EncoderError
from encoders_core.realtime.frame_encoder import Plan
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder
from encoders_core.realtime.realtime_job import RealtimeJob
from encoders_core.realtime.vit_frame_encoder import VitFrameEncoder
from tests.encoders_core.realtime.tiny_vits import redrawn, scene, tiny_encoder

MS = 1_000_000
CAMERAS = ("a", "b", "c")


class Counting(VitFrameEncoder):
    """Notes how many cameras each call is for; fails when told to."""

    batches: list[int]
    broken = False

    def encode(self, plans: Sequence[Plan]) -> Generator[None, None, NDArray[np.float32]]:
        self.batches.append(len(plans))
        if self.broken and len(plans) > 1:
            raise RuntimeError("out of memory")
        return super().encode(plans)


def counting() -> Counting:
    model: Any = tiny_encoder(dense_fallback=False)
    model.__class__ = Counting
    model.batches = []
    return model


class Clock:
    """Ten microseconds later each time it is read."""

    now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 10_000
        return self.now_ns


def warm_cameras(model: Any, budget_ms: float = 10_000) -> tuple[RealtimeVideoEncoder, Clock]:
    """Three cameras of ten frames a second whose importance of rows is known."""
    clock = Clock()
    encoder = RealtimeVideoEncoder(model, budget_ms=budget_ms, gate=GateConfig(target_fvu=0.9), clock=clock)
    for n in range(3):
        clock.now_ns += 100 * MS
        for number, camera in enumerate(CAMERAS):
            encoder.encode_stream(redrawn(scene(number), [5], n)[None], camera=camera)
    return encoder, clock


def offer_all(encoder: RealtimeVideoEncoder, clock: Clock) -> None:
    clock.now_ns += 100 * MS
    for number, camera in enumerate(CAMERAS):
        encoder.offer(camera, redrawn(scene(number), [6, 7], 9), clock.now_ns, tag=camera)


def drained(encoder: RealtimeVideoEncoder, *, packed: bool) -> dict[str, RealtimeJob]:
    done = {}
    while (job := encoder.next_job(packed=packed)[0]) is not None:
        while not job.step():
            pass
        done |= {one.camera: one for one in (job, *job.companions)}
    return done


def test_cameras_that_are_in_time_share_a_pass_and_get_what_they_get_alone() -> None:
    alone, together = counting(), counting()
    vectors = []
    for model, packed in ((alone, False), (together, True)):
        encoder, clock = warm_cameras(model)
        model.batches.clear()
        offer_all(encoder, clock)
        done = drained(encoder, packed=packed)
        vectors.append(np.stack([done[camera].result().vector for camera in CAMERAS]))
        for camera in CAMERAS:
            counts = encoder.statistics()[camera].counts
            assert counts.offered == counts.encoded + counts.held
    assert alone.batches == [1, 1, 1]
    assert together.batches[-1] == 3
    assert np.allclose(vectors[0], vectors[1], atol=1e-6)


def test_a_camera_that_would_make_another_late_waits_for_its_turn() -> None:
    model = counting()
    encoder, clock = warm_cameras(model, budget_ms=0.15)
    offer_all(encoder, clock)
    job, _ = encoder.next_job(packed=True)
    assert job is not None
    assert job.companions == ()


def test_a_pass_that_fails_is_the_failure_of_each_of_its_frames() -> None:
    model = counting()
    encoder, clock = warm_cameras(model)
    model.broken = True
    offer_all(encoder, clock)
    for job in drained(encoder, packed=True).values():
        with pytest.raises(EncoderError, match="out of memory"):
            job.result()
    for camera in CAMERAS:
        assert encoder.statistics()[camera].counts.dropped == {"failed": 1}
