"""Attention of some rows over all keys and values of their camera.

Written twice: PyTorch's fused attention, and where numba is installed a loop of our own, which for the few rows of a gated
pass takes a third of the time: nothing is laid out anew, and queries stand side by side in a vector register.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it

from encoders_core.realtime.token_kernels import COMPILED, compiled
from encoders_core.realtime.token_plain import Floats, Indices

if COMPILED:
    from encoders_core.realtime.vector_code import LANES, ROWS, narrow_product, softmax, wide_product

_LOG2_E = 1.4426950408889634


def attend(queries: Floats, rows: Indices, kv: Floats, heads: int) -> Floats:
    """(N, D) queries, (N, 2 D) keys and values -> (M, D): what `rows` of the queries take from all of them.

    The compiled loop equals PyTorch's attention but for rounding (1e-6 of the largest value).
    """
    if COMPILED and len(kv) >= ROWS and queries.shape[1] // heads % LANES == 0:
        looked: Floats = _compiled_attend(queries, rows, kv, heads)
        return looked
    return plain_attend(queries, rows, kv, heads)


def plain_attend(queries: Floats, rows: Indices, kv: Floats, heads: int) -> Floats:
    """The same by PyTorch."""
    split = (heads, queries.shape[1] // heads)
    k, v = torch.from_numpy(kv).view(-1, 2, *split).permute(1, 2, 0, 3)[:, None]
    q = torch.from_numpy(queries[rows]).view(1, -1, *split).transpose(1, 2)
    looked: Floats = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1).numpy()
    return looked


def _attend(queries: Floats, rows: Indices, kv: Floats, heads: int) -> Floats:
    count, stride = kv.shape
    dim = stride // 2
    width = dim // heads
    scale = np.float32(_LOG2_E / np.sqrt(width))
    asked = np.empty((width, LANES), np.float32)
    scores = np.empty((count, LANES), np.float32)
    sums = np.empty((LANES, width), np.float32)
    inverse = np.empty(LANES, np.float32)
    looked = np.empty((rows.shape[0], dim), np.float32)
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        keys, values = kv[:, columns], kv[:, dim:][:, columns]
        for start in range(0, rows.shape[0], LANES):
            for lane in range(LANES):  # the last row once more in lanes without one
                row = rows[min(start + lane, rows.shape[0] - 1)]
                for column in range(width):
                    asked[column, lane] = queries[row, head * width + column] * scale
            for first in range(0, count, ROWS):
                place = min(first, count - ROWS)
                narrow_product(keys[place : place + ROWS], asked, scores[place : place + ROWS])
            softmax(scores, inverse)
            used = min(LANES, rows.shape[0] - start)
            for lane in range(0, used, ROWS):
                _weigh(scores[:, lane : lane + ROWS].T, values, sums[lane : lane + ROWS])
            for lane in range(used):
                for column in range(width):
                    looked[start + lane, head * width + column] = sums[lane, column] * inverse[lane]
    return looked


def _weigh(weights: Floats, values: Floats, sums: Floats) -> None:
    """(ROWS, N) times (N, width) -> sums."""
    width = values.shape[1]
    if LANES > ROWS and width % (2 * LANES) == 0:  # a processor with room for so many sums
        for column in range(0, width, 2 * LANES):
            wide_product(weights, values[:, column:], sums[:, column:])
    else:
        for column in range(0, width, LANES):
            narrow_product(weights, values[:, column:], sums[:, column:])


if COMPILED:
    _weigh = compiled(_weigh, _weigh)
    _compiled_attend = compiled(_attend, plain_attend)
