"""Pictures of every kind that medicine has (DICOM, arrays of measured values, volumes, picture files), one by one."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from encoders_core.errors import InputError
from encoders_core.images import is_single, open_picture
from encoders_core.medical.dicom import DicomImage, Picture, is_dicom, load_dicom_image

Value = TypeVar("Value")


@dataclass(frozen=True, repr=False)
class Frame:
    """One picture of a batch, not yet decoded."""

    source: Any
    """A path, a DicomImage, or an array (H, W) or (H, W, 3)."""
    index: int
    """Which frame of it."""
    place: int
    """Which input of the batch: errors name this, for paths hold patients' names."""

    def load(self, opened: dict[Any, DicomImage], *, bgr: bool = False) -> Picture:
        """The picture; the file that was read last is kept in `opened`. Raises InputError."""

        def read() -> Picture:
            if isinstance(self.source, DicomImage):
                return self.source.frame(self.index)
            if isinstance(self.source, np.ndarray):
                return _of_array(self.source, bgr=bgr)
            if not is_dicom(self.source):
                return _of_array(_pil(_open(self.source)), bgr=False)
            if self.source not in opened:
                opened.clear()
                opened[self.source] = load_dicom_image(self.source)
            return opened[self.source].frame(self.index)

        return _placed(self.place, read)

    def content(self) -> list[Any]:
        """What a result depends on, for a cache of features; its place too, which the result tells."""
        return [self.place, self.index, self.source]

    def model_input(self) -> NDArray[np.float32]:
        """What it holds as (C, H, W), when it is an array of floats. Raises InputError when it is not."""
        if not isinstance(self.source, np.ndarray) or self.source.dtype.kind != "f":
            raise InputError(f"picture {self.place + 1}: value_range='normalized' expects floats, ready for the model")
        array = self.source if self.source.ndim == 3 else self.source[..., None]
        return np.ascontiguousarray(np.moveaxis(array, -1, 0), np.float32)

    def __repr__(self) -> str:
        return f"Frame(place={self.place}, index={self.index})"


def frames_of(images: Any) -> list[Frame]:
    """Whatever a user has -> its frames, in order.

    One picture or a list of them: a path to DICOM or to a picture file, a DicomImage, a dataset of pydicom, a PIL
    picture of any depth, an array (H, W) or (H, W, 3), a tensor (H, W) or (C, H, W) of one or three channels, and of
    either (N, H, W), the slices of one volume. With four dimensions they are batches. Numbers of every type are measured
    values. Raises InputError.
    """
    items = [images] if is_single_picture(images) else list(images)
    frames: list[Frame] = []
    for place, item in enumerate(items):
        if isinstance(item, Frame):
            frames.append(item)
            continue
        split = _placed(place, partial(_split, item))
        frames += [Frame(source, index, place) for source, index in split]
    return frames


def is_single_picture(images: Any) -> bool:
    """Whether it is one picture, or one file or volume of several frames, rather than a batch."""
    return _is_dataset(images) or is_single(images)


def _is_dataset(item: Any) -> bool:
    return any(base.__module__ == "pydicom.dataset" for base in type(item).__mro__)


def _split(item: Any) -> list[tuple[Any, int]]:
    if isinstance(item, str | os.PathLike):
        if not is_dicom(item):
            return [(item, 0)]
        return [(item, index) for index in range(load_dicom_image(item).frame_count)]
    if _is_dataset(item):
        item = DicomImage(item)
    if isinstance(item, DicomImage):
        return [(item, index) for index in range(item.frame_count)]
    if hasattr(item, "getbands"):
        return [(_pil(item), 0)]
    if isinstance(item, np.ndarray | Tensor):
        return [(array, index) for index, array in enumerate(_slices(item))]
    raise InputError(f"expected a path, a DICOM image, a PIL picture, an array or a tensor, got {type(item).__name__}")


def _slices(item: NDArray[Any] | Tensor) -> list[NDArray[Any]]:
    """Pictures (H, W) or (H, W, C) of an array or a tensor."""
    array = item.detach().numpy(force=True) if isinstance(item, Tensor) else item
    if isinstance(item, Tensor) and array.ndim == 3 and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4)):
        return [array]
    if array.ndim == 3:
        return list(array)
    raise InputError(f"expected a picture or a volume of two or three dimensions, got shape {tuple(item.shape)}")


def _of_array(array: NDArray[Any], *, bgr: bool) -> Picture:
    if 0 in array.shape or array.dtype.kind not in "uifb":
        raise InputError(f"expected a picture of numbers, got {array.dtype} of shape {array.shape}")
    if array.ndim == 2 or array.shape[-1] == 1:
        values = array.reshape(array.shape[:2]).astype(np.float32)
        _check_finite(values)
        return Picture(values)
    colour = array[..., 2::-1] if bgr else array[..., :3]
    full = 1.0 if array.dtype.kind in "fb" else float(np.iinfo(array.dtype).max)
    values = np.asarray(colour / np.float32(full), np.float32)
    _check_finite(values)
    if values.min() < 0 or values.max() > 1:
        raise InputError("expected colours from 0 to 1 in floats")
    return Picture(values)


def _check_finite(values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise InputError("expected finite values, got NaN or infinity: replace them first")


def _pil(picture: Any) -> NDArray[Any]:
    """Deep grey as it is, everything else as grey or RGB of 8 bits."""
    if picture.mode.startswith(("I", "F")):
        return np.asarray(picture)
    return np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))


def _open(path: str | os.PathLike[str]) -> Any:
    """A picture file; the message of an error leaves its name out."""
    name = os.fspath(path)
    if not Path(name).is_file():
        raise InputError("no such file")
    try:
        return open_picture(name)
    except InputError as exc:
        message = str(exc).replace(repr(name), "it").replace(name, "it")
    raise InputError(message)  # outside of `except`: the other error would travel along


def _placed(place: int, read: Callable[[], Value]) -> Value:
    """What `read` gives; an InputError says which input it is about, and one of the system leaves its path out."""
    try:
        return read()
    except InputError as exc:
        message = str(exc)
    except OSError as exc:
        message = f"it cannot be read ({type(exc).__name__})"
    raise InputError(f"picture {place + 1}: {message}")
