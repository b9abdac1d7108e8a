from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from encoders_core.config import GateConfig
from encoders_core.errors import OptionError
from encoders_core.realtime.frame_gate import FrameGate, GateCalibration, Reason

Picture = NDArray[np.uint8]
INTERVAL_NS = 40_000_000


def picture(seed: int = 0) -> Picture:
    """Something with structure at all scales, like a photograph."""
    random = np.random.default_rng(seed)
    layers = [cv2.resize(random.random((n, n, 3)), (224, 224), interpolation=cv2.INTER_CUBIC) for n in (4, 8, 16, 32)]
    return np.clip(60 + 170 * np.mean(layers, axis=0), 0, 255).astype(np.uint8)


def features_of(frame: Picture) -> NDArray[np.float32]:
    """A stand-in for a model: colour means of 14 x 14 cells; two pictures of different scenes are about 100,000 apart."""
    return cv2.resize(frame.astype(np.float32), (14, 14), interpolation=cv2.INTER_AREA).ravel()


MODEL_VARIANCE = float(np.var([features_of(picture(seed)) for seed in range(20)], axis=0).sum())
CALIBRATION = GateCalibration(variance=MODEL_VARIANCE, gain=0.02)


@dataclass
class Run:
    """A stream through a gate, each frame encoded when the gate says so."""

    reasons: list[Reason] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    """|z' - z|^2 of each frame."""
    truth: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def fvu(self) -> float:
        truth = np.stack(self.truth)
        spread = max(float(((truth - truth.mean(0)) ** 2).sum()), len(truth) * 0.01 * MODEL_VARIANCE)
        return sum(self.errors) / spread

    def share(self, *reasons: Reason) -> float:
        counted = Counter(self.reasons)
        return sum(counted[reason] for reason in reasons) / len(self.reasons)


def run(frames: Iterable[Picture], config: GateConfig | None = None) -> Run:
    gate, result, output = FrameGate(config or GateConfig(), CALIBRATION), Run(), np.zeros(588, np.float32)
    for index, frame in enumerate(frames):
        at_ns, truth = index * INTERVAL_NS, features_of(frame)
        decision = gate.decide(frame, at_ns)
        if decision.encode:
            gate.begin(frame, at_ns, decision)
            gate.learn(truth)
            output = truth
        result.reasons.append(decision.reason)
        result.errors.append(float(((output - truth) ** 2).sum()))
        result.truth.append(truth)
    return result


def with_square(scene: Picture, left: float, side: int = 32) -> Picture:
    """`scene` with a bright square whose left edge may lie between two pixels."""
    shifted = np.float32([[1, 0, left], [0, 1, 96]])
    square = cv2.warpAffine(np.full((side, side), 1, np.float32), shifted, (224, 224))[..., None]
    return (scene * (1 - square) + 250 * square).astype(np.uint8)


def test_first_frame_is_cold_and_an_identical_one_is_held() -> None:
    assert run([picture()] * 3).reasons == ["cold", "held", "held"]


def test_target_zero_encodes_exactly_the_frames_that_differ_in_any_pixel() -> None:
    one = picture()
    other = one.copy()
    other[7, 9, 2] ^= 1
    assert run([one, one, other, other, one], GateConfig(target_fvu=0)).reasons == [
        "cold", "held", "change", "held", "change"
    ]  # fmt: skip


def test_hold_is_bounded() -> None:
    config = GateConfig(max_hold_s=1.0, audit_first=1000, audit_every=1000)
    reasons = run([picture()] * 60, config).reasons
    assert [index for index, reason in enumerate(reasons) if reason == "max_hold"] == [25, 50]


def test_a_cut_is_encoded_in_the_same_frame() -> None:
    reasons = run([picture(0)] * 5 + [picture(9)] * 5).reasons
    assert reasons[5] == "cut"
    assert set(reasons[6:]) <= {"held", "audit"}


def test_sudden_light_is_encoded_at_once_and_then_quiet_again() -> None:
    brighter = np.clip(picture() * 1.3, 0, 255).astype(np.uint8)
    reasons = run([picture()] * 5 + [brighter] * 5).reasons
    assert reasons[5] == "light"
    assert set(reasons[6:]) <= {"held", "audit"}


def test_slow_drift_is_paid_before_it_shows() -> None:
    """Neighbours differ by less than any threshold; against the reference the difference adds up."""
    still = picture()
    frames = [(still * gain).astype(np.uint8) for gain in np.linspace(1, 0.5, 600)]
    drift = run(frames)
    assert drift.fvu < 0.02
    assert max(drift.errors) < 0.25 * np.stack(drift.truth).var(0).sum()
    assert drift.share("held") > 0.3


@pytest.mark.parametrize("sigma", [0, 1, 2, 4, 8])
def test_noise_on_a_still_scene_does_not_fire(sigma: float) -> None:
    random, still = np.random.default_rng(0), picture()
    frames = [np.clip(still + random.normal(0, sigma, still.shape), 0, 255).astype(np.uint8) for _ in range(200)]
    noise = run(frames)
    assert noise.share("change", "light", "cut") < 0.03
    assert noise.share("audit") < 0.1


def test_small_slow_object_accumulates_until_it_is_seen() -> None:
    """0.2 pixels per frame: no two neighbours differ visibly; no vector is older than a few pixels of its way."""
    still = picture()
    slow = run(with_square(still, 20 + 0.2 * index, side=8) for index in range(300))
    held_in_a_row, longest = 0, 0
    for reason in slow.reasons[50:]:
        held_in_a_row = held_in_a_row + 1 if reason == "held" else 0
        longest = max(longest, held_in_a_row)
    assert longest * 0.2 <= 16
    assert slow.fvu < 0.1


def test_an_object_that_comes_and_goes_leaves_no_error_behind() -> None:
    still = picture()
    cycle = [still] * 6 + [with_square(still, 50)] * 6
    coming = run(cycle * 20)
    for index, reason in enumerate(coming.reasons):
        if index % 6 == 0:
            assert reason != "held"
        assert coming.errors[index] == 0


def test_flicker_of_a_tenth_of_the_picture_is_followed_or_held_within_the_target() -> None:
    still = picture()
    lit = still.copy()
    lit[:70, :70] = np.clip(lit[:70, :70] * 1.5, 0, 255)
    flicker = run([lit if index % 2 else still for index in range(300)])
    assert flicker.fvu <= 0.03
    assert flicker.share("cut", "light") == 0


def moving(index: int, still: Picture) -> Picture:
    return with_square(with_square(still, 20 + 60 * np.sin(index / 15) ** 2, side=20), (3 * index) % 180, side=40)


@pytest.mark.parametrize("target", [0.005, 0.02, 0.05])
def test_error_of_the_held_frames_comes_to_the_target(target: float) -> None:
    """Whatever the model's prior says: the audits find out what change means for this camera."""
    still = picture()
    frames = [moving(index // 3 if index % 200 < 150 else 0, still) for index in range(1500)]
    result = run(frames, GateConfig(target_fvu=target))
    assert result.fvu <= 1.3 * target
    assert result.share("held") > 0.2


def test_decisions_are_replayable() -> None:
    still = picture()
    frames = [moving(index // 2, still) for index in range(200)]
    assert run(frames).reasons == run(frames).reasons


def test_another_picture_size_is_cold() -> None:
    gate = FrameGate(GateConfig(), CALIBRATION)
    decision = gate.decide(picture(), 0)
    gate.begin(picture(), 0, decision)
    gate.learn(features_of(picture()))
    assert gate.decide(picture()[:160, :160].copy(), 1).reason == "cold"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GateConfig(target_fvu=1.0), "target_fvu: expected a number from 0 to below 1, got 1.0"),
        (lambda: GateConfig(max_hold_s=0), "max_hold_s: expected a positive number of seconds, got 0"),
        (lambda: GateConfig(audit_first=9, audit_every=3), "expected 1 <= first <= every, got 9, 3"),
    ],
)
def test_config_refuses_what_makes_no_sense(make: Callable[[], GateConfig], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()
