"""What a model wants of a picture, and how uint8 RGB becomes its input tensor."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from encoders_core.errors import InputError, OptionError

Fit = Literal["squash", "crop", "letterbox"]


@dataclass(frozen=True)
class InputSpec:
    """The picture a model was trained on: RGB of `size_hw`, normalised as `(pixel / 255 - mean) / std` per channel.

    `fit` and `scaler` say how a picture of another shape becomes one of `size_hw`.
    """

    size_hw: tuple[int, int]
    fit: Fit = "squash"
    scaler: Literal["area", "bilinear", "bicubic"] = "area"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if min(self.size_hw) < 1:
            raise OptionError(f"size_hw: expected two positive numbers of pixels, got {self.size_hw}")
        if min(self.std) <= 0:
            raise OptionError(f"std: expected three positive numbers, got {self.std}")


def normalise(frames: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """(B, H, W, 3) uint8 RGB -> (B, 3, H, W) float32 as `spec` wants it; the memory stays in (B, H, W, 3) order.

    Raises InputError when shape or dtype is another one.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != (*spec.size_hw, 3):
        raise InputError(
            f"expected uint8 frames of shape (B, {spec.size_hw[0]}, {spec.size_hw[1]}, 3), "
            f"got {frames.dtype} of shape {tuple(frames.shape)}"
        )
    pixels, width = frames.contiguous().float(), spec.size_hw[1]
    # One subtraction and one division in pixel units: for (x - 127) / 128 both are exact in float32. A line at a time:
    # three numbers over and over are four times as slow.
    pixels.view(-1, 3 * width).sub_(_line(spec.mean, width)).div_(_line(spec.std, width))
    return pixels.permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _line(values: tuple[float, float, float], width: int) -> torch.Tensor:
    """One number for each channel, in grey levels -> (3 width,)."""
    return torch.tensor([255.0 * value for value in values]).repeat(width)
