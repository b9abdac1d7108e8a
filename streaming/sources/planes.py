"""The planes of a decoded picture as arrays, without a copy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def plane_view(plane: Any, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """An av plane of 8-bit samples -> its top left (H, W) uint8 as a view, which keeps the frame's memory alive."""
    rows: NDArray[np.uint8] = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: size_hw[0], : size_hw[1]]
