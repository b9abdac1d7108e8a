"""An image checkpoint opened: whose it is, its tensors under native names, its configuration and preprocessing."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from encoders_core.errors import WeightsError
from encoders_core.image_transform import ImageTransform
from encoders_core.models.vit import VitConfig
from encoders_core.weights.files import Tensors, find_weights, read_json, read_tensors, write_tensors
from encoders_core.weights.layouts import detect
from encoders_core.weights.layouts_config import hf_vision_settings, open_clip_settings, timm_settings, vit_config
from encoders_core.weights.layouts_preprocessing import (
    default_transform,
    from_open_clip,
    from_preprocessor_config,
    from_timm,
)
from encoders_core.weights.layouts_vision import VISION_LAYOUTS

OWN: Final = "camvec ViT"
_META: Final = frozenset({"architecture", "pretrained_cfg", "trained", "note", "feature_variance"})


@dataclass(frozen=True)
class VisionCheckpoint:
    """What `open_vision` found."""

    source: str
    family: str
    config: VitConfig
    transform: ImageTransform
    tensors: Tensors
    trained: bool


def open_vision(path: Path, overrides: dict[str, Any]) -> VisionCheckpoint:
    """Read a model directory or a bare weights file; `overrides` are fields of VitConfig that the user says himself.

    Raises WeightsNotFoundError, WeightsError (damaged, foreign), OptionError (the activation is said nowhere).
    """
    directory, weights = (path, find_weights(path)) if path.is_dir() else (None, path)
    tensors, config = read_tensors(weights), _read(directory, "config.json")
    if config.get("architecture") == "vit":
        return _own(path, config, _read(directory, "preprocessor_config.json"), tensors, overrides)
    layout = detect(tensors, VISION_LAYOUTS, str(weights))
    native = layout.convert(tensors)
    open_clip = _read(directory, "open_clip_config.json")
    settings = layout.defaults | _settings(config, open_clip, native)
    found = vit_config(native, settings | overrides, source=str(weights))
    transform = _transform(directory, config, open_clip, layout.name, found)
    return VisionCheckpoint(str(path), layout.name, found, transform, native, trained=True)


def save_vision(
    directory: Path, config: VitConfig, transform: ImageTransform, tensors: Tensors, *, trained: bool
) -> None:
    """Write `config.json`, `preprocessor_config.json` and `model.safetensors`."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"architecture": "vit", **dataclasses.asdict(config), "trained": trained}
    (directory / "config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    preprocessing = json.dumps(transform.to_config(), indent=2)
    (directory / "preprocessor_config.json").write_text(preprocessing + "\n", "utf-8")
    write_tensors(tensors, directory / "model.safetensors")


def _own(
    path: Path, config: dict[str, Any], preprocessing: dict[str, Any], tensors: Tensors, overrides: dict[str, Any]
) -> VisionCheckpoint:
    known = {field.name for field in dataclasses.fields(VitConfig)}
    if unknown := config.keys() - known - _META:
        raise WeightsError(f"{path}/config.json: unknown keys {sorted(unknown)}; expected {', '.join(sorted(known))}")
    found = VitConfig(**{key: value for key, value in config.items() if key in known} | overrides)
    fallback = ImageTransform(size_hw=found.img_size)
    if preprocessing:
        transform = from_preprocessor_config(preprocessing, fallback)
    else:
        transform = from_timm(config.get("pretrained_cfg") or {}, fallback)
    return VisionCheckpoint(str(path), OWN, found, transform, tensors, trained=bool(config.get("trained", True)))


def _settings(config: dict[str, Any], open_clip: dict[str, Any], native: Tensors) -> dict[str, Any]:
    if "model_type" in config:
        return hf_vision_settings(config)
    if "model_cfg" in open_clip or "model_cfg" in config:
        return open_clip_settings(open_clip or config)
    return timm_settings(config, native)


def _transform(
    directory: Path | None, config: dict[str, Any], open_clip: dict[str, Any], family: str, found: VitConfig
) -> ImageTransform:
    """The directory's own preprocessing where it has one, else the family's default, at the size of the model."""
    fallback = default_transform(str(config.get("model_type", "")) or family, found.img_size)
    if preprocessing := _read(directory, "preprocessor_config.json"):
        return from_preprocessor_config(preprocessing, fallback)
    if cfg := (open_clip or config).get("preprocess_cfg"):
        return from_open_clip(cfg, fallback)
    if pretrained := config.get("pretrained_cfg"):
        return from_timm(pretrained, fallback)
    return fallback


def _read(directory: Path | None, name: str) -> dict[str, Any]:
    return {} if directory is None else read_json(directory / name)
