"""Frames as rows of normalised patches, which a patch embedding multiplies: one walk over memory in place of four.

Written twice: with PyTorch, and as a loop that looks each pixel up in a table of what normalising makes of it. Both give
the same bits.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from encoders_core.models.layers import PatchEmbed
from encoders_core.preprocessing import InputSpec, normalise
from encoders_core.realtime.compiling import compiled
from encoders_core.realtime.tokens.plain import Floats

Pixels = NDArray[np.uint8]
_LEVELS = 256


def patch_rows(frame: Pixels, spec: InputSpec, side: int) -> Floats:
    """(H, W, 3) uint8 as `spec` wants it but for its size -> (N, 3 side side) float32: each patch a row, channel by channel."""
    return fold(np.ascontiguousarray(frame), _table(spec.mean, spec.std), side)


@lru_cache(maxsize=16)
def _table(mean: tuple[float, float, float], std: tuple[float, float, float]) -> Floats:
    """(3, 256): what normalising makes of each grey level."""
    levels = torch.arange(_LEVELS, dtype=torch.uint8).view(1, 1, _LEVELS, 1).expand(1, 1, _LEVELS, 3)
    table: Floats = normalise(levels, InputSpec((1, _LEVELS), mean=mean, std=std))[0, :, 0].numpy()
    return np.ascontiguousarray(table)


def plain_fold(frame: Pixels, table: Floats, side: int) -> Floats:
    """(H, W, 3) uint8 and what (3, 256) each level of a channel stands for -> (N, 3 side side), N patches row by row."""
    pixels = torch.from_numpy(np.stack([table[channel, frame[..., channel]] for channel in range(3)]))
    rows: Floats = PatchEmbed(side, 3, 1).unfold(pixels[None])[0].numpy()
    return rows


def _fold(frame: Pixels, table: Floats, side: int) -> Floats:
    high, wide = frame.shape[0] // side, frame.shape[1] // side
    rows = np.empty((high * wide, 3 * side * side), np.float32)
    for line in range(high * side):
        for column in range(wide):
            row = rows[line // side * wide + column]
            for channel in range(3):
                start = (channel * side + line % side) * side
                for x in range(side):
                    row[start + x] = table[channel, frame[line, column * side + x, channel]]
    return rows


fold = compiled(_fold, plain_fold)
