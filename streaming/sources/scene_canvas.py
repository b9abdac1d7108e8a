"""Drawing in picture heights instead of pixels, antialiased to a sixteenth of one."""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
Point = tuple[float, float]

_SHIFT: Final = 4  # OpenCV's coordinates have this many binary places


class Canvas:
    """Shapes in picture heights on an (H, W, 3) uint8 RGB image; antialiased, so that slow motion is smooth."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.height, self.width = image.shape[:2]
        self.aspect = self.width / self.height

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        fixed = np.rint(np.asarray(points) * self.height * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(self.image, [fixed], colour, cv2.LINE_AA, _SHIFT)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """A filled upright rectangle."""
        self.polygon(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """A filled upright ellipse."""
        unit = self.height * (1 << _SHIFT)
        centre, axes = (round(x * unit), round(y * unit)), (max(1, round(rx * unit)), max(1, round(ry * unit)))
        cv2.ellipse(self.image, centre, axes, 0, 0, 360, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, lighter or darker by `factor`."""
    red, green, blue = (int(min(255.0, channel * factor)) for channel in colour)
    return red, green, blue
