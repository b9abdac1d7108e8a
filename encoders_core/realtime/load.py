"""What encoding costs here and how much of it the cameras ask for: the arithmetic under the scheduler. Pure.

A pass takes the work of its kind (the median processor time of its rung and row cap) times how slow this machine is just
now. Work hardly changes; slowness jumps when other processes want the same cores, and is the same for all kinds, so one
distribution of it follows all passes and forgets within seconds.
"""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, NamedTuple

_WINDOW: Final = 64  # passes of a level, for its work
_RECENT: Final = 32  # passes of any level, for the slowness
_FORGET_NS: Final = 2e9
_LEAST_WEIGHT: Final = 0.05
"""Of an old pass against the newest: without it, a machine that encodes little would go by its last pass alone."""
_SMOOTHING: Final = 0.1
_TURN_SHARE: Final = 0.5
CAPACITY: Final = 0.9
"""Share of the time that may go into encoding; the rest is for the gate, the transport and noise."""
PACE_LOAD: Final = 2.0
"""The same, to be asked for under overload. A frame that had to wait for its turn is old when it comes, so that it pays to
have more than fits and to encode the newest; one that is superseded costs a tenth of one that is encoded."""


class Level(NamedTuple):
    """A kind of pass: the side of its picture, pixels, and how many rows it may compute anew."""

    rung: int
    row_cap: int


class Costs:
    """How long passes take, by level, nanoseconds.

    Plain numbers: numpy takes four times as long for 32 of them, as its code is not in the caches after a pass.
    """

    def __init__(self) -> None:
        self._work: dict[Level, deque[int]] = {}
        self._medians: dict[Level, int] = {}
        self._passes: deque[tuple[float, float]] = deque(maxlen=_RECENT)
        """The time that passes took over their work, and when they ended."""
        self._ranked: list[float] = []
        self._upto: list[float] = []
        """Slowness ascending, and the share of the weight up to and including it."""
        self._mean = 1.0

    def add(self, level: Level, cost_ns: int, *, now_ns: int, cpu_ns: int | None = None) -> None:
        """A pass took `cost_ns`, of which this thread computed for `cpu_ns` (None: all of it)."""
        work = self._work.setdefault(level, deque(maxlen=_WINDOW))
        work.append(max(1, cost_ns if cpu_ns is None else cpu_ns))
        ordered = sorted(work)
        self._medians[level] = ordered[(len(ordered) - 1) // 2]
        self._remember(now_ns, cost_ns / self._medians[level])

    def work_ns(self, level: Level) -> float:
        """Processor time of such a pass; of a kind that never ran, as its nearest neighbours suggest; 0: nothing is known."""
        found = self._medians.get(level)
        if found is not None:
            return found
        others = [(known, work) for known, work in self._medians.items() if known.rung == level.rung]
        larger = [pair for pair in others if pair[0].row_cap > level.row_cap]
        if larger:
            return min(larger, key=lambda pair: pair[0].row_cap)[1]
        if others:
            known, work = max(others, key=lambda pair: pair[0].row_cap)
            return work * level.row_cap / known.row_cap
        scaled = [work * (level.rung / known.rung) ** 2 for known, work in self._medians.items() if known.rung]
        return max(scaled, default=0.0)

    def quantile_ns(self, level: Level, share: float) -> float:
        """The time that this share of such passes keeps within."""
        if not self._ranked:
            return 0.0
        place = min(bisect_left(self._upto, share), len(self._ranked) - 1)
        return self.work_ns(level) * self._ranked[place]

    def share_within(self, level: Level, limit_ns: float, *, work_ns: float | None = None) -> float:
        """The share of such passes that take at most `limit_ns`; `work_ns`: as if that were their work."""
        work = self.work_ns(level) if work_ns is None else work_ns
        if work <= 0 or not self._ranked:
            return 1.0 if limit_ns >= 0 else 0.0
        place = bisect_right(self._ranked, limit_ns / work)
        return self._upto[place - 1] if place else 0.0

    def mean_ns(self, level: Level) -> float:
        """The running mean."""
        return self.work_ns(level) * self._mean

    def trust_newest(self, level: Level) -> None:
        """Forget all but the newest pass, of this level: what came before no longer holds."""
        self._work[level] = deque(list(self._work[level])[-1:], maxlen=_WINDOW)
        self._medians[level] = self._work[level][0]
        at_ns = self._passes[-1][1]
        self._passes.clear()
        self._remember(at_ns, 1.0)

    def _remember(self, at_ns: float, slowness: float) -> None:
        self._passes.append((slowness, at_ns))
        ranked = sorted(self._passes)
        weights = [max(math.exp((ended_ns - at_ns) / _FORGET_NS), _LEAST_WEIGHT) for _, ended_ns in ranked]
        total = sum(weights)
        self._ranked = [slow for slow, _ in ranked]
        self._upto = [reached / total for reached in accumulate(weights)]
        self._mean = sum(slow * weight for slow, weight in zip(self._ranked, weights, strict=True)) / total


@dataclass(slots=True)
class Demand:
    """How often frames of a camera come, how many the gate lets pass, and the rows that those want; smoothed."""

    last_ns: int | None = None
    interval_ns: float = 0.0
    passing: float = 1.0
    wants: dict[Level, float] = field(default_factory=dict)
    """Share of the passing frames by the level that they want."""

    def arrived(self, now_ns: int, wanted: Level | None) -> None:
        """One more frame; the level that it wants, None for one that is held."""
        self.passing += _SMOOTHING * ((wanted is not None) - self.passing)
        if wanted is not None:
            for level in {*self.wants, wanted}:
                share = self.wants.get(level, 0.0 if self.wants else 1.0)
                self.wants[level] = share + _SMOOTHING * ((level == wanted) - share)
        if self.last_ns is not None:
            interval = now_ns - self.last_ns
            rate = _SMOOTHING if self.interval_ns else 1.0
            self.interval_ns += rate * (interval - self.interval_ns)
        self.last_ns = now_ns

    def load(self, cost_ns: Callable[[Level], float]) -> float:
        """The share of one processor that encoding all passing frames would take."""
        if self.interval_ns <= 0:
            return 0.0
        return self.passing * sum(share * cost_ns(level) for level, share in self.wants.items()) / self.interval_ns

    def due_in_ns(self, now_ns: int) -> float:
        """How long until its next frame should come; 0 while it is a little late, infinite when it seems to have stopped."""
        if self.last_ns is None or self.interval_ns <= 0:
            return math.inf
        left = self.last_ns + self.interval_ns - now_ns
        return max(0.0, left) if left > -_TURN_SHARE * self.interval_ns else math.inf


def fair_shares(loads: Mapping[str, float], weights: Mapping[str, float], capacity: float) -> dict[str, float]:
    """Divide `capacity` by weight; what a camera does not need goes to the others (max-min fairness)."""
    shares: dict[str, float] = {}
    left, weight_left = capacity, sum(weights[camera] for camera in loads)
    for camera in sorted(loads, key=lambda name: loads[name] / weights[name]):
        shares[camera] = min(loads[camera], left * weights[camera] / weight_left)
        left -= shares[camera]
        weight_left -= weights[camera]
    return shares


def bucket_of(buckets: Sequence[int], rows: int) -> int:
    """The smallest of ascending `buckets` that holds `rows`; the last when none does."""
    return next((bucket for bucket in buckets if bucket >= rows), buckets[-1])
