"""Attention of some rows over all keys and values of their camera.

Written twice: PyTorch's fused attention, and where numba is installed a loop of our own, which for the few rows of a gated
pass takes a third of the time: nothing is laid out anew, and queries stand side by side in a vector register.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it

from encoders_core.realtime.compiling import COMPILED, compiled
from encoders_core.realtime.tokens.plain import Floats, Indices

if COMPILED:
    from encoders_core.realtime.tokens.function_code import softmax
    from encoders_core.realtime.tokens.product_code import (
        MOST_ROWS,
        WIDE,
        score_narrow,
        score_wide,
        weigh_narrow,
        weigh_wide,
    )
    from encoders_core.realtime.tokens.vector_code import LANES

_LOG2_E = 1.4426950408889634


def attend(queries: Floats, rows: Indices, kv: Floats, heads: int) -> Floats:
    """(N, D) queries, (N, 2 D) keys and values -> (M, D): what `rows` of the queries take from all of them.

    The compiled loop equals PyTorch's attention but for rounding (1e-6 of the largest value).
    """
    if COMPILED and queries.shape[1] // heads % LANES == 0:
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
    asked = np.empty((width, WIDE), np.float32)
    scores = np.empty((count, WIDE), np.float32)
    inverse = np.empty((1, WIDE), np.float32)
    sums = np.empty((WIDE, width), np.float32)
    looked = np.empty((rows.shape[0], dim), np.float32)
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        keys, values = kv[:, columns], kv[:, dim:][:, columns]
        for start in range(0, rows.shape[0], WIDE):
            used = min(WIDE, rows.shape[0] - start)
            _ask(queries[:, columns], rows[start : start + used], asked)
            _score(keys, asked, used, scores)
            softmax(scores, 0, inverse)
            if used > LANES:
                softmax(scores, LANES, inverse)
            _weigh(scores.T, values, used, sums)
            for place in range(used):
                into, weight = looked[start + place, columns], inverse[0, place]
                for column in range(width):
                    into[column] = sums[place, column] * weight
    return looked


def _ask(queries: Floats, rows: Indices, asked: Floats) -> None:
    """(N, width) queries -> (width, WIDE): those of `rows` side by side, the last of them once more where there are fewer."""
    scale = np.float32(_LOG2_E / np.sqrt(queries.shape[1]))
    for lane in range(WIDE):
        query = queries[rows[min(lane, rows.shape[0] - 1)]]
        for column in range(query.shape[0]):
            asked[column, lane] = query[column] * scale


def _score(keys: Floats, asked: Floats, used: int, scores: Floats) -> None:
    """(N, width) times (width, WIDE), of which `used` matter -> (N, WIDE)."""
    count = keys.shape[0]
    for first in range(0, count, MOST_ROWS):
        size = min(MOST_ROWS, count - first)
        if used > LANES:
            score_wide(keys, first, size, asked, 0, scores, first, 0)
        else:
            score_narrow(keys, first, size, asked, 0, scores, first, 0)


def _weigh(weights: Floats, values: Floats, used: int, sums: Floats) -> None:
    """(WIDE, N), of which `used` matter, times (N, width) -> the same rows of (WIDE, width) sums."""
    width, tiles, done = values.shape[1], (used + MOST_ROWS - 1) // MOST_ROWS, 0
    for tile in range(tiles):
        size = -((done - used) // (tiles - tile))
        if width % WIDE:
            for column in range(0, width, LANES):
                weigh_narrow(weights, done, size, values, column, sums, done, column)
        else:
            for column in range(0, width, WIDE):
                weigh_wide(weights, done, size, values, column, sums, done, column)
        done += size


if COMPILED:
    _ask = compiled(_ask, _ask)
    _score = compiled(_score, _score)
    _weigh = compiled(_weigh, _weigh)
    _compiled_attend = compiled(_attend, plain_attend)
