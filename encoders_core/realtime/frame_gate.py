"""Encode or hold: whether the last vector may stand for this frame, within an error that the user states.

The gate compares with the frame that was *encoded* last, so slow change adds up until it is paid. From the change of the
picture it predicts the change of the vector, |z - z_ref|^2 = gain * score, and holds while that is below a threshold.
Both are learnt per camera: the gain from audits (every so often a frame that would be held is encoded all the same, which
measures the error of the held frames without bias), the threshold by a controller that spends most of the error
budget, `target_fvu * variance of the camera's vectors`, evenly over time. At the start the model's own figures stand in.
"""

import math
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from encoders_core.config import GateConfig
from encoders_core.realtime.change import Change, NoiseFloor, Reduced, identical, measure
from encoders_core.realtime.change_kernels import distance, reduce_frame
from encoders_core.realtime.spread import MEMORY_FRAMES, Spread

Reason = Literal["held", "cold", "change", "cut", "light", "max_hold", "audit"]

_PRIOR_WEIGHT: Final = 4.0  # grey levels of score that the model's own gain counts for
_FORGET: Final = 0.98  # per audit
_AIM: Final = 0.8  # of the target: what is spent is an estimate, and wanders about what it aims at
_START_RATIO: Final = 3.0  # threshold over budget, on the careful side: 2 to 20 on our clips
_RATIO_RANGE: Final = (0.5, 10.0)
_RATIO_RATE: Final = 0.01  # per frame
_MAX_DEBT: Final = 5.0
_START_VARIANCE: Final = 0.05  # of the model's, until a camera's own is known
_RENEW_SHARE: Final = 0.75  # of max_hold_s: from then on a held picture is renewed when there is time


@dataclass(frozen=True, slots=True)
class GateCalibration:
    """What the gate knows of a model before it has seen a camera.

    `variance`: mean |z - mean|^2 of its features over many different scenes. `gain`: |z - z_ref|^2 per grey level of
    change, as a share of `variance`.
    """

    variance: float
    gain: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a frame, and why. `predicted_error` is |z - z_ref|^2 over the model's variance."""

    reason: Reason
    change: Change
    predicted_error: float
    reduced: Reduced | None = field(default=None, repr=False, compare=False)
    """The frame as the gate compares it."""
    early: bool = False
    """Encoded before it has to be, because there is time: holding it would do as well."""

    @property
    def encode(self) -> bool:
        """False: the last vector stands."""
        return self.reason != "held"


_NOTHING: Final = Change(score=0.0, share=1.0, cut=False, light=False)


class FrameGate:
    """The gate of one camera. `decide` for every frame; `begin` and `learn` around the encoding of those that pass.

    Deterministic: the same frames, times and features give the same decisions.
    """

    def __init__(self, config: GateConfig, calibration: GateCalibration) -> None:
        self.config = config
        self.scale = 1.0
        """Of the error that may be spent, against `config`."""
        self._calibration = calibration
        self._floor = NoiseFloor()
        self._spread = Spread(calibration.variance, start=_START_VARIANCE)
        self._budget = _ErrorBudget(config, calibration.gain)
        self._reference: Reduced | None = None
        self._reference_pixels: NDArray[np.uint8] | None = None
        self._reference_at_ns = 0
        self._features: NDArray[np.float32] | None = None
        self._pending: Decision | None = None

    def decide(self, frame: NDArray[np.uint8], at_ns: int, *, slack: bool = False) -> Decision:
        """(H, W, 3) uint8 of the time `at_ns` -> encode or hold. The reference stays as it is.

        `slack`: there is time for a pass that is not urgent. Pictures that have stood for three quarters of `max_hold_s` are
        renewed then, so that those of several cameras do not come due at once.
        """
        small = reduce_frame(frame)
        floor = self._floor.update(small)
        if self._reference is None or self._reference.shape != small.shape:
            return Decision("cold", _NOTHING, 1.0, small)
        # While frames are encoded one after the other, the reference is the picture before.
        cells = self._floor.cells if self._floor.previous is self._reference else None
        change = measure(small, self._reference, floor, cells)
        budget = _AIM * self.config.target_fvu * self.scale * self._spread.variance
        wanted = self._budget.wants(change.score, budget)
        reason = self._reason(frame, change, at_ns, wanted=wanted)
        if reason == "held" and self.config.target_fvu > 0 and self._budget.audit_due():
            reason = "audit"
        early = reason == "held" and slack and self._held_for(at_ns) >= _RENEW_SHARE
        if early:
            reason = "max_hold"
        if reason == "held" and self._features is not None:
            self._spread.update(self._features)
        return Decision(reason, change, self._budget.predict(change.score), small, early)

    def begin(self, frame: NDArray[np.uint8], at_ns: int, decision: Decision) -> None:
        """The encoding of `frame` starts: from here on frames are compared with it."""
        self._reference = decision.reduced
        # Reduced pictures can be equal where pixels differ, so a target of 0 keeps the pixels as well.
        self._reference_pixels = frame.copy() if self.config.target_fvu == 0 else None
        self._reference_at_ns = at_ns
        self._pending = decision

    def learn(self, features: NDArray[np.float32]) -> None:
        """(D,) float32, the un-normalised features of the frame of the last `begin`."""
        if self._pending is not None and self._features is not None:
            error = distance(features, self._features) / self._calibration.variance
            self._budget.observe(self._pending, error)
        self._pending = None
        self._features = features
        self._spread.update(features)

    @property
    def estimated_fvu(self) -> float:
        """Error of the frames that passed through here, over their variance, as the audits suggest; 0 before any hold."""
        return self._budget.mean_error / self._spread.variance

    def _reason(self, frame: NDArray[np.uint8], change: Change, at_ns: int, *, wanted: bool) -> Reason:
        if change.cut:
            return "cut"
        if change.light:
            return "light"
        if self._reference_pixels is not None:
            wanted = not identical(frame, self._reference_pixels)
        if wanted:
            return "change"
        return "max_hold" if self._held_for(at_ns) >= 1 else "held"

    def _held_for(self, at_ns: int) -> float:
        """How long the reference has stood, as a share of `max_hold_s`."""
        return (at_ns - self._reference_at_ns) / (self.config.max_hold_s * 1e9)


class _ErrorBudget:
    """From change to predicted error, and the threshold that spends the budget; all errors over the model's variance."""

    def __init__(self, config: GateConfig, gain: float) -> None:
        self._config = config
        self._encoded = _Ratio(gain)
        self._audited = _Ratio(gain)
        self._ratio = _START_RATIO
        self._held = self._audits = self._frames = 0
        self._next_audit = config.audit_first
        self._draw = 1
        self.mean_error = 0.0

    def predict(self, score: float) -> float:
        return self._audited.value(self._encoded.value()) * score

    def wants(self, score: float, budget: float) -> bool:
        """Whether a frame of this `score` is to be encoded; moves the threshold by what the frame spends of `budget`."""
        error = self.predict(score)
        wanted = score > 0 and error > self._ratio * budget
        spent = 0.0 if wanted else error
        self._frames += 1
        self.mean_error += max(1 / self._frames, 1 / MEMORY_FRAMES) * (spent - self.mean_error)
        if budget > 0:
            step = _RATIO_RATE * (1 - min(spent / budget, _MAX_DEBT))
            low, high = _RATIO_RANGE
            self._ratio = min(max(self._ratio * math.exp(step), low), high)
        return wanted

    def audit_due(self) -> bool:
        """Counts one frame that would be held; True when it is to be encoded to see what holding it would have cost.

        The interval is drawn around its mean from a small generator, so that no rhythm of the scene can hide from it.
        """
        self._held += 1
        if self._held < self._next_audit:
            return False
        self._draw = (self._draw * 1_103_515_245 + 12_345) % 2**31
        mean = min(self._config.audit_first + self._audits, self._config.audit_every)
        self._next_audit = self._held + max(1, round(mean * (0.5 + self._draw / 2**31)))
        self._audits += 1
        return True

    def observe(self, decision: Decision, error: float) -> None:
        """What holding a frame that was encoded would have cost: of an audit the truth, of another a first idea."""
        if decision.reason == "audit":
            self._audited.add(decision.change.score, error)
        elif decision.reason == "change":
            self._encoded.add(decision.change.score, error)


class _Ratio:
    """Running ratio of error to score. It starts at a prior, which counts for `_PRIOR_WEIGHT` grey levels of score."""

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._error = self._score = 0.0

    def value(self, prior: float | None = None) -> float:
        weight = self._prior if prior is None else prior
        return (weight * _PRIOR_WEIGHT + self._error) / (_PRIOR_WEIGHT + self._score)

    def add(self, score: float, error: float) -> None:
        self._error = self._error * _FORGET + error
        self._score = self._score * _FORGET + score
