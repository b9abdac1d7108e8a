"""One camera on its way through a gated pass: which rows are computed, and which rows of attention are looked at."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from encoders_core.realtime.tokens import turns
from encoders_core.realtime.tokens.cache import GATES, Gate, TokenCache
from encoders_core.realtime.tokens.plain import AttentionWatch, Floats, GateMemory, Indices, Norm, Rules

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

    Which rows are let through is the cache's limits' to say, and of the rows of attention, what is expected of them.
    `forced` are rows that every gate lets through: the rolling refresh. `exact`: attention is looked at for all rows, as a
    prediction of which ones move is none that one can rely on.
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
        if self.cache.limits is None:
            raise AssertionError("a gated pass before the importance of rows was measured")
        self.normed = np.empty_like(self.x)
        every = np.arange(len(self.x))
        forced = np.empty(0, np.int64) if self.forced is None else self.forced
        cap = -1 if self.row_cap is None else self.row_cap
        self._rules = [
            Rules(limits, ages, every, forced, cap)
            for limits, ages in zip(self.cache.limits, self.cache.ages, strict=True)
        ]

    # Each of these lays the rows that it lets through side by side in `into`, where a product takes them.

    def open_attention(self, block: int, norm: Norm, kv_into: Floats, query_into: Floats) -> tuple[Indices, Indices]:
        """The rows whose key and value are computed, and those whose query is."""
        memory = self.cache.blocks[block]
        opened, asked, moved, cut = turns.open_attention(
            self.x, norm, memory.kv, memory.query, self._rules[block], self.normed, kv_into, query_into
        )
        memory.watch.moved[0] += moved
        self.cut_off |= cut
        return opened, asked

    def open_gate(self, block: int, gate: Gate, norm: Norm, into: Floats) -> Indices:
        """The rows of a gate behind a norm."""
        memory: GateMemory = getattr(self.cache.blocks[block], gate)
        chosen, cut = turns.open_gate(self.x, norm, memory, GATES.index(gate), self._rules[block], self.normed, into)
        self.cut_off |= cut
        return chosen

    def look_at(self, block: int, asked: Indices) -> Indices:
        """Rows whose query changed -> all rows of attention to look at: these, and those that may have moved too far.

        How far is a prediction of the mean, so rows near their limit are looked at late: with random weights and an object
        that crosses the picture up to a fifth of all rows were over it, one or two in a hundred by more than twice.
        """
        rules = self._rules[block]
        if self.exact:
            return rules.every
        return turns.rows_to_look_at(self.cache.blocks[block].watch, asked, rules)

    def open_projection(self, block: int, rows: Indices, looked: Floats, into: Floats) -> Indices:
        """Of `rows`, whose attention is (M, D) `looked`, those that moved too far from what the projection saw of them."""
        memory = self.cache.blocks[block]
        chosen, cut = turns.open_projection(looked, rows, memory.proj, memory.watch, self._rules[block], into)
        self.cut_off |= cut
        if memory.watch.moved[0] > _MAX_MOVED:
            _start_over(memory.watch)
        return chosen


def _start_over(watch: AttentionWatch) -> None:
    np.subtract(watch.seen, np.float32(watch.moved[0]), out=watch.seen)
    watch.moved[0] = 0.0
