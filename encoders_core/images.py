"""Pictures of every kind a user has (paths, PIL, arrays, tensors, lists of them) as RGB tensors, one by one."""

import logging
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders_core.errors import InputError, OptionError

logger = logging.getLogger(__name__)

ChannelOrder = Literal["rgb", "bgr"]
ValueRange = Literal["auto", "unit", "normalized"]

_DEEP_MODES: Final = ("I", "F", "I;16", "I;16B", "I;16L")
_PILLOW: Final = "reading picture files needs Pillow: pip install 'camvec[edge]' (or: pip install pillow)"


def load_images(
    images: Any, *, channels: int = 3, channel_order: ChannelOrder = "rgb", value_range: ValueRange = "auto"
) -> list[Tensor]:
    """Pictures -> a list of (C, H, W): uint8 are pixels of 0 to 255, float32 is model input, already normalised.

    A list, a tensor (B, C, H, W) or an array (B, H, W, C) is a batch; anything else is one picture. Tensors put
    channels first, arrays last; the other order is understood where it is unmistakable. `value_range` says what floats
    are: "auto" and "normalized" take them as model input, "unit" as pixels from 0 to 1. `channel_order="bgr"` is for
    frames of OpenCV. Raises InputError for what is no picture, OptionError for an unknown word.
    """
    for name, value, known in (
        ("channel_order", channel_order, ChannelOrder),
        ("value_range", value_range, ValueRange),
    ):
        if value not in get_args(known):
            raise OptionError(f"{name}: expected one of {', '.join(get_args(known))}, got {value!r}")
    return [_finish(_load_one(item, channels), channels, channel_order, value_range) for item in as_batch(images)]


def is_single(images: Any) -> bool:
    """Whether `images` is one picture rather than a batch: a path, a PIL picture, an array of two or three dimensions."""
    if isinstance(images, Tensor | np.ndarray):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike) or not isinstance(images, Iterable) or hasattr(images, "getbands")


def as_batch(images: Any) -> list[Any]:
    """The pictures of a batch one by one, not yet loaded; one picture is a batch of one."""
    return [images] if is_single(images) else list(images)


def _load_one(item: Any, channels: int) -> Tensor:
    """One picture as (C, H, W) of the dtype it came in."""
    if isinstance(item, str | os.PathLike):
        return _pixels(open_picture(item), channels)
    if hasattr(item, "getbands"):
        return _pixels(item, channels)
    if isinstance(item, np.ndarray):
        array = np.ascontiguousarray(item)  # torch wants neither negative strides nor read-only memory
        return _channels_first(torch.from_numpy(array if array.flags.writeable else array.copy()), array=True)
    if isinstance(item, Tensor):
        return _channels_first(item, array=False)
    raise InputError(f"expected a path, a PIL picture, an array or a tensor, got {type(item).__name__}")


def open_picture(path: str | os.PathLike[str]) -> Any:
    """A picture file as a PIL picture, upright. Raises InputError where it is missing, damaged or none."""
    name = os.fspath(path)
    if "://" in name:
        raise InputError(f"expected a file, got the address {name.split('?')[0]!r}: download it first")
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415  optional: tensors need none
    except ImportError as exc:
        raise InputError(_PILLOW) from exc
    if not Path(name).is_file():
        raise InputError(f"no picture file {name!r}")
    try:
        with Image.open(name) as picture:
            return ImageOps.exif_transpose(picture)
    except (UnidentifiedImageError, OSError, SyntaxError) as exc:
        raise InputError(f"{name!r} is damaged or no picture: {exc}") from exc


def _pixels(picture: Any, channels: int) -> Tensor:
    """A PIL picture as uint8 (C, H, W); palettes, alpha and grey become what the model has channels for."""
    if picture.mode in _DEEP_MODES:
        raise InputError(
            f"expected 8 bits a channel, got a picture of mode {picture.mode!r}: choose a window of its values first "
            "and give it as uint8"
        )
    converted = picture.convert("L" if channels == 1 else "RGB")
    array: NDArray[np.uint8] = np.array(converted)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def _channels_first(picture: Tensor, *, array: bool) -> Tensor:
    """(H, W), (H, W, C) or (C, H, W) -> (C, H, W)."""
    if picture.ndim == 2:
        return picture[None]
    if picture.ndim != 3 or 0 in picture.shape:
        raise InputError(f"expected a picture of two or three dimensions, got shape {tuple(picture.shape)}")
    first, last = picture.shape[0] in (1, 3, 4), picture.shape[-1] in (1, 3, 4)
    if not first and not last:
        raise InputError(f"expected 1, 3 or 4 channels first or last, got shape {tuple(picture.shape)}")
    channels_last = last if array else not first
    return picture.permute(2, 0, 1) if channels_last else picture


def _finish(picture: Tensor, channels: int, order: ChannelOrder, value_range: ValueRange) -> Tensor:
    """Right dtype, right number of channels, RGB."""
    if picture.is_floating_point():
        picture = _pixels_of_unit(picture) if value_range == "unit" else _model_input(picture, value_range)
    elif picture.dtype == torch.bool:
        picture = picture.to(torch.uint8) * 255
    elif picture.dtype != torch.uint8:
        raise InputError(f"expected uint8 pixels or floats, got {picture.dtype}: bring its values to 0..255 first")
    if picture.dtype == torch.uint8:
        picture = _fit_channels(picture, channels)
    if order == "bgr" and picture.shape[0] == 3:
        picture = picture.flip(0)
    return picture


def _model_input(picture: Tensor, value_range: ValueRange) -> Tensor:
    if value_range == "auto" and picture.numel():
        low, high = (float(value) for value in picture.detach().aminmax())
        if low >= 0.0 and high <= 1.0:
            warn_of_unit_values()
    return picture.float()


@lru_cache
def warn_of_unit_values() -> None:
    """Once in a process: whoever means it would otherwise read it for every picture."""
    logger.warning(
        "float values from 0 to 1 were taken as model input, already normalised; if they are pixels from 0 to 1, "
        "say value_range='unit' (or 'normalized' to say that they are not). This is said once"
    )


def _pixels_of_unit(picture: Tensor) -> Tensor:
    low, high = (float(value) for value in picture.aminmax())
    if not (low >= 0.0 and high <= 1.0):  # also NaN
        raise InputError(f"value_range='unit' expects values from 0 to 1, got {low:.3g} to {high:.3g}")
    return (picture * 255).round().to(torch.uint8)


def _fit_channels(picture: Tensor, channels: int) -> Tensor:
    have = picture.shape[0]
    if have == 4 and channels == 3:
        return picture[:3]
    if have == 1 and channels == 3:
        return picture.expand(3, -1, -1)
    if have != channels:
        raise InputError(f"expected pictures of {channels} channels, got {have}")
    return picture
