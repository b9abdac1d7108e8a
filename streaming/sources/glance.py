"""Whether a picture still shows what an earlier one showed: luma means of a coarse grid, a few microseconds' worth."""

from dataclasses import dataclass, field
from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from streaming.sources.planes import plane_view

GRID_WH: Final = (64, 36)
ROWS_STEP: Final = 2
"""Every second row is enough for a mean, and half the memory to read."""
LEAST_LEVELS: Final = 2.5
NOISE_FACTOR: Final = 5.0
LEAST_CELLS: Final = 2
_NOISE_RATE: Final = 0.1

Cells = NDArray[np.float32]
"""(36, 64) float32 luma levels, the mean of each cell."""


@dataclass
class Glance:
    """Compares with the picture at the last change, so that slow changes add up until they count."""

    noise: float = 0.0
    """Median difference of a cell between pictures that follow each other, levels."""
    _reference: Cells | None = field(default=None, repr=False)
    _previous: Cells | None = field(default=None, repr=False)

    def changed(self, image: av.VideoFrame) -> bool:
        """Whether `image` shows something else than the reference; if so it becomes the reference."""
        return self.changed_cells(luma_cells(image))

    def changed_cells(self, cells: Cells) -> bool:
        """The same, of cells."""
        if self._previous is not None:
            step = float(np.median(np.abs(cells - self._previous)))
            self.noise += _NOISE_RATE * (step - self.noise)
        self._previous = cells
        if self._reference is not None:
            limit = max(LEAST_LEVELS, NOISE_FACTOR * self.noise)
            if int(np.count_nonzero(np.abs(cells - self._reference) > limit)) < LEAST_CELLS:
                return False
        self._reference = cells
        return True


def luma_cells(image: av.VideoFrame) -> Cells:
    """A decoded 8-bit YUV picture -> its cells."""
    luma = plane_view(image.planes[0], (image.height, image.width))[::ROWS_STEP]
    return np.asarray(cv2.resize(luma, GRID_WH, interpolation=cv2.INTER_AREA), np.float32)
