"""Video checkpoints of transformers (VideoMAE, ViViT, TimeSformer) under the names used here, opened and saved."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from encoders_core.errors import WeightsError
from encoders_core.image_transform import ImageTransform
from encoders_core.models.video_transformer import SpaceTimeConfig
from encoders_core.weights.files import Tensors, find_weights, read_json, read_tensors
from encoders_core.weights.layouts import Layout, detect, fuse
from encoders_core.weights.layouts_config import HEADS_BY_WIDTH, HF_DEFAULTS, count_blocks, hf_vision_settings
from encoders_core.weights.layouts_preprocessing import default_transform, from_preprocessor_config
from encoders_core.weights.layouts_vision import HF_TRUNK


def _finish(tensors: Tensors) -> Tensors:
    return fuse(tensors, ("attn.q", "attn.k", "attn.v"), "attn.qkv")


VIDEO_LAYOUTS: Final = (
    Layout("timesformer", r"(.*\.)?embeddings\.time_embeddings", HF_TRUNK, _finish, {"position_resize": "nearest"}),
    Layout("vivit", r"(.*\.)?embeddings\.cls_token", HF_TRUNK, _finish),
    Layout("videomae", r"(.*\.)?embeddings\.patch_embeddings\.projection\.weight", HF_TRUNK, _finish),
)
"""Looked through in order, in files that `is_video` says yes to; named as transformers names the model types."""


@dataclass(frozen=True)
class VideoCheckpoint:
    """What `open_video` found."""

    source: str
    family: str
    config: SpaceTimeConfig
    transform: ImageTransform
    tensors: Tensors


def is_video(tensors: Tensors) -> bool:
    """Whether these are the weights of one of the video families: patches over time, or positions in time."""
    patches = [value for key, value in tensors.items() if key.endswith("patch_embeddings.projection.weight")]
    return any(value.ndim == 5 for value in patches) or any(key.endswith(".time_embeddings") for key in tensors)


@dataclass(frozen=True)
class ModelFiles:
    """What a model directory holds; of a bare weights file the configurations are empty."""

    tensors: Tensors
    config: dict[str, Any]
    preprocessing: dict[str, Any]


def read_model(path: Path) -> ModelFiles:
    """A model directory or a weights file. Raises WeightsNotFoundError, WeightsError."""
    if not path.is_dir():
        return ModelFiles(read_tensors(path), {}, {})
    config, preprocessing = read_json(path / "config.json"), read_json(path / "preprocessor_config.json")
    return ModelFiles(read_tensors(find_weights(path)), config, preprocessing)


def open_video(path: Path, files: ModelFiles) -> VideoCheckpoint:
    """A video checkpoint of transformers. Raises WeightsError for what is none, OptionError for an odd activation."""
    layout = detect(files.tensors, VIDEO_LAYOUTS, str(path))
    if files.config.get("attention_type") == "space_only":
        raise WeightsError(f"{path}: a TimeSformer with attention over space only looks at each frame alone: use a ViT")
    native = layout.convert(files.tensors)
    settings = {"img_size": 224} | HF_DEFAULTS[layout.name] | hf_vision_settings(files.config) | layout.defaults
    found = _config(native, settings, str(path))
    transform = default_transform(layout.name, found.img_size)
    if files.preprocessing:
        transform = from_preprocessor_config(files.preprocessing, transform)
    return VideoCheckpoint(str(path), f"transformers {layout.name}", found, transform, native)


def _config(tensors: Tensors, settings: dict[str, Any], source: str) -> SpaceTimeConfig:
    if "patch_embed.proj.weight" not in tensors or "blocks.0.mlp.fc1.weight" not in tensors:
        raise WeightsError(f"{source}: looked like a video model of transformers, but has no patches or no blocks")
    patches = tensors["patch_embed.proj.weight"]
    width, wide = patches.shape[0], patches.ndim == 5
    divided = "time_embed" in tensors
    position = "divided" if divided else "joint" if "pos_embed" in tensors else "sinusoidal"
    shape: dict[str, Any] = {
        "embed_dim": width,
        "in_chans": patches.shape[1],
        "patch_size": patches.shape[-1],
        "tubelet_size": patches.shape[2] if wide else 1,
        "depth": count_blocks(tensors),
        "mlp_hidden": tensors["blocks.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "class_token": "cls_token" in tensors,
        "divided": "blocks.0.temporal_attn.qkv.weight" in tensors,
        "position": position,
        "final_norm": "norm.weight" in tensors,
        "fc_norm": "fc_norm.weight" in tensors,
    }
    if divided:
        shape["num_frames"] = tensors["time_embed"].shape[1]
    known = {field.name for field in dataclasses.fields(SpaceTimeConfig)}
    heads = {"num_heads": HEADS_BY_WIDTH.get(width, max(1, width // 64))}  # unless the configuration says it
    return SpaceTimeConfig(**{key: value for key, value in (heads | settings | shape).items() if key in known})


def write_config(directory: Path, config: dict[str, Any], transform: ImageTransform) -> None:
    """Write `config.json` and `preprocessor_config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (("config.json", config), ("preprocessor_config.json", transform.to_config())):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
