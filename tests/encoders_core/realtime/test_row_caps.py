"""A model that can do with fewer rows: from the deadline of a frame to its cap, and when there is none."""

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders_core.config import GateConfig
from encoders_core.errors import OptionError
from encoders_core.realtime.load import Level
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder
from encoders_core.realtime.results import StreamFeature
from encoders_core.video.live import create_realtime
from tests.encoders_core.realtime.rows import MS, SIZE, Rows, Ticking


def noise(count: int, rows: int = 4) -> list[NDArray[np.uint8]]:
    """Pictures of which the first `rows` quarters are others each time."""
    pictures = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    pictures[:, rows * SIZE // 4 :] = pictures[0, rows * SIZE // 4 :]
    return list(pictures)


def costly(**words: object) -> tuple[RealtimeVideoEncoder, Rows, Ticking]:
    """A pass takes 10, 40 or 90 ms for one, two or four rows; the budget is 100 ms."""
    clock = Ticking()
    model = Rows(clock)
    model.cost_ms = {1: 10, 2: 40, 4: 90}
    encoder = RealtimeVideoEncoder(model, gate=None, clock=clock, **words)  # type: ignore[arg-type]
    encoder.add_camera("a")
    for row_cap, cost_ms in model.cost_ms.items():
        encoder.scheduler.measured(round(cost_ms * MS), level=Level(SIZE, row_cap))
    return encoder, model, clock


def encode(
    encoder: RealtimeVideoEncoder, clock: Ticking, frame: NDArray[np.uint8], waits_ms: int
) -> StreamFeature | None:
    """The frame, started so long after it came; None when it was given up."""
    encoder.offer("a", frame, clock.now_ns)
    clock.now_ns += waits_ms * MS
    job, _ = encoder.next_job()
    while job and not job.step():
        pass
    clock.now_ns += MS
    return job.result() if job else None


@pytest.mark.parametrize(("waits_ms", "cap", "rows"), [(5, None, 4), (20, 2, 2), (70, 1, 1)])
def test_a_frame_gets_the_largest_cap_that_meets_its_deadline(waits_ms: int, cap: int | None, rows: int) -> None:
    encoder, model, clock = costly()
    first, second = noise(2)
    encode(encoder, clock, first, 0)
    clock.now_ns += 200 * MS
    feature = encode(encoder, clock, second, waits_ms)
    assert feature is not None
    assert (model.caps[-1], feature.quality.tokens_updated, feature.quality.budget_met) == (cap, rows, True)
    assert encoder.statistics()["a"].counts.capped == (cap is not None)


def test_a_frame_that_would_be_late_with_the_fewest_rows_is_dropped() -> None:
    encoder, _, clock = costly()
    first, second = noise(2)
    encode(encoder, clock, first, 0)
    assert encode(encoder, clock, second, 95) is None
    assert encoder.statistics()["a"].counts.dropped == {"late": 1}


def test_a_frame_gets_no_more_than_it_wants() -> None:
    encoder, model, clock = costly()
    for frame in noise(3, rows=1):
        encode(encoder, clock, frame, 0)
    assert model.caps == [None, 1, 1]  # the first is cold
    assert encoder.statistics()["a"].counts.capped == 0


def test_cold_passes_are_never_capped() -> None:
    encoder, model, clock = costly()
    feature = encode(encoder, clock, noise(1)[0], 80)
    assert feature is not None
    assert (model.caps, feature.quality.cold, feature.quality.budget_met) == ([None], True, False)


def test_a_picture_that_was_held_for_long_is_renewed_by_a_full_pass() -> None:
    model, clock = Rows(), Ticking()
    encoder = RealtimeVideoEncoder(
        model, gate=GateConfig(max_hold_s=1.0, audit_first=1000, audit_every=1000), clock=clock
    )
    encoder.add_camera("a")
    still = noise(1)[0]
    for _ in range(60):
        encode(encoder, clock, still, 0)
        clock.now_ns += 39 * MS
    # In slack time from three quarters of max_hold_s on: every 19th frame of 40 ms.
    assert model.refreshes == [False, True, True, True]
    assert set(model.caps) == {None}
    counts = encoder.statistics()["a"].counts
    assert (counts.encoded, counts.held) == (4, 56)


def test_without_slack_a_picture_is_renewed_when_it_has_to_be() -> None:
    model, clock = Rows(), Ticking()
    encoder = RealtimeVideoEncoder(
        model, gate=GateConfig(max_hold_s=1.0, audit_first=1000, audit_every=1000), clock=clock
    )
    encoder.add_camera("a")
    encoder.block_took(10**12)
    still = noise(1)[0]
    encoded = []
    for number in range(60):
        if encode(encoder, clock, still, 0):
            encoded.append(number)
            encoder.block_took(10**12)
        clock.now_ns += 39 * MS
    assert encoded == [0, 25, 50]


def test_without_caching_each_pass_is_a_full_one_of_its_own() -> None:
    encoder, model, clock = costly(caching=False)
    for frame in noise(3, rows=1):
        feature = encode(encoder, clock, frame, 0)
        assert feature is not None
        assert (feature.quality.tokens_updated, feature.quality.tokens_total) == (4, 4)
    assert model.caps == [None] * 3
    assert model.scales == []


def test_what_another_camera_needs_is_left_to_it() -> None:
    encoder, _, clock = costly()
    encoder.add_camera("b")
    pictures = noise(3)
    for camera in "ab":
        encoder.offer(camera, pictures[0], clock.now_ns)
        job, _ = encoder.next_job()
        assert job is not None
        while not job.step():
            pass
        job.result()
    for camera, picture in zip("ab", pictures[1:], strict=True):
        encoder.offer(camera, picture, clock.now_ns)
    jobs = []
    for _ in "ab":
        job, _ = encoder.next_job()
        assert job is not None
        while not job.step():
            pass
        jobs.append(job.result())
    assert [job.quality.tokens_updated for job in jobs] == [2, 2]  # with all four rows, the other would be late
    assert all(job.quality.budget_met for job in jobs)


@pytest.mark.parametrize(("level", "scale"), [("high_quality", 0.5), ("balanced", 1.0), ("fast", 1.58)])
def test_quality_level_scales_the_gates_of_the_model(level: str, scale: float) -> None:
    model = Rows()
    create_realtime({"quality_vs_speed": {"quality_level": level}}, model=model).encode_stream(noise(1)[0])
    assert model.scales[-1] == pytest.approx(scale, abs=0.01)


def test_temporal_caching_off_makes_every_pass_a_full_one() -> None:
    def updated(**words: bool) -> list[int]:
        config = {"latency_optimization": words, "quality_vs_speed": {"motion_based_sampling": False}}
        found = create_realtime(config, model=Rows()).encode_stream(noise(3, rows=1))
        return [quality.tokens_updated for quality in found.quality]

    assert updated(temporal_caching=True) == [4, 1, 1]
    assert updated(temporal_caching=False) == [4, 4, 4]


def test_the_model_refuses_a_negative_scale() -> None:
    with pytest.raises(OptionError, match="negative"):
        Rows().set_fidelity({}, -1)
