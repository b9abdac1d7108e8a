"""The walks over pictures and vectors that the frame gate takes, each over memory once.

Written twice, as in `tokens/kernels.py`: plain OpenCV and numpy, and loops compiled by numba for the sizes that divide evenly.
Means of 4 x 4 pixels are the same to the last bit; what follows is so up to the rounding of float32.
"""

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from encoders_core.realtime.compiling import COMPILED, compiled, sealed

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

LOW_PASS_PX: Final = 4
CELL_PX: Final = 16
_SIDE: Final = CELL_PX // LOW_PASS_PX  # the loops below have it written out
_EACH_THIRD: Final = np.full(3, 1 / 3, np.float32)


def plain_reduce(frame: Pixels) -> Floats:
    """(H, W, 3) uint8 -> (H / 4, W / 4, 3) float32, the mean of each 4 x 4 pixels."""
    return _area(frame.astype(np.float32))


def plain_cells(small: Floats, reference: Floats) -> Floats:
    """Two reduced pictures (h, w, 3) -> (h / 4, w / 4) float32: mean absolute difference, grey levels."""
    return np.asarray(_area(cv2.absdiff(small, reference)) @ _EACH_THIRD, np.float32)


def plain_ranked(cells: Floats, rank: int) -> float:
    """The value that `rank` of the cells are not above."""
    return float(np.partition(cells, rank, axis=None)[rank])


def plain_excess(cells: Floats, floor: float, visible: float, far: float) -> tuple[float, int, int]:
    """What exceeds `floor`: its mean over all cells, and how many exceed it by more than `visible` and by more than `far`."""
    excess = np.maximum(cells - np.float32(floor), 0)
    mean = float(np.add.reduce(excess, axis=None) / excess.size)
    return mean, int(np.count_nonzero(excess > visible)), int(np.count_nonzero(excess > far))


def plain_distance(vector: Floats, other: Floats) -> float:
    """Two (D,) float32 -> |vector - other|^2."""
    difference = (vector - other).astype(np.float64)
    return float(difference @ difference)


def plain_follow(mean: Floats, vector: Floats, rate: float) -> float:
    """(D,) float32 `mean` moves by `rate` of its way to `vector`, in place; returns |vector - mean|^2 before."""
    step = vector - mean
    mean += np.float32(rate) * step
    return float(step @ step)


def reduce_frame(frame: Pixels) -> Floats:
    """See `plain_reduce`."""
    return _compiled_reduce(sealed(frame)) if COMPILED and _is_even(frame) else plain_reduce(frame)


def cell_differences(small: Floats, reference: Floats) -> Floats:
    """See `plain_cells`."""
    even = COMPILED and _is_even(small) and reference.flags.c_contiguous
    return _compiled_cells(small, reference) if even else plain_cells(small, reference)


def _is_even(picture: Floats | Pixels) -> bool:
    return picture.shape[0] % _SIDE == picture.shape[1] % _SIDE == 0 and picture.flags.c_contiguous


def _area(picture: NDArray[Any]) -> Floats:
    size = (max(1, picture.shape[1] // _SIDE), max(1, picture.shape[0] // _SIDE))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.float32)


def _reduce(frame: Pixels) -> Floats:
    height, width = frame.shape[0] // 4, frame.shape[1] // 4
    small = np.empty((height, width, 3), np.float32)
    rows = frame.reshape(height, 4, 12 * width)
    sums = np.empty(12 * width, np.uint16)
    for y in range(height):
        for x in range(12 * width):
            sums[x] = np.uint16(rows[y, 0, x]) + np.uint16(rows[y, 1, x]) + np.uint16(rows[y, 2, x]) + rows[y, 3, x]
        for x in range(width):
            for colour in range(3):
                at = 12 * x + colour
                total = np.uint32(sums[at]) + sums[at + 3] + sums[at + 6] + sums[at + 9]
                small[y, x, colour] = np.float32(total) * np.float32(0.0625)
    return small


def _cells(small: Floats, reference: Floats) -> Floats:
    height, width = small.shape[0] // 4, small.shape[1] // 4
    cells = np.empty((height, width), np.float32)
    new, old = small.reshape(height, 4, 12 * width), reference.reshape(height, 4, 12 * width)
    sums = np.empty(12 * width, np.float32)
    for y in range(height):
        for x in range(12 * width):
            upper = abs(new[y, 0, x] - old[y, 0, x]) + abs(new[y, 1, x] - old[y, 1, x])
            sums[x] = upper + abs(new[y, 2, x] - old[y, 2, x]) + abs(new[y, 3, x] - old[y, 3, x])
        for x in range(width):
            total = np.float32(0)
            for at in range(12 * x, 12 * x + 12):
                total += sums[at]
            cells[y, x] = total / np.float32(48)
    return cells


def _ranked(cells: Floats, rank: int) -> float:
    lowest = np.full(rank + 1, np.float32(np.inf))
    for y in range(cells.shape[0]):
        for x in range(cells.shape[1]):
            value, place = cells[y, x], rank
            if value < lowest[rank]:
                while place > 0 and lowest[place - 1] > value:
                    lowest[place] = lowest[place - 1]
                    place -= 1
                lowest[place] = value
    return float(lowest[rank])


def _excess(cells: Floats, floor: float, visible: float, far: float) -> tuple[float, int, int]:
    total, seen, large = 0.0, 0, 0
    for y in range(cells.shape[0]):
        for x in range(cells.shape[1]):
            over = max(cells[y, x] - np.float32(floor), np.float32(0))
            total += over
            seen += over > visible
            large += over > far
    return total / cells.size, seen, large


def _distance(vector: Floats, other: Floats) -> float:
    total = 0.0
    for at in range(vector.shape[0]):
        difference = np.float64(vector[at] - other[at])
        total += difference * difference
    return total


def _follow(mean: Floats, vector: Floats, rate: float) -> float:
    total = np.float32(0)
    for at in range(mean.shape[0]):
        step = vector[at] - mean[at]
        mean[at] += np.float32(rate) * step
        total += step * step
    return float(total)


_compiled_reduce = compiled(_reduce, plain_reduce)
_compiled_cells = compiled(_cells, plain_cells)
ranked = compiled(_ranked, plain_ranked)
excess = compiled(_excess, plain_excess)
distance = compiled(_distance, plain_distance)
follow = compiled(_follow, plain_follow)
