"""Whether a picture still shows what an earlier one showed: luma means of a coarse grid, a few microseconds' worth."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from streaming.sources.planes import plane_view

GRID_WH: Final = (32, 18)
ROWS_STEP: Final = 8
"""Every eighth row is enough for a mean, and an eighth of the work."""
LIMIT: Final = 0.3
"""Levels, mean over the cells: about where the frame gate begins to encode (0.2 to 1 on our clips)."""
NOISE_FACTOR: Final = 1.5
MAX_NOISE: Final = 1.5
"""Levels: what differs by more, as while the camera moves, is no noise."""
_STEPS: Final = 8

Cells = NDArray[np.float32]
"""(18, 32) float32 luma levels, the mean of each cell."""


@dataclass
class Glance:
    """Compares with the picture at the last change, so that slow changes add up until they count."""

    strip_px: int = 0
    """Rows at the bottom that are no picture."""
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=_STEPS))
    """Median difference of a cell between pictures that follow each other, levels."""
    _reference: Cells | None = field(default=None, repr=False)
    _previous: Cells | None = field(default=None, repr=False)

    @property
    def noise(self) -> float:
        """What half of the cells differed by in the worst of the last steps: sensor noise, and keyframes that pulse."""
        return min(MAX_NOISE, max(self._steps, default=0.0))

    def changed(self, image: av.VideoFrame) -> bool:
        """Whether `image` shows something else than the reference; if so it becomes the reference."""
        return self.changed_cells(luma_cells(image, self.strip_px))

    def changed_cells(self, cells: Cells) -> bool:
        """The same, of cells."""
        if self._previous is not None:
            step = np.abs(cells - self._previous).ravel()
            self._steps.append(float(np.partition(step, step.size // 2)[step.size // 2]))
        self._previous = cells
        if self._reference is not None:
            beyond = np.abs(cells - self._reference) - np.float32(NOISE_FACTOR * self.noise)
            if float(np.maximum(beyond, 0).mean()) <= LIMIT:
                return False
        self._reference = cells
        return True


def luma_cells(image: av.VideoFrame, strip_px: int = 0) -> Cells:
    """A decoded 8-bit YUV picture -> its cells; the lowest `strip_px` rows are left out."""
    rows = max(1, image.height - strip_px)
    luma = plane_view(image.planes[0], (rows, image.width))[::ROWS_STEP]
    return np.asarray(cv2.resize(luma.astype(np.float32), GRID_WH, interpolation=cv2.INTER_AREA), np.float32)
