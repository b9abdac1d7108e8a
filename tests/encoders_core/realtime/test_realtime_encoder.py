import asyncio
from collections.abc import AsyncIterator, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encoders_core.config import GateConfig, TemporalConfig
from encoders_core.errors import EncoderError, InputError, OptionError
from encoders_core.preprocessing import InputSpec
from encoders_core.realtime.change import Change
from encoders_core.realtime.frame_encoder import DenseState, EncoderDescriptor, Plan, load_frame_encoder
from encoders_core.realtime.frame_gate import GateCalibration
from encoders_core.realtime.jobs import Dropped, Held
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder
from encoders_core.realtime.realtime_job import RealtimeJob
from encoders_core.realtime.results import StreamFeature

SIZE = 64
MS = 1_000_000


class FakeEncoder:
    """A model of a few lines: the mean colours of 8 x 8 cells, in three steps; fails on a picture that is all 13."""

    calibration = GateCalibration(variance=50_000.0, gain=0.02)
    descriptor = EncoderDescriptor(
        "fake", "fake", "0" * 16, dim=192, trained=True, pooling="mean", input=InputSpec((SIZE, SIZE))
    )

    buckets = (64,)

    def __init__(self, step: Any = lambda: None) -> None:
        self.encoded = 0
        self._step = step

    def new_state(self) -> DenseState:
        return DenseState()

    def plan(self, state: DenseState, frame: NDArray[np.uint8], change: Change | None = None) -> Plan:
        return Plan(state, frame, 64, 64, change=change.share if change else 1.0, cut=False, cold=not state.warm)

    def set_fidelity(self, state: DenseState, scale: float) -> None:
        raise OptionError(f"{state} is exact at any {scale}")

    def encode(self, plans: Sequence[Plan]) -> Generator[None, None, NDArray[np.float32]]:
        for _ in range(2):
            self._step()
            yield
        if any((plan.frame == 13).all() for plan in plans):
            raise RuntimeError("thirteen")
        self._step()
        self.encoded += len(plans)
        for plan in plans:
            plan.state.warm = True
        return np.stack([features_of(plan.frame) for plan in plans])


def features_of(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    return cv2.resize(frame.astype(np.float32), (8, 8), interpolation=cv2.INTER_AREA).ravel() - 100


@dataclass
class HandClock:
    """Moves when told."""

    now_ns: int = 0

    def __call__(self) -> int:
        return self.now_ns


def scene(seed: int) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), np.uint8)


def clip(length: int, seed: int = 0) -> NDArray[np.uint8]:
    """A still scene with a square that moves in every second ten frames."""
    frames = np.stack([scene(seed)] * length)
    for index, frame in enumerate(frames):
        left = (index if index // 10 % 2 else index // 10 * 10) * 2 % (SIZE - 16)
        frame[20:36, left : left + 16] = 255 if seed % 2 else 0
    return frames


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / np.linalg.norm(vector)


def run(job: RealtimeJob) -> StreamFeature:
    while not job.step():
        pass
    return job.result()


def test_encode_stream_gives_a_unit_vector_per_frame_and_restores_its_length() -> None:
    frames = clip(20)
    result = RealtimeVideoEncoder(FakeEncoder(), gate=None).encode_stream(frames)
    expected = np.stack([features_of(frame) for frame in frames])
    np.testing.assert_allclose(result.features * result.norms[:, None], expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(result.features, axis=1), 1, rtol=1e-5)
    assert result.temporal is None
    assert not result.held.any()


def test_encode_stream_holds_still_frames_and_says_so() -> None:
    encoder = FakeEncoder()
    result = RealtimeVideoEncoder(encoder).encode_stream(clip(10))
    assert result.held.tolist() == [quality.reason == "held" for quality in result.quality]
    assert encoder.encoded == 10 - result.held.sum() <= 3
    for index in np.flatnonzero(result.held):
        assert np.array_equal(result.features[index], result.features[index - 1])
    first, second = result.quality[:2]
    assert (first.cold, first.tokens_updated, first.tokens_total, first.rung) == (True, 64, 64, SIZE)
    assert (second.held, second.tokens_updated, second.tokens_total, second.encode_us) == (True, 0, 64, 0)


def test_encode_stream_resizes_tensors_of_another_size() -> None:
    frames = torch.from_numpy(clip(3)).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(frames.float(), scale_factor=2, mode="nearest").to(torch.uint8)
    one, two = (RealtimeVideoEncoder(FakeEncoder()).encode_stream(given) for given in (frames, larger))
    np.testing.assert_allclose(one.features, two.features, atol=1e-6)


def test_encode_stream_chunks_do_not_matter() -> None:
    frames, config = clip(60), TemporalConfig(window=4, width=16, num_heads=2)
    whole = RealtimeVideoEncoder(FakeEncoder(), temporal=config).encode_stream(frames)
    encoder = RealtimeVideoEncoder(FakeEncoder(), temporal=config)
    parts = [encoder.encode_stream(frames[a:b]) for a, b in ((0, 7), (7, 8), (8, 60))]
    assert np.array_equal(whole.features, np.concatenate([part.features for part in parts]))
    assert np.array_equal(
        whole.temporal, np.concatenate([part.temporal for part in parts if part.temporal is not None])
    )


def test_encode_stream_without_update_is_a_look_ahead() -> None:
    frames = clip(40)
    encoder = RealtimeVideoEncoder(FakeEncoder(), temporal=TemporalConfig(window=4, width=16, num_heads=2))
    encoder.encode_stream(frames[:15])
    ahead = [encoder.encode_stream(frames[15:], update_temporal_context=False) for _ in range(2)]
    then = encoder.encode_stream(frames[15:])
    for look in ahead:
        assert np.array_equal(look.features, then.features)
        assert np.array_equal(look.temporal, then.temporal)
        assert np.array_equal(look.held, then.held)


def test_interleaved_cameras_equal_each_alone() -> None:
    streams = {"a": clip(50, seed=1), "b": clip(50, seed=2)}
    together = RealtimeVideoEncoder(FakeEncoder(), temporal=TemporalConfig(window=4, width=16, num_heads=2))
    rows: dict[str, list[NDArray[np.float32]]] = {"a": [], "b": []}
    for index in range(50):
        for camera, frames in streams.items():
            result = together.encode_stream(frames[index], camera=camera)
            assert result.temporal is not None
            rows[camera].append(np.concatenate([result.features[0], result.temporal[0]]))
    for camera, frames in streams.items():
        alone = RealtimeVideoEncoder(FakeEncoder(), temporal=TemporalConfig(window=4, width=16, num_heads=2))
        result = alone.encode_stream(frames)
        assert result.temporal is not None
        assert np.array_equal(np.stack(rows[camera]), np.concatenate([result.features, result.temporal], axis=1))


@pytest.mark.parametrize("skipped", ["hold", "repeat"])
def test_temporal_output_equals_the_batch_on_the_frames_that_count(skipped: Any) -> None:
    config = TemporalConfig(window=4, depth=2, width=16, num_heads=2, skipped=skipped)
    encoder = RealtimeVideoEncoder(FakeEncoder(), temporal=config)
    assert encoder._stepper is not None
    head = encoder._stepper.head
    torch.nn.init.normal_(head.correct.weight)
    result = encoder.encode_stream(clip(60))
    assert 0.2 < result.held.mean() < 0.9
    raw = result.features * result.norms[:, None]
    steps = ~result.held if skipped == "hold" else np.ones(60, bool)
    with torch.inference_mode():
        batch = head(torch.from_numpy(raw[steps])[None])[0].numpy()
    expected = np.stack([unit(row) for row in batch])[np.cumsum(steps) - 1]
    np.testing.assert_allclose(result.temporal, expected, atol=1e-5)


def test_reset_is_as_new() -> None:
    encoder = RealtimeVideoEncoder(FakeEncoder(), temporal=TemporalConfig(window=4, width=16, num_heads=2))
    first = encoder.encode_stream(clip(30))
    encoder.reset("default")
    again = encoder.encode_stream(clip(30))
    assert np.array_equal(first.features, again.features)
    assert np.array_equal(first.temporal, again.temporal)
    assert again.quality[0].cold


def test_hold_is_bounded_by_the_timestamps_given() -> None:
    config = GateConfig(max_hold_s=2.0, audit_first=99, audit_every=99)
    encoder = RealtimeVideoEncoder(FakeEncoder(), gate=config)
    result = encoder.encode_stream([scene(0)] * 6, timestamps_us=[index * 1_000_000 for index in range(6)])
    assert [quality.reason for quality in result.quality] == ["cold", "held", "max_hold", "held", "max_hold", "held"]


@pytest.mark.parametrize(
    ("times", "message"),
    [([0], "expected one for each of 2 frames, got 1"), ([5, 5], r"expected increasing microseconds, got \[5, 5\]")],
)
def test_bad_timestamps_say_what_is_wrong(times: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RealtimeVideoEncoder(FakeEncoder()).encode_stream(clip(2), timestamps_us=times)


def test_unknown_gate_level_and_camera_are_refused() -> None:
    with pytest.raises(
        OptionError, match="expected one of high_quality, balanced, fast, a GateConfig or None, got 'best'"
    ):
        RealtimeVideoEncoder(FakeEncoder(), gate="best")  # type: ignore[arg-type]
    encoder = RealtimeVideoEncoder(FakeEncoder())
    encoder.add_camera("front")
    with pytest.raises(OptionError, match="unknown camera 'back'; there are: front"):
        encoder.offer("back", scene(0), 0)
    with pytest.raises(InputError, match=r"camera 'front': expected a uint8 frame of shape \(64, 64, 3\)"):
        encoder.offer("front", np.zeros((32, 32, 3), np.uint8), 0)


def worker(*cameras: str, **words: Any) -> tuple[RealtimeVideoEncoder, HandClock]:
    clock = HandClock()
    encoder = RealtimeVideoEncoder(FakeEncoder(), clock=clock, **words)
    for camera in cameras:
        encoder.add_camera(camera)
    return encoder, clock


def test_worker_loop_offers_runs_and_reports() -> None:
    encoder, clock = worker("a")
    assert encoder.offer("a", scene(1), 0, tag="first") == []
    job, _ = encoder.next_job()
    assert job is not None
    assert job.cold
    clock.now_ns = 30 * MS
    feature = run(job)
    assert (feature.tag, feature.latency_ms, feature.quality.budget_met) == ("first", 30.0, True)
    np.testing.assert_allclose(feature.vector * feature.norm, features_of(scene(1)), rtol=1e-4, atol=1e-3)
    (held,) = encoder.offer("a", scene(1), 40 * MS, tag="second")
    assert isinstance(held, Held)
    assert held.frame.tag == "second"
    assert encoder.next_job() == (None, [])
    counts = encoder.statistics()["a"].counts
    assert (counts.offered, counts.encoded, counts.held, counts.dropped, counts.waiting) == (2, 1, 1, {}, 0)


def test_frames_are_compared_with_the_one_being_encoded() -> None:
    encoder, _ = worker("a")
    encoder.offer("a", scene(1), 0)
    job, _ = encoder.next_job()
    assert job is not None
    job.step()
    assert isinstance(encoder.offer("a", scene(1), 1)[0], Held)
    assert encoder.offer("a", scene(2), 2) == []
    run(job)
    assert encoder.statistics()["a"].counts.waiting == 1


def test_a_frame_that_must_be_late_is_dropped_and_a_cold_one_is_not() -> None:
    encoder, clock = worker("a")
    for index in range(3):
        encoder.offer("a", scene(index), clock.now_ns)
        job, _ = encoder.next_job()
        assert job is not None
        run(job)
    encoder.scheduler.measured(50 * MS)
    moved = scene(2)
    moved[:32] = 0
    encoder.offer("a", moved, clock.now_ns, tag="late")
    clock.now_ns += 60 * MS
    job, dropped = encoder.next_job()
    assert job is None
    assert [(one.frame.tag, one.cause) for one in dropped] == [("late", "late")]
    encoder.offer("a", moved, clock.now_ns, reset=True)
    clock.now_ns += 600 * MS
    job, _ = encoder.next_job()
    assert job is not None
    assert not run(job).quality.budget_met


def test_a_model_that_raises_costs_one_frame_and_the_camera_starts_anew() -> None:
    encoder, _ = worker("a", "b")
    encoder.offer("a", np.full((SIZE, SIZE, 3), 13, np.uint8), 0)
    job, _ = encoder.next_job()
    assert job is not None
    with pytest.raises(EncoderError, match="camera 'a': encoding failed: thirteen"):
        run(job)
    assert encoder.statistics()["a"].counts.dropped == {"failed": 1}
    encoder.offer("a", scene(1), 1)
    job, _ = encoder.next_job()
    assert job is not None
    assert run(job).quality.cold


def test_a_model_that_cannot_even_plan_costs_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, _ = worker("a")
    encoder.offer("a", scene(1), 0)
    with monkeypatch.context() as broken:
        broken.setattr(FakeEncoder, "plan", lambda *_: 1 / 0)
        job, _ = encoder.next_job()
    assert job is not None
    with pytest.raises(EncoderError, match="encoding failed: division by zero"):
        run(job)
    encoder.offer("a", scene(1), 1)
    job, _ = encoder.next_job()
    assert job is not None
    assert run(job).quality.cold


def test_without_a_gate_only_the_first_frame_is_cold() -> None:
    encoder, _ = worker("a", gate=None)
    encoder.offer("a", scene(1), 0)
    first, _ = encoder.next_job()
    assert first is not None
    encoder.offer("a", scene(1), 1)
    run(first)
    second, _ = encoder.next_job()
    assert second is not None
    assert (first.cold, second.cold) == (True, False)


def test_temporal_output_is_a_model_of_its_own() -> None:
    assert RealtimeVideoEncoder(FakeEncoder()).temporal_descriptor is None
    one, two = (
        RealtimeVideoEncoder(FakeEncoder(), temporal=TemporalConfig(window=window)).temporal_descriptor
        for window in (4, 5)
    )
    assert one is not None
    assert two is not None
    assert (one.model_id, one.trained) == ("fake-temporal", False)
    assert len({one.fingerprint, two.fingerprint, FakeEncoder.descriptor.fingerprint}) == 3


def test_reset_during_a_job_keeps_its_result_and_forgets_its_state() -> None:
    encoder, _ = worker("a")
    encoder.offer("a", scene(1), 0)
    job, _ = encoder.next_job()
    assert job is not None
    assert encoder.offer("a", scene(1), 1, reset=True) == []
    np.testing.assert_allclose(run(job).vector, unit(features_of(scene(1))), atol=1e-6)
    job, _ = encoder.next_job()
    assert job is not None
    assert run(job).quality.cold


def test_remove_camera_gives_back_what_waited() -> None:
    encoder, _ = worker("a")
    encoder.offer("a", scene(1), 0, tag=7)
    (dropped,) = encoder.remove_camera("a")
    assert isinstance(dropped, Dropped)
    assert (dropped.frame.tag, dropped.cause) == (7, "stopped")
    assert encoder.statistics() == {}


def test_warm_up_measures_a_full_pass() -> None:
    clock = HandClock()

    def step() -> None:
        clock.now_ns += 2 * MS

    encoder = RealtimeVideoEncoder(FakeEncoder(step), clock=clock)
    assert encoder.warm_up() == 6.0


async def test_stream_yields_in_order_and_newest_wins_when_the_source_is_faster() -> None:
    import time

    encoder = RealtimeVideoEncoder(FakeEncoder(lambda: time.sleep(0.01)), gate=None)
    frames = [np.full((SIZE, SIZE, 3), index, np.uint8) for index in range(20, 60)]

    async def camera() -> AsyncIterator[NDArray[np.uint8]]:
        for frame in frames:
            yield frame
            await asyncio.sleep(0.005)

    seen = [round(float((feature.vector * feature.norm)[0])) + 100 async for feature in encoder.stream(camera())]
    assert seen == sorted(set(seen))
    assert seen[-1] == 59
    counts = encoder.statistics()["default"].counts
    assert counts.offered == 40
    assert counts.encoded == len(seen)
    assert counts.offered == counts.encoded + sum(counts.dropped.values())
    assert counts.dropped.keys() <= {"superseded", "late"}


async def test_stream_yields_held_frames_after_the_one_that_stands_for_them() -> None:
    encoder = RealtimeVideoEncoder(FakeEncoder())

    async def camera() -> AsyncIterator[NDArray[np.uint8]]:
        for frame in (scene(1), scene(1), scene(2), scene(2)):
            yield frame
            await asyncio.sleep(0.05)

    features = [feature async for feature in encoder.stream(camera())]
    assert [feature.quality.held for feature in features] == [False, True, False, True]
    assert np.array_equal(features[0].vector, features[1].vector)


async def test_stream_raises_what_the_source_raises_and_leaves_no_task() -> None:
    async def camera() -> AsyncIterator[NDArray[np.uint8]]:
        yield scene(1)
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        async for _ in RealtimeVideoEncoder(FakeEncoder()).stream(camera()):
            pass
    assert len(asyncio.all_tasks()) == 1


async def test_stream_cancelled_in_the_middle_can_be_taken_up_again() -> None:
    import time

    encoder = RealtimeVideoEncoder(FakeEncoder(lambda: time.sleep(0.05)))

    async def camera() -> AsyncIterator[NDArray[np.uint8]]:
        yield scene(1)

    async def consume() -> list[StreamFeature]:
        return [feature async for feature in encoder.stream(camera())]

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.03)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert encoder.statistics()["default"].counts.dropped == {"failed": 1}
    assert [feature.quality.cold for feature in await consume()] == [True]


def test_trained_encoder_from_pictures_to_vectors() -> None:
    encoder = RealtimeVideoEncoder(load_frame_encoder(), temporal=TemporalConfig())
    frames = np.random.default_rng(0).integers(0, 256, (2, 120, 160, 3), np.uint8)
    result = encoder.encode_stream([frames[0], frames[0], frames[1]])
    assert result.features.shape == (3, 1280)
    assert result.temporal is not None
    assert result.temporal.shape == (3, 1280)
    assert result.held.tolist() == [False, True, False]
