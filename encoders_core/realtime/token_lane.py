"""One camera on its way through a gated pass: which rows are computed, and which rows of attention are looked at."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from encoders_core.realtime import token_kernels as kernels
from encoders_core.realtime.token_cache import GATES, AttentionWatch, Gate, TokenCache
from encoders_core.realtime.token_kernels import AGE_POWER, Floats, Indices

_SHORTEST: Final = np.float32(1e-20)
_MAX_MOVED: Final = 1e4  # float32 sums stay exact enough


class Counts(NamedTuple):
    """Rows of one block: queries, keys and values computed, rows of attention looked at, projected, fed forward."""

    query: int
    kv: int
    attention: int
    proj: int
    mlp: int


@dataclass
class Lane:
    """A camera's cache and its tokens (N, D), which the pass changes; how many rows a gate may let through.

    `forced` are rows that every gate lets through: the rolling refresh. `exact`: attention is looked at for all rows, as a
    prediction of which ones move is none that one can rely on. A subclass may choose otherwise.
    """

    cache: TokenCache
    x: Floats
    row_cap: int | None = None
    forced: Indices | None = None
    exact: bool = False
    cut_off: bool = False
    """Rows were left that are too far from what they were computed from: the cap was full."""
    counts: list[Counts] = field(default_factory=list)
    normed: Floats = field(init=False, repr=False)
    """(N, D): room for the tokens as a gate sees them."""

    def __post_init__(self) -> None:
        self.normed = np.empty_like(self.x)
        self._every = np.arange(len(self.x))
        self._forced = np.empty(0, np.int64) if self.forced is None else self.forced

    def choose(self, block: int, gate: Gate, change: Floats, rows: Indices | None = None) -> Indices:
        """(M,) lengths of change of all rows, or of `rows` -> indices into them to compute; the most urgent if capped.

        A row may change by its limit over the fourth root of its age.
        """
        limit, age = self._of(block, gate)
        places = self._every if rows is None else rows
        chosen = kernels.select(change, limit, age, places, self._forced)
        if self.row_cap is not None and len(chosen) > self.row_cap:
            self.cut_off = True
            allowed = limit[places] / age[places] ** AGE_POWER
            allowed[np.isin(places, self._forced)] = -1.0
            chosen = _most_urgent(chosen, change, allowed, self.row_cap)
        age += 1
        age[places[chosen]] = 1
        return chosen

    def look_at(self, block: int, changed: Indices) -> Indices:
        """Rows whose query changed -> all rows of attention to look at: these, and those that may have moved too far.

        How far is a prediction of the mean, so rows near their limit are looked at late: with random weights and an object
        that crosses the picture up to a fifth of all rows were over it, one or two in a hundred by more than twice.
        """
        if self.exact:
            return self._every
        limit, age = self._of(block, "proj")
        watch = self.cache.blocks[block].watch
        return kernels.due(
            watch.moved, watch.seen, watch.drift, watch.slope, limit, age, np.concatenate((changed, self._forced))
        )

    def _of(self, block: int, gate: Gate) -> tuple[Floats, Floats]:
        """(N,) limits, negative where a row is let through whatever it is; (N,) ages."""
        if self.cache.limits is None:
            raise AssertionError("a gated pass before the importance of rows was measured")
        place = block, GATES.index(gate)
        return self.cache.limits[place], self.cache.ages[place]


def _most_urgent(chosen: Indices, change: Floats, limit: Floats, count: int) -> Indices:
    """Those `count` of `chosen` whose change is the most times what it may be, in order."""
    limit = limit[chosen]
    urgency = np.where(limit < 0, np.inf, change[chosen] / np.maximum(limit, _SHORTEST))
    return chosen[np.sort(np.argpartition(-urgency, count)[:count])]


def learn(watch: AttentionWatch, rows: Indices, change: Floats, chosen: Indices) -> None:
    """What looking at `rows` showed: they were `change` from their references, and those at `chosen` become references."""
    kernels.learn_slopes(watch.moved, watch.seen, watch.drift, watch.slope, rows, change)
    watch.drift[rows[chosen]] = 0.0
    if watch.moved > _MAX_MOVED:
        watch.seen -= np.float32(watch.moved)
        watch.moved = 0.0
