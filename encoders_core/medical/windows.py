"""From what pixels measure to grey from 0 to 1: windows and look-up tables (DICOM PS3.3, C.11.1 and C.11.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from encoders_core.errors import OptionError

Floats = NDArray[np.float32]
ToGrey = Callable[[Floats], Floats]
"""Measured values, any shape -> 0 to 1."""
WindowFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True)
class Window:
    """The values from `center - width / 2` to `center + width / 2` spread over 0 to 1; what lies outside is black or white.

    "LINEAR" is DICOM's default, whose ends lie half a value inside; "SIGMOID" goes on softly outside.
    """

    center: float
    width: float
    function: WindowFunction = "LINEAR"

    def __post_init__(self) -> None:
        if self.function not in get_args(WindowFunction):
            raise OptionError(f"window function: expected one of {', '.join(get_args(WindowFunction))}")
        least = 1.0 if self.function == "LINEAR" else 0.0
        if not (np.isfinite(self.center) and np.isfinite(self.width)) or self.width < least or self.width == 0:
            raise OptionError(
                f"window: expected a finite center and a width of at least 1 (above 0 unless LINEAR), "
                f"got {self.center}, {self.width}"
            )

    def __call__(self, values: Floats) -> Floats:
        """Any shape -> the same, 0 to 1."""
        center, width = self.center, self.width
        if self.function == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -80, 80))), np.float32)
        if self.function == "LINEAR":
            center, width = center - 0.5, width - 1
        if width == 0:
            return (values > center).astype(np.float32)
        return np.asarray(np.clip((values - center) / width + 0.5, 0, 1), np.float32)


@dataclass(frozen=True, eq=False)
class Table:
    """A look-up table: `entries[0]` stands for `first` and all below it, the last one for all above."""

    first: int
    entries: Floats

    def __call__(self, values: Floats) -> Floats:
        """Any shape -> the entries."""
        places = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)
        found: Floats = self.entries[places]
        return found


def full_range(values: Floats) -> Floats:
    """The lowest value becomes 0, the highest 1; a picture of one value becomes 0."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros_like(values)
    return np.asarray((values - low) / (high - low), np.float32)
