"""Preprocessing as the checkpoints' own files say it: transformers, timm and open_clip; and each family's default."""

import dataclasses
import math
from typing import Any, Final

from encoders_core.errors import OptionError
from encoders_core.image_transform import PIL_RESAMPLE, Fit, ImageTransform, Interpolation

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

_CLIP: Final = ImageTransform(fit="crop", interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD)
_IMAGENET: Final = ImageTransform(
    fit="crop", resize_px=256, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD
)
_VIDEO_IMAGENET: Final = ImageTransform(fit="crop", mean=IMAGENET_MEAN, std=IMAGENET_STD)

DEFAULTS: Final[dict[str, ImageTransform]] = {
    "vit": ImageTransform(),
    "deit": _IMAGENET,
    "dinov2": _IMAGENET,
    "clip": _CLIP,
    "siglip": ImageTransform(interpolation="bicubic"),
    "videomae": _VIDEO_IMAGENET,
    "timesformer": _VIDEO_IMAGENET,
    "vivit": ImageTransform(fit="crop", resize_px=256, scale=1 / 127.5, offset=-1.0),
}
"""What a family's pictures go through when no file says it; a saved file wins."""


def default_transform(family: str, size_hw: tuple[int, int]) -> ImageTransform:
    """The preprocessing of `family` (a transformers model type, or the name of a layout) at another size.

    The share that a centre crop leaves stays the same.
    """
    words = {"open_clip": "clip", "CLIP": "clip", "SigLIP": "siglip", "DINOv2": "dinov2", "MAE's": "dinov2"}
    key = next((ours for word, ours in words.items() if word in family), family)
    key = key.removesuffix("_vision_model").removesuffix("_with_registers")
    default = DEFAULTS.get(key, DEFAULTS["vit"])
    resize_px = default.resize_px
    if resize_px is not None:
        resize_px = round(resize_px * max(size_hw) / max(default.size_hw))
    return dataclasses.replace(default, size_hw=size_hw, resize_px=resize_px)


def from_preprocessor_config(config: dict[str, Any], fallback: ImageTransform) -> ImageTransform:
    """A saved `preprocessor_config.json` (ours or of transformers); what it leaves out comes from `fallback`.

    Raises OptionError for a step that is not built.
    """
    if "camvec" in config:
        return ImageTransform(**config["camvec"])
    changes: dict[str, Any] = _sizes(config, fallback)
    if (number := config.get("resample")) is not None:
        changes["interpolation"] = _interpolation(number)
    if config.get("do_rescale") is False:
        changes["scale"] = 1.0
    elif (factor := config.get("rescale_factor")) is not None:
        changes["scale"] = float(factor)
    if config.get("offset"):
        changes["offset"] = -1.0
    if config.get("do_normalize") is False:
        changes |= {"mean": (0.0,) * len(fallback.mean), "std": (1.0,) * len(fallback.std)}
    else:
        changes |= {
            ours: config[theirs]
            for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
            if config.get(theirs)
        }
    return dataclasses.replace(fallback, **changes)


def _sizes(config: dict[str, Any], fallback: ImageTransform) -> dict[str, Any]:
    """`size`, `crop_size`, `do_resize`, `do_center_crop` -> size_hw, fit and resize_px."""
    size, crop = config.get("size"), config.get("crop_size")
    cuts = config.get("do_center_crop", fallback.fit == "crop")
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    crop_hw = (crop["height"], crop["width"]) if crop and cuts else None
    if isinstance(size, int):  # files of before 2023: one number is the short side where there is a cut
        size = {"shortest_edge": size} if cuts else {"height": size, "width": size}
    if not size:
        return {"size_hw": crop_hw, "resize_px": None} if crop_hw and config.get("do_resize") is not False else {}
    if "shortest_edge" in size:
        short = int(size["shortest_edge"])
        return {"fit": "crop", "size_hw": crop_hw or (short, short), "resize_px": short}
    if "height" not in size:
        raise OptionError(
            f"size {size} of the checkpoint's preprocessing is not supported: shortest_edge, or height and width"
        )
    height, width = int(size["height"]), int(size["width"])
    if crop_hw and crop_hw != (height, width):
        if height != width:
            raise OptionError(f"size {size} with crop_size {crop} of the checkpoint's preprocessing is not supported")
        return {"fit": "squash", "size_hw": crop_hw, "resize_px": height}
    return {"fit": "squash", "size_hw": (height, width), "resize_px": None}


def _interpolation(number: Any) -> Interpolation:
    found = PIL_RESAMPLE[number] if isinstance(number, int) and 0 <= number < len(PIL_RESAMPLE) else None
    if found is None or found == "area":  # Pillow's box is no area mean: it takes whole pixels
        raise OptionError(f"resample {number!r} of the checkpoint's preprocessing is not supported")
    return found


def from_timm(config: dict[str, Any], fallback: ImageTransform) -> ImageTransform:
    """The `pretrained_cfg` of timm: input_size, interpolation, crop_pct, crop_mode, mean, std."""
    height, width = (config.get("input_size") or [0, *fallback.size_hw])[-2:]
    share, mode = float(config.get("crop_pct") or 1.0), config.get("crop_mode") or "center"
    crops = mode != "squash" and "interpolation" in config and "crop_pct" in config
    changes: dict[str, Any] = {
        "size_hw": (height, width),
        "fit": "crop" if crops else "squash",
        "resize_px": math.floor(max(height, width) / share) if crops or share != 1.0 else None,
        "interpolation": config.get("interpolation") or fallback.interpolation,
        "mean": config.get("mean") or fallback.mean,
        "std": config.get("std") or fallback.std,
        "crop_rounding": "half_even",
    }
    return dataclasses.replace(fallback, **changes)


def from_open_clip(config: dict[str, Any], fallback: ImageTransform) -> ImageTransform:
    """The `preprocess_cfg` of open_clip: mean, std, interpolation, resize_mode (shortest / longest / squash), size."""
    modes: dict[str, Fit] = {"shortest": "crop", "longest": "letterbox", "squash": "squash"}
    size = config.get("size") or fallback.size_hw
    height, width = size if isinstance(size, list | tuple) else (size, size)
    changes: dict[str, Any] = {
        "size_hw": (height, width),
        "resize_px": None,
        "fit": modes[config.get("resize_mode") or "shortest"],
        "interpolation": config.get("interpolation") or "bicubic",
        "mean": config.get("mean") or CLIP_MEAN,
        "std": config.get("std") or CLIP_STD,
        "crop_rounding": "half_even",
    }
    return dataclasses.replace(fallback, **changes)
