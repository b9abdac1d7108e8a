"""Preprocessing of pictures as each family does it: resize, crop or pad, scale and normalise; saved with the model."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor

from encoders_core.errors import InputError, OptionError
from encoders_core.preprocessing import InputSpec

Fit = Literal["squash", "crop", "letterbox"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "area"]

HALF: Final = (0.5, 0.5, 0.5)

PIL_RESAMPLE: Final[tuple[Interpolation | None, ...]] = ("nearest", "lanczos", "bilinear", "bicubic", "area", None)
"""Interpolation by Pillow's number, as `preprocessor_config.json` has it; 4, Pillow's box, is what it has nearest to
the area mean, and no more than near."""


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """uint8 pictures (C, H, W) of any sizes -> model input (B, C, h, w) float32.

    "squash" resizes to `size_hw`; "crop" resizes the short side to `resize_px` and cuts the centre; "letterbox" resizes
    the long side and pads with zeros. Then `(pixel * scale + offset - mean) / std`.
    """

    size_hw: tuple[int, int] = (224, 224)
    fit: Fit = "squash"
    resize_px: int | None = None
    """Side before the cut; None is the size itself."""
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    scale: float = 1 / 255
    offset: float = 0.0
    crop_rounding: Literal["floor", "half_even"] = "floor"
    """Where an odd margin falls: transformers rounds down, torchvision (timm, open_clip) to the even half."""

    def __post_init__(self) -> None:
        for name, known in (("fit", Fit), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(known):
                raise OptionError(f"{name}: expected one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        object.__setattr__(self, "size_hw", tuple(self.size_hw))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if min(self.size_hw) < 1 or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise OptionError(f"expected a positive size and one mean and positive std a channel, got {self}")

    def __call__(self, pictures: Sequence[Tensor]) -> Tensor:
        """uint8 pictures, each (C, H, W) -> (B, C, h, w) float32; those of one size are resized in one call."""
        if not pictures:
            return torch.empty(0, len(self.mean), *self.size_hw)
        sized: list[Tensor | None] = [None] * len(pictures)
        for indices in _by_shape(pictures):
            batch = self.resize(torch.stack([pictures[index] for index in indices]))
            for index, picture in zip(indices, batch, strict=True):
                sized[index] = picture
        return self.normalize(torch.stack([picture for picture in sized if picture is not None]))

    def model_input(self, pictures: Sequence[Tensor], *, enabled: bool, noun: str = "pictures") -> Tensor:
        """uint8 pictures through the transform and floats, which are model input already, -> (B, C, h, w) float32.

        Raises InputError for sizes that differ, and for uint8 where preprocessing is not `enabled`.
        """
        pixels = [picture.dtype == torch.uint8 for picture in pictures]
        if any(pixels) and not enabled:
            raise InputError(f"preprocessing is off: expected {noun} as normalised floats, got uint8 pixels")
        if all(pixels):
            return self(pictures)
        ready = [self([one])[0] if raw else one for one, raw in zip(pictures, pixels, strict=True)]
        if len(sizes := {tuple(picture.shape) for picture in ready}) > 1:
            raise InputError(f"expected {noun} of one size in a batch of model input, got {sorted(sizes)}")
        return torch.stack(ready)

    def resize(self, batch: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w): uint8 in whole levels, float32 as exact as it is. Raises InputError for others."""
        if batch.dtype not in (torch.uint8, torch.float32):
            raise InputError(f"expected uint8 pixels or float32 values, got {batch.dtype}")
        target = self._resized_hw((batch.shape[-2], batch.shape[-1]))
        resized = resize_pixels if batch.dtype == torch.uint8 else resize_values
        return _crop_or_pad(resized(batch, target, self.interpolation), self.size_hw, self.crop_rounding)

    def normalize(self, batch: Tensor) -> Tensor:
        """(B, C, h, w) uint8 -> float32 as the model was trained."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        if batch.shape[1] != mean.shape[1]:
            raise InputError(f"expected pictures of {mean.shape[1]} channels, got {batch.shape[1]}")
        return (batch.float() * self.scale + self.offset - mean) / std

    def origin(self, hw: tuple[int, int]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Where the result of `resize` came from: per axis (down, across) `scale, start`, old = (new + start) * scale."""
        resized = self._resized_hw(hw)
        starts = (_start(new - size, self.crop_rounding) for new, size in zip(resized, self.size_hw, strict=True))
        down, across = ((old / new, start) for old, new, start in zip(hw, resized, starts, strict=True))
        return down, across

    def _resized_hw(self, hw: tuple[int, int]) -> tuple[int, int]:
        if self.fit == "squash":
            return self.size_hw if self.resize_px is None else (self.resize_px, self.resize_px)
        if self.fit == "letterbox":
            factor = min(self.size_hw[0] / hw[0], self.size_hw[1] / hw[1])
            return max(1, round(hw[0] * factor)), max(1, round(hw[1] * factor))
        short = self.resize_px or max(self.size_hw)
        if hw[0] <= hw[1]:
            return short, int(short * hw[1] / hw[0])
        return int(short * hw[0] / hw[1]), short

    def input_spec(self) -> InputSpec:
        """The same wish for a camera pipeline, which delivers uint8 of `size_hw`. Raises OptionError where it cannot."""
        if self.offset or self.scale != 1 / 255 or len(self.mean) != 3 or self.interpolation in ("nearest", "lanczos"):
            raise OptionError(
                f"a camera cannot deliver {self}: expected RGB scaled by 1/255, area, bilinear or bicubic"
            )
        scaler: Any = self.interpolation
        red, green, blue = self.mean
        std_red, std_green, std_blue = self.std
        mean, std = (red, green, blue), (std_red, std_green, std_blue)
        return InputSpec(size_hw=self.size_hw, fit=self.fit, scaler=scaler, mean=mean, std=std)

    def to_config(self) -> dict[str, Any]:
        """Plain data for `preprocessor_config.json`, in the words of transformers where it has them."""
        height, width = self.size_hw
        short = {"shortest_edge": self.resize_px or max(self.size_hw)}
        config: dict[str, Any] = {
            "do_resize": True,
            "size": short if self.fit == "crop" else {"height": height, "width": width},
            "resample": PIL_RESAMPLE.index(self.interpolation),
            "do_center_crop": self.fit == "crop",
            "crop_size": {"height": height, "width": width},
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        return config | {"camvec": dataclasses.asdict(self)}


def resize_pixels(batch: Tensor, size_hw: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """(B, C, H, W) uint8 -> (B, C, h, w) uint8 with antialiasing, within one level of Pillow 13.

    Measured: bilinear always; bicubic is two off in 4 of ten million values (regular patterns: 3 of 100,000). "area" is the exact mean of the covered pixels, as OpenCV's INTER_AREA when it shrinks.
    """
    old_hw = (batch.shape[-2], batch.shape[-1])
    if old_hw == size_hw:
        return batch
    if interpolation == "nearest":
        return F.interpolate(batch, size=size_hw, mode="nearest-exact")
    if interpolation == "area":
        return resize_values(batch.float(), size_hw, interpolation).round().clamp(0, 255).to(torch.uint8)
    # Each pass rounds to whole levels, so their order shows. Pillow starts with the rows where that saves work.
    rows_first = size_hw[0] < old_hw[0] and old_hw[0] - size_hw[0] > 2 * (old_hw[1] - size_hw[1])
    half_way = (size_hw[0], old_hw[1]) if rows_first else (old_hw[0], size_hw[1])
    grows = size_hw[0] > old_hw[0] or size_hw[1] > old_hw[1]
    if grows or interpolation == "lanczos":  # torch's uint8 weights are too coarse for these: two levels off
        batch = _resize_exactly(_resize_exactly(batch.double(), half_way, interpolation), size_hw, interpolation)
        return batch.to(torch.uint8)
    if rows_first:
        batch = F.interpolate(batch, size=half_way, mode=interpolation, antialias=True)
    return F.interpolate(batch, size=size_hw, mode=interpolation, antialias=True)


def resize_values(batch: Tensor, size_hw: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """(B, C, H, W) float32 -> (B, C, h, w) float32 with antialiasing, not rounded."""
    if interpolation == "area":
        pairs = zip((batch.shape[-2], batch.shape[-1]), size_hw, strict=True)
        rows, columns = (_area_weights(old, new) for old, new in pairs)
        return rows @ batch @ columns.T
    if interpolation == "nearest":
        return F.interpolate(batch, size=size_hw, mode="nearest-exact")
    return F.interpolate(batch, size=size_hw, mode=interpolation, antialias=True)


def _resize_exactly(batch: Tensor, size_hw: tuple[int, int], interpolation: str) -> Tensor:
    resized = F.interpolate(batch, size=size_hw, mode=interpolation, antialias=True)
    return (resized + 0.5).floor().clamp(0, 255)


def _area_weights(old: int, new: int) -> Tensor:
    """(new, old): the share of each old pixel in each new one; rows sum to 1."""
    edges = torch.linspace(0, old, new + 1, dtype=torch.float64)
    pixels = torch.arange(old, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (covered.clamp(min=0) * new / old).float()


def _crop_or_pad(batch: Tensor, size_hw: tuple[int, int], rounding: str) -> Tensor:
    for axis, size in ((-2, size_hw[0]), (-1, size_hw[1])):
        margin = batch.shape[axis] - size
        start = _start(margin, rounding)
        if margin > 0:
            batch = batch.narrow(axis, start, size)
        elif margin < 0:
            padding = [0, 0, -start, start - margin] if axis == -2 else [-start, start - margin]
            batch = F.pad(batch, padding)
    return batch


def _start(margin: int, rounding: str) -> int:
    """Where the result begins in what is `margin` larger; below 0 where it is smaller and padded."""
    if margin < 0:
        return -(-margin // 2)
    return margin // 2 if rounding == "floor" else round(margin / 2)


def _by_shape(pictures: Sequence[Tensor]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        groups.setdefault(tuple(picture.shape), []).append(index)
    return list(groups.values())
