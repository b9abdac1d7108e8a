"""Pixels of medicine made ready for a model: window, noise, contrast, normalisation; depth is kept, nothing is rounded."""

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from encoders_core.errors import InputError, OptionError
from encoders_core.image_transform import resize_values
from encoders_core.medical.dicom import Picture
from encoders_core.medical.options import MedicalSettings, NormalizeMethod
from encoders_core.medical.windows import Floats, ToGrey, Window, full_range

_BILATERAL: Final = {"d": 5, "sigmaColor": 0.1, "sigmaSpace": 2.0}
"""Neighbours up to 2 pixels away count, those that differ by far more than a tenth of the range do not."""
_CLAHE: Final = {"clipLimit": 2.0, "tileGridSize": (8, 8)}


def to_unit(picture: Picture, *, windowed: bool, window: tuple[float, float] | None = None) -> Floats:
    """Grey (H, W) or colour (H, W, 3) from 0, black, to 1, white.

    Grey goes through `window` (center, width) where given, else, if `windowed`, through the picture's own; a picture
    without one, and every one if not `windowed`, is spread over the range of its own values. Raises InputError for a
    window on colours.
    """
    if picture.values.ndim == 3:
        if window is not None:
            raise InputError("a window is for grey pictures, and this one is in colour: leave it out")
        return picture.values
    to_grey: ToGrey = full_range
    if windowed:
        to_grey = Window(*window) if window is not None else picture.to_grey or full_range
    grey = to_grey(picture.values)
    return 1 - grey if picture.inverted else grey


def without_noise(unit: Floats) -> Floats:
    """Smooth within surfaces and sharp between them: a bilateral filter (Tomasi and Manduchi, 1998), of 5 x 5 pixels."""
    filtered: Floats = opencv("noise_reduction").bilateralFilter(np.ascontiguousarray(unit), **_BILATERAL)
    return filtered


def with_contrast(unit: Floats) -> Floats:
    """Contrast evened out from place to place, limited so that noise is not blown up.

    CLAHE (Zuiderveld, 1994) over 8 x 8 tiles, clip limit 2, in 256 levels as on a display; of colours the lightness.
    """
    cv2 = opencv("enhance_contrast")
    equalise = cv2.createCLAHE(**_CLAHE)
    if unit.ndim == 2:
        return np.asarray(equalise.apply(_levels(unit)) / np.float32(255), np.float32)
    lab = cv2.cvtColor(np.ascontiguousarray(unit), cv2.COLOR_RGB2LAB)
    lab[..., 0] = equalise.apply(_levels(lab[..., 0] / 100)) / np.float32(2.55)
    return np.asarray(np.clip(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), 0, 1), np.float32)


def normalised(unit: Floats, method: NormalizeMethod) -> Floats:
    """z_score: mean 0 and deviation 1 over the picture; min_max: its range becomes 0 to 1; none: as it is."""
    if method == "min_max":
        return full_range(unit)
    if method == "z_score":
        deviation = unit.std(dtype=np.float64)
        spread = deviation if deviation > 1e-6 else 1.0  # a picture of one value becomes zeros
        return np.asarray((unit - unit.mean(dtype=np.float64)) / spread, np.float32)
    return unit


def with_square_pixels(picture: Tensor, square_hw: tuple[int, int]) -> Tensor:
    """(C, H, W) float32 -> (C, h, w): the axis with the larger spacing is interpolated, so that nothing is lost."""
    if picture.shape[1:] == square_hw:
        return picture
    return resize_values(picture[None], square_hw, "bilinear")[0]


def ready(
    picture: Picture,
    settings: MedicalSettings,
    *,
    channels: int,
    enhance_contrast: bool,
    window: tuple[float, float] | None,
) -> Tensor:
    """(C, H, W) float32, `square_hw` of the picture: all steps, in the order in which they stand above."""
    unit = to_unit(picture, windowed=settings.window_level_adjustment, window=window)
    if settings.noise_reduction is not None:
        unit = without_noise(unit)
    if enhance_contrast:
        unit = with_contrast(unit)
    return with_square_pixels(_channels(normalised(unit, settings.normalize_method), channels), picture.square_hw)


def _channels(values: Floats, channels: int) -> Tensor:
    picture = torch.from_numpy(np.ascontiguousarray(values))
    if picture.ndim == 2:
        return picture.expand(channels, -1, -1)
    if channels == 1:
        return picture.mean(dim=2)[None]
    if channels != picture.shape[2]:
        raise InputError(f"expected pictures of {channels} channels, got {picture.shape[2]}")
    return picture.permute(2, 0, 1)


def _levels(unit: Floats) -> Any:
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)


def opencv(option: str) -> Any:
    """OpenCV. Raises OptionError that says which option needs it."""
    try:
        import cv2  # noqa: PLC0415  optional
    except ImportError as exc:
        raise OptionError(f"{option} needs OpenCV: pip install 'camvec[medical]'") from exc
    return cv2
