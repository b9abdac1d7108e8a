"""The small steps of a gated pass between its matrix products, each one pass over memory.

Written twice: plain numpy, and the same loops compiled by numba where it is installed. Eager tensor operations cost three
to five times as much here: a gate is nine of them, each a walk over (N, D), and a pass has four gates a block.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

try:
    import numba
except ImportError:
    numba = None  # type: ignore[assignment]

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

COMPILED: Final = numba is not None
"""Whether the compiled loops are used."""
AGE_POWER: Final = 0.25
"""A change may be as long as its limit over the age of its row to this power. A row that moves by itself all the time is
recomputed for one frame, one that was still for many; so what a row may cost falls with how long the last one served."""
_SLOPE_RATE: Final = np.float32(0.3)
_MOVED: Final = np.float32(1e-3)  # of `moved`: below it a slope would be noise over nothing


def plain_store(output: Floats, indices: Indices, rows: Floats) -> None:
    """(M, D) new `rows` go to their places in `output` (N, D), in place."""
    output[indices] = rows


def plain_settle(x: Floats, output: Floats, indices: Indices, rows: Floats) -> None:
    """(M, D) new `rows` go to their places in `output` (N, D), and `output` is added to `x` (N, D), in place."""
    output[indices] = rows
    x += output


def plain_measure(x: Floats, weight: Floats, bias: Floats, eps: float, reference: Floats, normed: Floats) -> Floats:  # noqa: PLR0917  compiled functions take no keywords
    """(N, D) -> (N,) float32, how far each row of layer-normalised `x`, left in `normed`, is from `reference`."""
    centred = x - x.mean(axis=1, keepdims=True)
    scale = 1.0 / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + np.float32(eps))
    normed[:] = centred * scale * weight + bias
    return np.asarray(np.linalg.norm(normed - reference, axis=1), np.float32)


def plain_measure_both(  # noqa: PLR0917  as above
    x: Floats, weight: Floats, bias: Floats, eps: float, first: Floats, second: Floats, normed: Floats
) -> Floats:
    """The same against two references -> (2, N)."""
    change = plain_measure(x, weight, bias, eps, first, normed)
    return np.stack((change, np.linalg.norm(normed - second, axis=1).astype(np.float32)))


def plain_select(change: Floats, limit: Floats, age: Floats, rows: Indices, forced: Indices) -> Indices:
    """(M,) lengths of change of `rows` -> indices into them: over what (N,) `limit` and `age` allow, or `forced`."""
    over = (limit[rows] < 0) | (change * age[rows] ** np.float32(AGE_POWER) > limit[rows]) | np.isin(rows, forced)
    return np.flatnonzero(over)


def plain_due(  # noqa: PLR0917  as above
    moved: float, seen: Floats, drift: Floats, slope: Floats, limit: Floats, age: Floats, forced: Indices
) -> Indices:
    """Of an `AttentionWatch`, (N,) each -> the rows that may be over what (N,) `limit` and `age` allow, and those `forced`."""
    grown = np.maximum(np.float32(moved) - seen, 0)
    expected = drift + np.multiply(slope, grown, out=np.zeros_like(grown), where=grown > 0)  # the slope may be infinite
    needed = (limit < 0) | (expected * age ** np.float32(AGE_POWER) > limit)
    needed[forced] = True
    return np.flatnonzero(needed)


def plain_learn_slopes(  # noqa: PLR0917  as above
    moved: float, seen: Floats, drift: Floats, slope: Floats, rows: Indices, change: Floats
) -> None:
    """Of an `AttentionWatch`, in place: `rows` were found (M,) `change` from their references."""
    grown = np.maximum(np.float32(moved) - seen[rows], 0)
    found = np.maximum(change - drift[rows], 0) / np.maximum(grown, _MOVED)
    before = slope[rows]
    with np.errstate(invalid="ignore"):
        after = np.where(np.isinf(before), found, before + _SLOPE_RATE * (found - before))
    slope[rows] = np.where(grown > _MOVED, after, before)
    seen[rows], drift[rows] = moved, change


def plain_let_through(source: Floats, places: Indices, reference: Floats, indices: Indices, rows: Floats) -> None:
    """Rows `places` of `source` become rows `indices` of `reference`, and are laid side by side in `rows` (M, D)."""
    rows[:] = source[places]
    reference[indices] = rows


def plain_distances(rows: Floats, reference: Floats, indices: Indices) -> Floats:
    """(M, D) rows -> (M,) float32, how far each is from row `indices` of `reference` (N, D)."""
    return np.asarray(np.linalg.norm(rows - reference[indices], axis=1), np.float32)


def _store(output: Floats, indices: Indices, rows: Floats) -> None:
    for place in range(indices.shape[0]):
        output[indices[place], :] = rows[place, :]


def _settle(x: Floats, output: Floats, indices: Indices, rows: Floats) -> None:
    for place in range(indices.shape[0]):
        output[indices[place], :] = rows[place, :]
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            x[row, column] += output[row, column]


def _measure(x: Floats, weight: Floats, bias: Floats, eps: float, reference: Floats, normed: Floats) -> Floats:  # noqa: PLR0917  as above
    count, dim = x.shape
    change = np.empty(count, np.float32)
    for row in range(count):
        total = np.float32(0)
        for column in range(dim):
            total += x[row, column]
        mean = total / np.float32(dim)
        total = np.float32(0)
        for column in range(dim):
            total += (x[row, column] - mean) * (x[row, column] - mean)
        scale = np.float32(1.0) / np.float32(np.sqrt(total / np.float32(dim) + np.float32(eps)))
        total = np.float32(0)
        for column in range(dim):
            value = (x[row, column] - mean) * scale * weight[column] + bias[column]
            normed[row, column] = value
            total += (value - reference[row, column]) * (value - reference[row, column])
        change[row] = np.sqrt(total)
    return change


def _measure_both(  # noqa: PLR0917  as above
    x: Floats, weight: Floats, bias: Floats, eps: float, first: Floats, second: Floats, normed: Floats
) -> Floats:
    count, dim = x.shape
    change = np.empty((2, count), np.float32)
    for row in range(count):
        total = np.float32(0)
        for column in range(dim):
            total += x[row, column]
        mean = total / np.float32(dim)
        total = np.float32(0)
        for column in range(dim):
            total += (x[row, column] - mean) * (x[row, column] - mean)
        scale = np.float32(1.0) / np.float32(np.sqrt(total / np.float32(dim) + np.float32(eps)))
        total, other = np.float32(0), np.float32(0)
        for column in range(dim):
            value = (x[row, column] - mean) * scale * weight[column] + bias[column]
            normed[row, column] = value
            total += (value - first[row, column]) * (value - first[row, column])
            other += (value - second[row, column]) * (value - second[row, column])
        change[0, row], change[1, row] = np.sqrt(total), np.sqrt(other)
    return change


def _select(change: Floats, limit: Floats, age: Floats, rows: Indices, forced: Indices) -> Indices:
    due = np.zeros(limit.shape[0], np.bool_)
    for place in range(forced.shape[0]):
        due[forced[place]] = True
    chosen, count = np.empty(change.shape[0], np.int64), 0
    for place in range(change.shape[0]):
        row = rows[place]
        if due[row] or limit[row] < 0 or change[place] * np.sqrt(np.sqrt(age[row])) > limit[row]:
            chosen[count] = place
            count += 1
    return chosen[:count].copy()


def _due(  # noqa: PLR0917  as above
    moved: float, seen: Floats, drift: Floats, slope: Floats, limit: Floats, age: Floats, forced: Indices
) -> Indices:
    needed = np.zeros(limit.shape[0], np.bool_)
    for place in range(forced.shape[0]):
        needed[forced[place]] = True
    chosen, count = np.empty(limit.shape[0], np.int64), 0
    for row in range(limit.shape[0]):
        expected, grown = drift[row], np.float32(moved) - seen[row]
        if grown > 0:
            expected += slope[row] * grown
        if needed[row] or limit[row] < 0 or expected * np.sqrt(np.sqrt(age[row])) > limit[row]:
            chosen[count] = row
            count += 1
    return chosen[:count].copy()


def _learn_slopes(  # noqa: PLR0917  as above
    moved: float, seen: Floats, drift: Floats, slope: Floats, rows: Indices, change: Floats
) -> None:
    for place in range(rows.shape[0]):
        row = rows[place]
        grown = max(np.float32(moved) - seen[row], np.float32(0))
        if grown > _MOVED:
            found = max(change[place] - drift[row], np.float32(0)) / grown
            slope[row] = found if np.isinf(slope[row]) else slope[row] + _SLOPE_RATE * (found - slope[row])
        seen[row], drift[row] = moved, change[place]


def _let_through(source: Floats, places: Indices, reference: Floats, indices: Indices, rows: Floats) -> None:
    for place in range(indices.shape[0]):
        rows[place, :] = source[places[place], :]
        reference[indices[place], :] = rows[place, :]


def _distances(rows: Floats, reference: Floats, indices: Indices) -> Floats:
    change = np.empty(indices.shape[0], np.float32)
    for place in range(indices.shape[0]):
        total = np.float32(0)
        for column in range(rows.shape[1]):
            value = rows[place, column] - reference[indices[place], column]
            total += value * value
        change[place] = np.sqrt(total)
    return change


def compiled(loops: FunctionT, plain: FunctionT) -> FunctionT:
    """`loops` compiled, its machine code kept on disk where that is possible; `plain` without numba.

    Sums may be taken in another order than written, which is what lets the compiler use vector registers.
    """
    if not COMPILED:
        return plain
    allowed = {"reassoc", "contract", "arcp", "nsz"}
    try:
        made: Any = numba.njit(cache=True, fastmath=allowed)(loops)
    except RuntimeError:  # nowhere to keep it: compiled anew in each process
        made = numba.njit(fastmath=allowed)(loops)
    compiled: FunctionT = made
    return compiled


store = compiled(_store, plain_store)
settle = compiled(_settle, plain_settle)
measure = compiled(_measure, plain_measure)
measure_both = compiled(_measure_both, plain_measure_both)
select = compiled(_select, plain_select)
due = compiled(_due, plain_due)
learn_slopes = compiled(_learn_slopes, plain_learn_slopes)
let_through = compiled(_let_through, plain_let_through)
distances = compiled(_distances, plain_distances)
