"""The small steps of a gated pass between its matrix products, each one pass over memory.

Written twice: plain numpy, and the same loops compiled by numba where it is installed. Eager tensor operations cost three
to five times as much here: a gate is nine of them, each a walk over (N, D), and a pass has three gates a block.
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


def plain_let_through(source: Floats, places: Indices, reference: Floats, indices: Indices, rows: Floats) -> None:
    """Rows `places` of `source` become rows `indices` of `reference`, and are laid side by side in `rows` (M, D)."""
    rows[:] = source[places]
    reference[indices] = rows


def plain_distances(rows: Floats, reference: Floats, indices: Indices) -> Floats:
    """(M, D) rows -> (M,) float32, how far each is from row `indices` of `reference` (N, D)."""
    return np.asarray(np.linalg.norm(rows - reference[indices], axis=1), np.float32)


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


settle = compiled(_settle, plain_settle)
measure = compiled(_measure, plain_measure)
let_through = compiled(_let_through, plain_let_through)
distances = compiled(_distances, plain_distances)
