"""VideoEncoder.create_realtime: each word of its configuration has the effect that it names."""

from collections.abc import AsyncIterator, Generator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encoders_core.config import TemporalConfig
from encoders_core.errors import InputError, OptionError, WeightsNotFoundError
from encoders_core.models.temporal import TemporalHead
from encoders_core.preprocessing import InputSpec
from encoders_core.realtime.change import Change
from encoders_core.realtime.frame_encoder import DenseState, EncoderDescriptor, Plan, load_frame_encoder
from encoders_core.realtime.frame_gate import GateCalibration
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder
from encoders_core.video.live import create_realtime
from encoders_core.video_encoder import VideoEncoder

MS = 1_000_000
SPECIFIED: dict[str, Any] = {
    "latency_optimization": {"max_latency_ms": 100, "frame_skipping": "adaptive", "temporal_caching": True},
    "quality_vs_speed": {"quality_level": "balanced", "adaptive_resolution": True, "motion_based_sampling": True},
}


class Pace:
    """A clock that a model moves: a pass at 64 pixels takes `full_ms`, a smaller one as its area."""

    def __init__(self, full_ms: float) -> None:
        self.now_ns, self.full_ms = 0, full_ms

    def __call__(self) -> int:
        return self.now_ns


class SizedEncoder:
    """The mean colours of 8 x 8 cells of a picture of 64, 48, 32 or 16 pixels."""

    calibration = GateCalibration(variance=50_000.0, gain=0.02)
    descriptor = EncoderDescriptor(
        "sized", "sized", "0" * 16, dim=192, trained=True, pooling="mean", input=InputSpec((64, 64))
    )
    buckets = (64,)
    sizes_px = (64, 48, 32, 16)

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def prepare(self, sizes_px: Sequence[int]) -> None:
        self.prepared = list(sizes_px)

    def new_state(self) -> DenseState:
        return DenseState()

    def plan(self, state: DenseState, frame: NDArray[np.uint8], change: Change | None = None) -> Plan:
        rows = (frame.shape[0] // 8) ** 2
        return Plan(state, frame, rows, rows, change=change.share if change else 1.0, cut=False, cold=not state.warm)

    def set_fidelity(self, state: DenseState, scale: float) -> None:
        raise OptionError(f"{state} is exact at any {scale}")

    def encode(self, plans: Sequence[Plan]) -> Generator[None, None, NDArray[np.float32]]:
        yield
        size = plans[0].frame.shape[0]
        self._pace.now_ns += round(self._pace.full_ms * MS * (size / 64) ** 2)
        cells = [plan.frame.reshape(8, size // 8, 8, size // 8, 3).mean((1, 3)) for plan in plans]
        return np.stack([cell.astype(np.float32).ravel() - 100 for cell in cells])


def live(pace: Pace | None = None, **sections: Any) -> RealtimeVideoEncoder:
    pace = pace or Pace(1)
    return create_realtime(sections, model=SizedEncoder(pace), clock=pace)


def noise(frames: int, size: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


def still(frames: int) -> NDArray[np.uint8]:
    return np.repeat(noise(1), frames, 0)


def test_specified_block_runs_on_the_default_model() -> None:
    try:
        encoder = VideoEncoder.create_realtime(config=SPECIFIED, buffer_size=8)
    except WeightsNotFoundError as missing:
        pytest.skip(str(missing))
    batches = [torch.rand(4, 3, 120, 160), torch.rand(4, 3, 120, 160)]
    for batch in batches:
        features = encoder.encode_stream(batch, update_temporal_context=True)
        assert features.features.shape == (4, 1280)
        assert features.temporal is not None
    assert encoder.budget_ms == 100
    assert encoder.statistics()["default"].counts.offered == 8


@pytest.mark.parametrize("buffer_size", [1, 3, 8])
def test_streaming_equals_the_batch_computation_of_the_same_head(buffer_size: int) -> None:
    encoder = create_realtime(
        {"latency_optimization": {"frame_skipping": "none"}}, buffer_size, model=SizedEncoder(Pace(1))
    )
    head = TemporalHead(192, TemporalConfig(window=buffer_size)).eval()
    assert encoder._stepper is not None
    torch.manual_seed(0)
    for own, other in zip(encoder._stepper.head.parameters(), head.parameters(), strict=True):
        torch.nn.init.normal_(own, std=0.05)
        other.data.copy_(own.data)
    frames = noise(20)
    parts = [encoder.encode_stream(part) for part in (frames[:3], frames[3:4], frames[4:])]
    features = torch.from_numpy(np.concatenate([part.features * part.norms[:, None] for part in parts]))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(head(features[None])[0], dim=-1)
    streamed = torch.from_numpy(np.concatenate([part.temporal for part in parts if part.temporal is not None]))
    torch.testing.assert_close(streamed, expected, atol=1e-5, rtol=0)


def test_buffer_size_is_the_window_of_the_temporal_head() -> None:
    def output(buffer_size: int) -> NDArray[np.float32]:
        encoder = create_realtime(
            {"latency_optimization": {"frame_skipping": "none"}}, buffer_size, model=SizedEncoder(Pace(1))
        )
        temporal = encoder.encode_stream(noise(6)).temporal
        assert temporal is not None
        return temporal

    single = create_realtime(
        {"latency_optimization": {"frame_skipping": "none", "temporal_caching": False}}, model=SizedEncoder(Pace(1))
    ).encode_stream(noise(6))
    np.testing.assert_allclose(output(1), single.features, atol=1e-6)
    assert not np.allclose(output(2)[-1], output(6)[-1], atol=1e-3)


def test_temporal_caching_off_remembers_nothing() -> None:
    assert live(latency_optimization={"temporal_caching": False}).encode_stream(noise(3)).temporal is None
    with pytest.raises(OptionError, match="buffer_size is the window"):
        create_realtime({"latency_optimization": {"temporal_caching": False}}, 8, model=SizedEncoder(Pace(1)))


def test_motion_based_sampling_holds_still_frames() -> None:
    assert live().encode_stream(still(6)).held.sum() == 5
    assert live(quality_vs_speed={"motion_based_sampling": False}).encode_stream(still(6)).held.sum() == 0


def test_quality_level_is_the_error_that_holding_may_cost() -> None:
    targets = {}
    for level in ("high_quality", "balanced", "fast"):
        gate = live(quality_vs_speed={"quality_level": level})._gate
        assert gate is not None
        targets[level] = gate.target_fvu
    assert targets == {"high_quality": 0.005, "balanced": 0.02, "fast": 0.05}


async def source(frames: NDArray[np.uint8]) -> AsyncIterator[NDArray[np.uint8]]:
    for frame in frames:
        yield frame


async def test_frame_skipping_adaptive_gives_up_frames_and_none_encodes_all() -> None:
    skipping = live(quality_vs_speed={"motion_based_sampling": False})
    few = [feature async for feature in skipping.stream(source(noise(12)))]
    counts = skipping.statistics()["default"].counts
    assert len(few) + sum(counts.dropped.values()) == 12
    assert counts.dropped["superseded"] > 0
    patient = live(latency_optimization={"frame_skipping": "none"})
    everything = [feature async for feature in patient.stream(source(still(12)))]
    assert [feature.quality.held for feature in everything] == [False] * 12
    assert patient.statistics()["default"].counts.dropped == {}


def sizes(encoder: RealtimeVideoEncoder, frames: int) -> list[int]:
    return [quality.rung for quality in encoder.encode_stream(noise(frames)).quality]


def test_adaptive_resolution_steps_down_while_the_budget_is_missed_and_up_again() -> None:
    pace = Pace(150)
    options = {"adaptive_resolution": True, "motion_based_sampling": False}
    encoder = live(pace, latency_optimization={"max_latency_ms": 100}, quality_vs_speed=options)
    assert sizes(encoder, 4) == [64, 48, 48, 48]  # 150 ms a pass, then 84
    assert encoder.frame_encoder.prepared == [64, 48, 32]  # type: ignore[attr-defined]
    pace.full_ms = 400
    assert sizes(encoder, 4) == [48, 32, 32, 32]  # 225, 100: the smallest that "balanced" may use
    pace.full_ms = 20
    assert sizes(encoder, 80)[-1] == 64
    without = live(Pace(150), quality_vs_speed={"motion_based_sampling": False})
    assert set(sizes(without, 4)) == {64}


@pytest.mark.parametrize(("level", "smallest"), [("high_quality", 48), ("balanced", 32), ("fast", 16)])
def test_quality_level_bounds_how_small_pictures_get(level: str, smallest: int) -> None:
    options = {"quality_level": level, "adaptive_resolution": True, "motion_based_sampling": False}
    assert sizes(live(Pace(5000), quality_vs_speed=options), 6)[-1] == smallest


def test_adaptive_resolution_needs_a_model_of_several_sizes() -> None:
    class OneSize(SizedEncoder):
        sizes_px = (64,)

    with pytest.raises(OptionError, match="'sized' takes 64 px alone"):
        create_realtime({"quality_vs_speed": {"adaptive_resolution": True}}, model=OneSize(Pace(1)))


def test_max_latency_is_the_budget() -> None:
    slow = live(Pace(80), latency_optimization={"max_latency_ms": 50}).encode_stream(noise(1))
    fine = live(Pace(80), latency_optimization={"max_latency_ms": 100}).encode_stream(noise(1))
    assert (slow.quality[0].budget_met, fine.quality[0].budget_met) == (False, True)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"latency": {}}, "valid: latency_optimization, quality_vs_speed"),
        ({"latency_optimization": {"max_latency": 3}}, "did you mean 'max_latency_ms'"),
        ({"latency_optimization": {"max_latency_ms": 0}}, "positive number of milliseconds"),
        ({"latency_optimization": {"frame_skipping": "always"}}, "'adaptive', 'none'"),
        ({"quality_vs_speed": {"quality_level": "best"}}, "'high_quality', 'balanced', 'fast'"),
        (
            {
                "latency_optimization": {"frame_skipping": "none"},
                "quality_vs_speed": {"motion_based_sampling": True},
            },
            "motion_based_sampling holds frames",
        ),
        (
            {"quality_vs_speed": {"quality_level": "fast", "motion_based_sampling": False}},
            "leave quality_level out",
        ),
    ],
)
def test_what_cannot_have_an_effect_is_an_error(config: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        create_realtime(config, model=SizedEncoder(Pace(1)))


def test_rungs_that_the_model_does_not_take_are_refused() -> None:
    for rungs in ([48], [64, 40], [64, 32, 48], []):
        with pytest.raises(OptionError, match=r"some of \[64, 48, 32, 16\], largest first, beginning with 64"):
            RealtimeVideoEncoder(SizedEncoder(Pace(1)), rungs=rungs)


def test_default_model_takes_smaller_pictures_in_the_same_space() -> None:
    try:
        encoder = load_frame_encoder()
    except WeightsNotFoundError as missing:
        pytest.skip(str(missing))

    def features(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        steps = encoder.encode([encoder.plan(encoder.new_state(), frame)])
        while True:
            try:
                next(steps)
            except StopIteration as done:
                vector: NDArray[np.float32] = done.value[0]
                return vector / np.linalg.norm(vector)

    import cv2

    coarse = np.random.default_rng(3).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    picture = np.asarray(cv2.resize(coarse, (224, 224), interpolation=cv2.INTER_CUBIC), np.uint8)
    full = features(picture)
    for size in (192, 160, 128):
        small = features(np.asarray(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA), np.uint8))
        assert float(full @ small) > 0.6
    with pytest.raises(InputError, match=r"S one of \(224, 192, 160, 128\)"):
        encoder.plan(encoder.new_state(), picture[:100, :100])
