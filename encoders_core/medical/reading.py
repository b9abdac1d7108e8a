"""Frames read into model input, and what is remembered of each: where it came from and how large it was."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from encoders_core.errors import InputError, OptionError
from encoders_core.image_transform import ImageTransform
from encoders_core.images import ChannelOrder, ValueRange
from encoders_core.medical.dicom import DicomImage
from encoders_core.medical.options import MedicalSettings
from encoders_core.medical.pictures import Frame
from encoders_core.medical.pixels import ready
from encoders_core.medical.windows import Window


class Source(NamedTuple):
    """Where a row of model input came from."""

    picture: int
    frame: int
    size_hw: tuple[int, int]
    square_hw: tuple[int, int]
    """Its size with square pixels, which is what the transform saw."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How `encode` was asked to read."""

    channel_order: ChannelOrder = "rgb"
    value_range: ValueRange = "auto"
    enhance_contrast: bool = False
    window: tuple[float, float] | None = None

    def check(self, settings: MedicalSettings) -> None:
        """Raise OptionError for words that are unknown, or could have no effect."""
        if self.channel_order not in ("rgb", "bgr"):
            raise OptionError(f"channel_order: expected 'rgb' or 'bgr', got {self.channel_order!r}")
        if self.value_range not in ("auto", "normalized"):
            raise OptionError(
                f"value_range: expected 'auto' (measured values) or 'normalized' (model input), got {self.value_range!r}"
            )
        if self.value_range == "normalized" and (self.enhance_contrast or self.window is not None):
            raise OptionError("enhance_contrast and window have no effect on model input (value_range='normalized')")
        if self.window is not None:
            Window(*self.window)
            if not settings.window_level_adjustment:
                raise OptionError("window has no effect while window_level_adjustment is off")


def read_frames(
    frames: Sequence[Frame], reading: Reading, settings: MedicalSettings, transform: ImageTransform, channels: int
) -> tuple[Tensor, tuple[Source, ...]]:
    """(B, C, h, w) float32 as `transform` sizes them, and the sources. Raises InputError."""
    opened: dict[Any, DicomImage] = {}
    rows, sources = [], []
    for frame in frames:
        picture = frame.load(opened, bgr=reading.channel_order == "bgr")
        whole = ready(
            picture,
            settings,
            channels=channels,
            enhance_contrast=reading.enhance_contrast,
            window=reading.window,
        )
        resized = transform.resize(whole[None])
        if settings.normalize_method != "z_score":  # which takes the place of the model's own mean and deviation
            resized = dataclasses.replace(transform, scale=1.0, offset=0.0).normalize(resized)
        rows.append(resized[0])
        sources.append(Source(frame.place, frame.index, picture.size_hw, picture.square_hw))
    return torch.stack(rows) if rows else torch.empty(0, channels, *transform.size_hw), tuple(sources)


def read_model_input(frames: Sequence[Frame], reading: Reading) -> tuple[Tensor, tuple[Source, ...]]:
    """(B, C, h, w) float32 that needs no preprocessing, and the sources. Raises InputError for sizes that differ."""
    rows = [torch.from_numpy(frame.model_input()) for frame in frames]
    if len({row.shape for row in rows}) != 1:
        raise InputError(f"expected model input of one size, got {sorted({tuple(row.shape) for row in rows})}")
    x = torch.stack(rows)
    size_hw = (x.shape[2], x.shape[3])
    sources = tuple(Source(frame.place, frame.index, size_hw, size_hw) for frame in frames)
    return x.flip(1) if reading.channel_order == "bgr" else x, sources
