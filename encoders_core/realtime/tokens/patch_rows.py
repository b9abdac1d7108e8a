"""Frames as rows of normalised patches, which a patch embedding multiplies; and which of their patches have changed.

Written twice: with PyTorch and numpy, and as loops, one of which looks each pixel up in a table of what normalising makes of
it. Both give the same bits.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from encoders_core.models.layers import PatchEmbed
from encoders_core.preprocessing import InputSpec, normalise
from encoders_core.realtime.compiling import compiled, sealed
from encoders_core.realtime.tokens.plain import Floats, Indices

Pixels = NDArray[np.uint8]
_LEVELS = 256


def patch_rows(frame: Pixels, spec: InputSpec, side: int, patches: Indices | None = None) -> Floats:
    """(H, W, 3) uint8 as `spec` wants it but for its size -> (M, 3 side side) float32: each patch a row, channel by channel.

    All patches, or those counted row by row that `patches` names.
    """
    if patches is None:
        patches = np.arange(frame.shape[0] // side * (frame.shape[1] // side))
    return fold(sealed(frame), _table(spec.mean, spec.std), side, patches)


def changed_patches(frame: Pixels, before: Pixels, limits: Floats, forced: Indices, side: int) -> Indices:
    """(H, W, 3) uint8 -> the patches that are further from `before` than (N,) `limits`, and those `forced`; new in `before`.

    The distance is the root of all squared differences in grey levels; a negative limit is over in any case.
    """
    return renew(sealed(frame), before, limits, forced, side)


@lru_cache(maxsize=16)
def _table(mean: tuple[float, float, float], std: tuple[float, float, float]) -> Floats:
    """(3, 256): what normalising makes of each grey level."""
    levels = torch.arange(_LEVELS, dtype=torch.uint8).view(1, 1, _LEVELS, 1).expand(1, 1, _LEVELS, 3)
    table: Floats = normalise(levels, InputSpec((1, _LEVELS), mean=mean, std=std))[0, :, 0].numpy()
    return np.ascontiguousarray(table)


def plain_fold(frame: Pixels, table: Floats, side: int, patches: Indices) -> Floats:
    """(H, W, 3) uint8 and what (3, 256) each level of a channel stands for -> (M, 3 side side), `patches` of it."""
    pixels = torch.from_numpy(np.stack([table[channel, frame[..., channel]] for channel in range(3)]))
    rows: Floats = PatchEmbed(side, 3, 1).unfold(pixels[None])[0].numpy()
    return rows[patches]


def _fold(frame: Pixels, table: Floats, side: int, patches: Indices) -> Floats:
    wide = frame.shape[1] // side
    rows = np.empty((patches.shape[0], 3 * side * side), np.float32)
    for place in range(patches.shape[0]):
        row, top, left = rows[place], patches[place] // wide * side, patches[place] % wide * side
        for line in range(side):
            pixels = frame[top + line, left : left + side]
            for channel in range(3):
                start = (channel * side + line) * side
                for x in range(side):
                    row[start + x] = table[channel, pixels[x, channel]]
    return rows


def plain_renew(frame: Pixels, before: Pixels, limits: Floats, forced: Indices, side: int) -> Indices:
    """As `changed_patches`, of frames that lie row by row."""
    high, wide = frame.shape[0] // side, frame.shape[1] // side
    parts, known = (one.reshape(high, side, wide, side, 3).swapaxes(1, 2) for one in (frame, before))
    squares = np.square(parts.astype(np.int64) - known).sum(axis=(2, 3, 4)).reshape(-1)
    over = (np.sqrt(squares.astype(np.float32)) > limits) | np.isin(np.arange(len(limits)), forced)
    chosen = np.flatnonzero(over)
    known[chosen // wide, chosen % wide] = parts[chosen // wide, chosen % wide]
    return chosen


def _renew(frame: Pixels, before: Pixels, limits: Floats, forced: Indices, side: int) -> Indices:
    wide, length = frame.shape[1] // side, side * 3
    lines, known = frame.reshape(frame.shape[0], -1), before.reshape(before.shape[0], -1)
    due = np.zeros(limits.shape[0], np.bool_)
    for place in range(forced.shape[0]):
        due[forced[place]] = True
    chosen, count = np.empty(limits.shape[0], np.int64), 0
    for patch in range(limits.shape[0]):
        top, left, squares = patch // wide * side, patch % wide * length, np.int64(0)
        for line in range(top, top + side):
            now, then, part = lines[line, left : left + length], known[line, left : left + length], np.int32(0)
            for x in range(length):
                moved = np.int32(now[x]) - np.int32(then[x])
                part += moved * moved
            squares += part
        if due[patch] or np.sqrt(np.float32(squares)) > limits[patch]:
            for line in range(top, top + side):
                now, then = lines[line, left : left + length], known[line, left : left + length]
                for x in range(length):
                    then[x] = now[x]
            chosen[count] = patch
            count += 1
    return chosen[:count].copy()


fold = compiled(_fold, plain_fold)
renew = compiled(_renew, plain_renew)
