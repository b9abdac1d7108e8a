"""One camera on its way through a gated pass: which rows are computed, and which rows of attention are looked at."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from encoders_core.realtime.token_cache import GATES, AttentionWatch, Gate, TokenCache
from encoders_core.realtime.token_kernels import Floats, Indices

_SHORTEST: Final = np.float32(1e-20)
_SLOPE_RATE: Final = np.float32(0.3)
_MOVED: Final = np.float32(1e-3)  # of `moved`: below it a slope would be noise over nothing
_MAX_MOVED: Final = 1e4  # float32 sums stay exact enough


class Counts(NamedTuple):
    """Rows of one block that its QKV computed, its attention looked at, its projection and its feed-forward computed."""

    qkv: int
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

    def choose(self, block: int, gate: Gate, change: Floats, rows: Indices | None = None) -> Indices:
        """(M,) lengths of change of all rows, or of `rows` -> indices into them to compute; the most urgent if capped."""
        limit = self._limit(block, gate) if rows is None else self._limit(block, gate)[rows]
        chosen: Indices = (change > limit).nonzero()[0]
        if self.row_cap is None or len(chosen) <= self.row_cap:
            return chosen
        self.cut_off = True
        limit = limit[chosen]
        urgency = np.where(limit < 0, np.inf, change[chosen] / np.maximum(limit, _SHORTEST))
        return chosen[np.sort(np.argpartition(-urgency, self.row_cap)[: self.row_cap])]

    def look_at(self, block: int, changed: Indices) -> Indices:
        """Rows whose query changed -> all rows of attention to look at: these, and those that may have moved too far.

        How far is a prediction of the mean, so rows near their limit are looked at late: with random weights and an object
        that crosses the picture up to a fifth of all rows were over it, one or two in a hundred by more than twice.
        """
        watch = self.cache.blocks[block].watch
        if self.exact:
            return np.arange(len(watch.seen))
        grown = np.maximum(np.float32(watch.moved) - watch.seen, 0)
        moved = np.multiply(watch.slope, grown, out=np.zeros_like(grown), where=grown > 0)  # the slope may be infinite
        needed = watch.drift + moved > self._limit(block, "proj")
        needed[changed] = True
        chosen: Indices = needed.nonzero()[0]
        return chosen

    def _limit(self, block: int, gate: Gate) -> Floats:
        """(N,); negative where a row is let through whatever it is."""
        if self.cache.limits is None:
            raise AssertionError("a gated pass before the importance of rows was measured")
        limit: Floats = self.cache.limits[block, GATES.index(gate)]
        if self.forced is not None:
            limit = limit.copy()
            limit[self.forced] = -1.0
        return limit


def learn(watch: AttentionWatch, rows: Indices, change: Floats, chosen: Indices) -> None:
    """What looking at `rows` showed: they were `change` from their references, and those at `chosen` become references."""
    grown = np.maximum(np.float32(watch.moved) - watch.seen[rows], 0)
    found = np.maximum(change - watch.drift[rows], 0) / np.maximum(grown, _MOVED)
    before = watch.slope[rows]
    with np.errstate(invalid="ignore"):
        after = np.where(np.isinf(before), found, before + _SLOPE_RATE * (found - before))
    watch.slope[rows] = np.where(grown > _MOVED, after, before)
    watch.seen[rows] = watch.moved
    drift = change.copy()
    drift[chosen] = 0.0
    watch.drift[rows] = drift
    if watch.moved > _MAX_MOVED:
        watch.seen -= np.float32(watch.moved)
        watch.moved = 0.0
