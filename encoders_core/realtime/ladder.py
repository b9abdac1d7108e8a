"""With how much of the model a frame is encoded: as much as it wants, or the most that its deadline allows.

Fewer rows first, then smaller pictures, then not at all. How sure one must be of the deadline depends on what the machine
can do: as sure as `_SURE` where that is to be had, else nearly as sure as a frame just come would be. A machine shared with
other processes has passes that take ten times as long as others, and with one quantile for all it would encode nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from encoders_core.realtime.load import Costs, Level

_SURE: Final = 0.98
_OWED: Final = 0.5
_DOUBT: Final = 5.0
"""Power: where .95 of the passes would be in time for a frame just come, .77 will do for one that has waited, of .8 .33."""
_HOPELESS: Final = 0.1
_STEP_UP: Final = 0.8
"""Share of the time that a larger picture may take to be tried again."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The levels of a model: `buckets` are its row caps at its own size, ascending; `rungs` its sizes, largest first."""

    buckets: tuple[int, ...] = (1,)
    rungs: tuple[int, ...] = (0,)

    @property
    def dense(self) -> Level:
        """The full pass."""
        return Level(self.rungs[0], self.buckets[-1])

    def steps(self, wants: Level, *, cap: int | None) -> Iterator[Level]:
        """From what a frame wants, downwards. `cap`: the most rows to begin with; None: its rows are not cut at all."""
        if cap is not None:
            for bucket in reversed(self.buckets):
                if bucket <= min(wants.row_cap, max(cap, self.buckets[0])):
                    yield Level(self.rungs[0], bucket)
        else:
            yield wants
        for rung in self.rungs[1:]:
            yield Level(rung, self.buckets[-1])


@dataclass(frozen=True, slots=True)
class Chance:
    """How a frame stands: the time left to its deadline, what it had when it came, its camera's present picture size."""

    left_ns: float
    fresh_ns: float
    rung: int
    owed: bool = False
    """Its camera has had less service than others."""


def choose(costs: Costs, steps: Sequence[Level], chance: Chance) -> Level | None:
    """The first of `steps` with which the deadline is sure enough to be met; None: it would be late at every one."""
    best = min(steps, key=lambda level: _work_ns(costs, level, chance.rung))
    hope = _within(costs, best, chance.left_ns, chance.rung)
    fresh = _within(costs, best, chance.fresh_ns, chance.rung)
    wanted = min(_SURE, fresh**_DOUBT, _OWED if chance.owed else 1.0)
    if hope < max(wanted, _HOPELESS):
        return None
    for level in steps:
        left_ns = chance.left_ns * (_STEP_UP if level.rung > chance.rung else 1.0)
        if _within(costs, level, left_ns, chance.rung) >= _SURE * hope:
            return level
    return best


def _within(costs: Costs, level: Level, limit_ns: float, rung: int) -> float:
    return costs.share_within(level, limit_ns, work_ns=_work_ns(costs, level, rung))


def _work_ns(costs: Costs, level: Level, rung: int) -> float:
    """Work at `level`; that of another picture size may have been measured in worse times, so the area bounds it, too."""
    work = costs.work_ns(level)
    if level.rung == rung or not rung:
        return work
    present = costs.work_ns(Level(rung, level.row_cap))
    return min(work, present * (level.rung / rung) ** 2) if present else work
