"""How far a camera's vectors are from those of full passes, as audits measured it, and what follows for its gates.

FVU = mean |z' - z|^2 / max(mean |z - mean|^2, 0.01 V), z the full pass of an audited frame, z' the vector that stood for
it, V the model's variance over many scenes. The gates' thresholds are scaled until the upper bound of that is on target.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

VARIANCE_FLOOR: Final = 0.01
_MEMORY: Final = 512  # audits
_FAULT_AUDITS: Final = 8
_FAULT_TIMES: Final = 4.0
_EARLY_AUDITS: Final = 12
_AUDITS: Final = 48
_SURE_Z: Final = 1.64  # one in twenty
_LIKELY_Z: Final = 0.84  # one in five
_TIGHTEN: Final = 0.7
_MOST_LOOSER: Final = 1.15
_AIM: Final = 0.9  # of the target, for the upper bound
_SMALLEST: Final = 1e-9
_SCALE_RANGE: Final = (0.1, 2.0)

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What is known of a camera's vectors. `fvu`, `fvu_upper`, `cos_p5` are None before the first audit."""

    fvu: float | None = None
    fvu_upper: float | None = None
    """Above the true one in four of five cases."""
    cos_p5: float | None = None
    """Cosine to the full pass that 95 % of the audited frames exceed, of the last 512."""
    audited: int = 0
    coverage: float = 1.0
    """Audited over drawn, of the frames for which a vector stood."""
    scale: float = 1.0
    """Of the gates' thresholds: 1 as configured, smaller is more exact."""
    gates: Literal["on", "off"] = "on"
    """Off: the vectors were far from what they should be, so every frame gets a full pass until the camera is added anew."""


@dataclass(slots=True)
class Steering:
    """The scale of a camera's thresholds, from the errors since it was last set. Errors and target over the same variance."""

    target: float
    scale: float = 1.0
    off: bool = False
    _since: list[float] = field(default_factory=list)
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=_FAULT_AUDITS))

    def learn(self, error: float) -> None:
        """One more audited frame."""
        self._since.append(error)
        self._last.append(error)
        if self.off:
            return
        if len(self._last) == _FAULT_AUDITS and _bound(self._last, -_SURE_Z) > _FAULT_TIMES * self.target:
            self.off = True
        elif len(self._since) >= _EARLY_AUDITS and _bound(self._since, -_SURE_Z) > self.target:
            self._tighten()
        elif len(self._since) >= _AUDITS:
            self._settle(_bound(self._since, _LIKELY_Z))

    def _settle(self, upper: float) -> None:
        if upper > self.target:
            self._tighten()
            return
        looser = (_AIM * self.target / max(upper, _SMALLEST)) ** 0.5  # errors grow as the square of the scale
        self.scale = min(_SCALE_RANGE[1], self.scale * min(max(1.0, looser), _MOST_LOOSER))
        self._since.clear()

    def _tighten(self) -> None:
        self.off = self.scale <= _SCALE_RANGE[0]  # what the thresholds do not explain is a fault
        self.scale = max(_SCALE_RANGE[0], self.scale * _TIGHTEN)
        self._since.clear()


@dataclass(slots=True)
class Meter:
    """Running error, variance and cosines of one camera's audited frames."""

    model_variance: float
    steering: Steering
    audited: int = 0
    _mean: Vector | None = None
    _variance: float = 0.0
    _error: float = 0.0
    _errors: deque[float] = field(default_factory=lambda: deque(maxlen=_MEMORY))
    _cosines: deque[float] = field(default_factory=lambda: deque(maxlen=_MEMORY))

    def add(self, truth: Vector, stood: Vector) -> None:
        """(D,) float32 of a full pass, and what stood for that frame; neither normalised."""
        self.audited += 1
        rate = max(1 / self.audited, 1 / _MEMORY)
        if self._mean is None:
            self._mean = truth.copy()
        step = truth - self._mean
        self._mean = self._mean + np.float32(rate) * step
        self._variance = (1 - rate) * (self._variance + rate * float(step @ step))
        difference = stood - truth
        error = float(difference @ difference)
        self._error += rate * (error - self._error)
        self._errors.append(error)
        lengths = float(np.linalg.norm(truth) * np.linalg.norm(stood))
        self._cosines.append(float(truth @ stood) / lengths if lengths > 0 else 1.0)
        self.steering.learn(error / self._spread)

    def fidelity(self, coverage: float) -> Fidelity:
        """As of now."""
        steering = self.steering
        gates: Literal["on", "off"] = "off" if steering.off else "on"
        if not self.audited:
            return Fidelity(coverage=coverage, scale=steering.scale, gates=gates)
        return Fidelity(
            fvu=self._error / self._spread,
            fvu_upper=_bound(self._errors, _LIKELY_Z) / self._spread,
            cos_p5=float(np.quantile(self._cosines, 0.05)),
            audited=self.audited,
            coverage=coverage,
            scale=steering.scale,
            gates=gates,
        )

    @property
    def _spread(self) -> float:
        return max(self._variance, VARIANCE_FLOOR * self.model_variance)


def _bound(errors: "deque[float] | list[float]", z: float) -> float:
    """Mean plus `z` of its standard errors."""
    values = np.asarray(errors)
    return float(values.mean() + z * values.std(ddof=min(1, values.size - 1)) / np.sqrt(values.size))
