"""Regions that a model looks at: from a map of attention to boxes in the picture."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders_core.image_transform import ImageTransform
from encoders_core.medical.pixels import opencv
from encoders_core.results import rollout_step

HW = tuple[int, int]
MOST_REGIONS = 8
"""The strongest ones are kept."""


class Region(NamedTuple):
    """A box in the picture, edges in its pixels, and the share of all attention that falls into the region."""

    left: float
    top: float
    right: float
    bottom: float
    score: float


class Rollout(list[Tensor]):
    """Takes the attention of layer after layer, (B, heads, N, N), and keeps its rollout, (B, N, N), see `attention_rollout`.

    The weights themselves are kept with `keep` alone: of a picture at twice the size they take hundreds of megabytes.
    """

    def __init__(self, *, keep: bool) -> None:
        super().__init__()
        self._keep, self.rollout = keep, torch.empty(0)

    def append(self, weights: Tensor) -> None:
        """One more layer."""
        step = rollout_step(weights.float())
        self.rollout = step @ self.rollout if self.rollout.numel() else step
        if self._keep:
            super().append(weights)


def region_tensors(
    attention: Tensor, patch: int, transform: ImageTransform, sizes: Sequence[tuple[HW, HW]]
) -> tuple[Tensor, Tensor]:
    """Maps (B, h, w) -> boxes (B, R, 4) in pixels of the pictures and scores (B, R).

    `sizes`: of each picture, and what it was with square pixels, as `transform` saw it.
    """
    boxes, scores = torch.zeros(len(sizes), MOST_REGIONS, 4), torch.zeros(len(sizes), MOST_REGIONS)
    for row, (found, (own, seen)) in enumerate(zip(map(find_regions, attention), sizes, strict=True)):
        across, down = own[1] / seen[1], own[0] / seen[0]
        squares = [(to_picture(region[:4], patch, transform, seen), region[4]) for region in found]
        placed = [((x0 * across, y0 * down, x1 * across, y1 * down), score) for (x0, y0, x1, y1), score in squares]
        inside = [(box, score) for box, score in placed if box[0] < box[2] and box[1] < box[3]]  # not in the padding
        for place, (box, score) in enumerate(inside):
            boxes[row, place], scores[row, place] = torch.tensor(box), score
    return boxes, scores


def find_regions(attention: Tensor) -> list[tuple[int, int, int, int, float]]:
    """A map (h, w) that sums to 1 -> boxes (left, top, right, bottom) in cells, and their share, strongest first.

    A region is a connected piece (also over corners) of the cells above Otsu's threshold (1979), which parts the map
    into the two classes that vary least inside. A map of one value has none.
    """
    values = attention.detach().numpy(force=True).astype(np.float64)
    threshold = otsu(values)
    if threshold is None:
        return []
    count, labels = opencv("region_of_interest_detection").connectedComponents((values > threshold).astype(np.uint8))
    found = []
    for label in range(1, count):
        rows, columns = np.nonzero(labels == label)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        found.append((*box, float(values[labels == label].sum())))
    return sorted(found, key=lambda region: -region[4])[:MOST_REGIONS]


def otsu(values: NDArray[np.float64]) -> float | None:
    """The value that parts `values` best: between the classes above and below it the variance is largest."""
    ordered = np.sort(values, axis=None)
    count = len(ordered)
    if ordered[-1] - ordered[0] <= 1e-9 * abs(ordered[-1]):
        return None
    below = np.arange(1, count)
    sums = np.cumsum(ordered)
    means_below, means_above = sums[:-1] / below, (sums[-1] - sums[:-1]) / (count - below)
    between = below * (count - below) * (means_above - means_below) ** 2
    return float(ordered[int(between.argmax())])


def to_picture(
    box: tuple[int, int, int, int], patch: int, transform: ImageTransform, hw: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A box in patches of what `transform` made of a picture of size `hw` -> the box in that picture's pixels."""
    (down, top), (across, left) = transform.origin(hw)

    def inside(value: float, scale: float, start: float, limit: int) -> float:
        return min(max((value * patch + start) * scale, 0.0), float(limit))

    return (
        inside(box[0], across, left, hw[1]),
        inside(box[1], down, top, hw[0]),
        inside(box[2], across, left, hw[1]),
        inside(box[3], down, top, hw[0]),
    )
