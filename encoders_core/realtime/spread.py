"""How much a camera's vectors differ over time: what an error in them is judged by."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from encoders_core.realtime.change_kernels import follow

FLOOR: Final = 0.01
"""Of the model's variance over many scenes: an idle camera is not judged on its noise."""
MEMORY_FRAMES: Final = 20_000
_START_FRAMES: Final = 50


class Spread:
    """Running mean and variance of a camera's vectors, as a share of the model's variance over many scenes.

    The variance is never below FLOOR, and not below `start` in the first 50 frames.
    """

    def __init__(self, model_variance: float, *, start: float = FLOOR) -> None:
        self._model_variance, self._start = model_variance, start
        self._mean: NDArray[np.float32] | None = None
        self._variance = 0.0
        self._seen = 0

    @property
    def variance(self) -> float:
        """Mean |z - mean|^2 of the camera over that of the model."""
        return max(self._variance, self._start if self._seen < _START_FRAMES else FLOOR)

    def update(self, features: NDArray[np.float32]) -> None:
        """(D,) float32: the vector of one more frame, not normalised."""
        if self._mean is None:
            self._mean = features.astype(np.float32)  # a copy: it is moved in place
        self._seen += 1
        rate = max(1 / self._seen, 1 / MEMORY_FRAMES)
        step = follow(self._mean, features, rate)
        self._variance = (1 - rate) * (self._variance + rate * step / self._model_variance)
