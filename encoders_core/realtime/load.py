"""What encoding costs here and how much of it the cameras ask for: the arithmetic under the scheduler. Pure."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_WINDOW: Final = 64
_SMOOTHING: Final = 0.1
CAPACITY: Final = 0.9
"""Share of the time that may go into encoding; the rest is for the gate, the transport and noise."""


@dataclass(slots=True)
class Costs:
    """How long jobs took of late, by rung (input size in pixels), nanoseconds."""

    _recent: dict[int, deque[int]] = field(default_factory=dict)

    def add(self, rung: int, cost_ns: int) -> None:
        """A job at `rung` took `cost_ns`."""
        self._recent.setdefault(rung, deque(maxlen=_WINDOW)).append(cost_ns)

    def p50_ns(self, rung: int) -> int:
        """The running median; 0 when nothing has been measured."""
        return self._quantile_ns(rung, 0.5)

    def p95_ns(self, rung: int) -> int:
        """The running 95th percentile; 0 when nothing has been measured."""
        return self._quantile_ns(rung, 0.95)

    def _quantile_ns(self, rung: int, share: float) -> int:
        recent = sorted(self._recent.get(rung, ()))
        return recent[min(len(recent) - 1, int(share * len(recent)))] if recent else 0

    def mean_ns(self, rung: int) -> float:
        """The running mean; 0 when nothing has been measured."""
        recent = self._recent.get(rung, ())
        return sum(recent) / len(recent) if recent else 0.0

    def forget(self, rung: int) -> None:
        """Start anew: what was measured no longer holds."""
        self._recent.pop(rung, None)


@dataclass(slots=True)
class Demand:
    """How often frames of a camera come, and how many of them the gate lets pass; smoothed over about ten frames."""

    last_ns: int | None = None
    interval_ns: float = 0.0
    passing: float = 1.0

    def arrived(self, now_ns: int, *, passed: bool) -> None:
        """One more frame."""
        self.passing += _SMOOTHING * (passed - self.passing)
        if self.last_ns is not None:
            interval = now_ns - self.last_ns
            rate = _SMOOTHING if self.interval_ns else 1.0
            self.interval_ns += rate * (interval - self.interval_ns)
        self.last_ns = now_ns

    def load(self, cost_ns: float) -> float:
        """The share of one processor that encoding all passing frames would take."""
        return self.passing * cost_ns / self.interval_ns if self.interval_ns > 0 else 0.0


def fair_shares(loads: Mapping[str, float], weights: Mapping[str, float], capacity: float) -> dict[str, float]:
    """Divide `capacity` by weight; what a camera does not need goes to the others (max-min fairness)."""
    shares: dict[str, float] = {}
    left, weight_left = capacity, sum(weights[camera] for camera in loads)
    for camera in sorted(loads, key=lambda name: loads[name] / weights[name]):
        shares[camera] = min(loads[camera], left * weights[camera] / weight_left)
        left -= shares[camera]
        weight_left -= weights[camera]
    return shares
