"""The small steps of a gated pass in plain numpy: what their compiled twins in `kernels` must equal; what both take."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

AGE_POWER: Final = 0.25
"""A change may be as long as its limit over the age of its row to this power. A row that moves by itself all the time is
recomputed for one frame, one that was still for many; so what a row may cost falls with how long the last one served."""
SLOPE_RATE: Final = np.float32(0.3)
MOVED: Final = np.float32(1e-3)
"""Of `moved`: below it a slope would be noise over nothing."""
SHORTEST: Final = np.float32(1e-20)
"""Limit that stands in for none in a quotient."""


class GateMemory(NamedTuple):
    """One gate: `reference` (N, D) is the input of each row when it was last computed, `output` (N, D or 2 D) its result."""

    reference: Floats
    output: Floats


class AttentionWatch(NamedTuple):
    """Which rows of a block's attention have to be looked at, told from how they moved before.

    `moved`, (1,) float64, adds up the change of keys and values that the block lets through. Of each row, (N,): `seen` is
    `moved` when it was last computed, `drift` how far it then was from its reference, `slope` how much it moves for each
    unit of `moved`; infinite where nothing is known, so that it is looked at.
    """

    moved: NDArray[np.float64]
    seen: Floats
    drift: Floats
    slope: Floats

    @classmethod
    def of(cls, rows: int) -> "AttentionWatch":
        """Nothing known of any row."""
        seen, drift = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
        return cls(np.zeros(1), seen, drift, np.full(rows, np.inf, np.float32))

    def take(self, other: "AttentionWatch") -> None:
        """Know what `other` knows, in place."""
        self.moved[:], self.seen[:], self.drift[:], self.slope[:] = other


class Norm(NamedTuple):
    """A layer norm as the gates compute it: together with how far each row is from its reference."""

    weight: Floats
    bias: Floats
    eps: float


class Rules(NamedTuple):
    """What the gates of one block go by in a pass.

    (4, N) `limits`, negative where a row is let through whatever it is, and `ages`; `every` row's index, those that are
    `forced`, and how many a gate may let through, `cap`: -1 for all.
    """

    limits: Floats
    ages: Floats
    every: Indices
    forced: Indices
    cap: int


def copy(source: Floats, target: Floats) -> None:
    """(D,) -> (D,), in place."""
    target[:] = source


def store(output: Floats, indices: Indices, rows: Floats) -> None:
    """(M, D) new `rows` go to their places in `output` (N, D), in place."""
    output[indices] = rows


def settle(x: Floats, output: Floats, indices: Indices, rows: Floats) -> None:
    """(M, D) new `rows` go to their places in `output` (N, D), and `output` is added to `x` (N, D), in place."""
    output[indices] = rows
    x += output


def measure(x: Floats, norm: Norm, reference: Floats, normed: Floats) -> Floats:
    """(N, D) -> (N,) float32, how far each row of layer-normalised `x`, left in `normed`, is from `reference`."""
    centred = x - x.mean(axis=1, keepdims=True)
    scale = 1.0 / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + np.float32(norm.eps))
    normed[:] = centred * scale * norm.weight + norm.bias
    return np.asarray(np.linalg.norm(normed - reference, axis=1), np.float32)


def measure_both(x: Floats, norm: Norm, first: Floats, second: Floats, normed: Floats) -> Floats:
    """The same against two references -> (2, N)."""
    change = measure(x, norm, first, normed)
    return np.stack((change, np.linalg.norm(normed - second, axis=1).astype(np.float32)))


def select(change: Floats, limit: Floats, age: Floats, rows: Indices, forced: Indices) -> Indices:
    """(M,) lengths of change of `rows` -> indices into them: over what (N,) `limit` and `age` allow, or `forced`."""
    over = (limit[rows] < 0) | (change * age[rows] ** np.float32(AGE_POWER) > limit[rows]) | np.isin(rows, forced)
    return np.flatnonzero(over)


def due(watch: AttentionWatch, limit: Floats, age: Floats, asked: Indices, forced: Indices) -> Indices:
    """The rows that may be over what (N,) `limit` and `age` allow, those `asked` and those `forced`."""
    grown = np.maximum(np.float32(watch.moved[0]) - watch.seen, 0)
    # The slope may be infinite.
    expected = watch.drift + np.multiply(watch.slope, grown, out=np.zeros_like(grown), where=grown > 0)
    needed = (limit < 0) | (expected * age ** np.float32(AGE_POWER) > limit)
    needed[asked], needed[forced] = True, True
    return np.flatnonzero(needed)


def learn_slopes(watch: AttentionWatch, rows: Indices, change: Floats) -> None:
    """In place: `rows` were found (M,) `change` from their references."""
    moved = np.float32(watch.moved[0])
    grown = np.maximum(moved - watch.seen[rows], 0)
    found = np.maximum(change - watch.drift[rows], 0) / np.maximum(grown, MOVED)
    before = watch.slope[rows]
    with np.errstate(invalid="ignore"):
        after = np.where(np.isinf(before), found, before + SLOPE_RATE * (found - before))
    watch.slope[rows] = np.where(grown > MOVED, after, before)
    watch.seen[rows], watch.drift[rows] = moved, change


def let_through(source: Floats, places: Indices, reference: Floats, indices: Indices, rows: Floats) -> None:
    """Rows `places` of `source` become rows `indices` of `reference`, and are laid side by side in `rows` (M, D)."""
    rows[:] = source[places]
    reference[indices] = rows


def distances(rows: Floats, reference: Floats, indices: Indices) -> Floats:
    """(M, D) rows -> (M,) float32, how far each is from row `indices` of `reference` (N, D)."""
    return np.asarray(np.linalg.norm(rows - reference[indices], axis=1), np.float32)


def most_urgent(  # noqa: PLR0917  as above
    change: Floats, limit: Floats, age: Floats, rows: Indices, forced: Indices, chosen: Indices, count: int
) -> Indices:
    """Of `chosen`, as `select` gives them, those `count` that are the most times over what they may be, in order."""
    places = rows[chosen]
    urgency = change[chosen] * age[places] ** np.float32(AGE_POWER) / np.maximum(limit[places], SHORTEST)
    urgency[np.isin(places, forced) | (limit[places] < 0)] = np.inf
    return np.asarray(chosen[np.sort(np.argsort(-urgency, kind="stable")[:count])])


def grow_older(age: Floats, rows: Indices, chosen: Indices) -> None:
    """All rows of a gate by a pass, in place; `rows[chosen]` are young again."""
    age += 1
    age[rows[chosen]] = 1


def settled(watch: AttentionWatch, rows: Indices, chosen: Indices) -> Indices:
    """`rows[chosen]`, whose drift is nothing from now on."""
    watch.drift[rows[chosen]] = 0
    return rows[chosen]


def total(change: Floats, chosen: Indices) -> float:
    """How far the rows `chosen` have moved together."""
    return float(change[chosen].sum())
