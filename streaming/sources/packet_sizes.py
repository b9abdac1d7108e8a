"""Whether a packet is larger than those of the same camera while nothing happens. Pure."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

WINDOW: Final = 64
READY: Final = 8
"""Quiet packets to know before any is called surprising or not."""
MARGIN: Final = 5.0
MAX_MARGIN: Final = 10.0
_STEP: Final = 1.25
_LEVEL_RATE: Final = 0.15
_LEVEL_SHARE: Final = 0.4
"""A rise that lasts is told from one that passes at this share of the margin."""
_SPREAD: Final = (0.08, 0.25)
"""Least and largest deviation, octaves: an encoder's own unrest; and what is still called quiet."""
_TO_SIGMA: Final = 1.4826


@dataclass
class PacketSizes:
    """Sizes of predicted pictures since the last change, in octaves; keyframes and disposable pictures stay out.

    A packet surprises when it, or the moving average up to it, lies above the median by so many deviations. The margin
    grows with false alarms, shrinks with true ones, and falls back when a change was missed.
    """

    margin: float = MARGIN
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _level: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether enough quiet packets are known."""
        return len(self._recent) >= READY

    def add(self, size: int) -> None:
        """Count a packet in."""
        octaves = math.log2(max(1, size))
        rate = _LEVEL_RATE if self._recent else 1.0
        self._level += rate * (octaves - self._level)
        self._recent.append(octaves)

    def surprising(self) -> bool:
        """Whether the packet that was added last is out of the ordinary."""
        if not self.ready:
            return False
        octaves = self._recent[-1]
        middle = _median(self._recent)
        deviation = _TO_SIGMA * _median(abs(each - middle) for each in self._recent)
        spread = min(max(deviation, _SPREAD[0]), _SPREAD[1])
        return max(octaves - middle, (self._level - middle) / _LEVEL_SHARE) > self.margin * spread

    def changed(self) -> None:
        """The picture changed: what was quiet before is no measure any more."""
        self._recent.clear()

    def told(self, *, truly: bool) -> None:
        """A change while packets waited: a surprise had announced it, or it came unannounced."""
        self.margin = max(MARGIN, self.margin / _STEP) if truly else MARGIN

    def false_alarm(self) -> None:
        """A surprise, and the picture had not changed."""
        self.margin = min(MAX_MARGIN, self.margin * _STEP)


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
