"""What a VideoEncoder is made of, opened from disk: our own directories, and the video families of transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from encoders_core.errors import OptionError, WeightsError
from encoders_core.image_transform import ImageTransform
from encoders_core.models.frame_tower import ClipTower, FrameTower
from encoders_core.models.video_transformer import SpaceTimeConfig, SpaceTimeTransformer
from encoders_core.models.vit import VisionTransformer, VitConfig
from encoders_core.video.options import VideoConfig, changed
from encoders_core.weights.files import Tensors, load_strictly
from encoders_core.weights.layouts_preprocessing import from_preprocessor_config
from encoders_core.weights.video_layouts import ModelFiles, is_video, open_video

OWN: Final = "video"
"""`architecture` in the `config.json` of our own directories."""


@dataclass(frozen=True, kw_only=True)
class VideoParts:
    """A tower and what stands around it. `tensors` are those of the whole encoder, still to be loaded, if not None."""

    tower: FrameTower | ClipTower
    config: VideoConfig
    transform: ImageTransform
    output_dim: int | None = None
    """None: as wide as the tower's features."""
    trained: bool = True
    tensors: Tensors | None = None


def open_parts(
    path: Path, files: ModelFiles, *, fps: float, temporal_layers: int | None, dtype: torch.dtype
) -> VideoParts | None:
    """What a model directory or file holds; None when it is no video model. Raises WeightsError, OptionError."""
    if files.config.get("architecture") == OWN:
        return _own(path, files)
    return _space_time(path, files, fps, temporal_layers or 0, dtype) if is_video(files.tensors) else None


def _space_time(path: Path, files: ModelFiles, fps: float, temporal_layers: int, dtype: torch.dtype) -> VideoParts:
    found = open_video(path, files)
    shape = found.config
    with torch.device("meta"):
        model = SpaceTimeTransformer(shape)
    load_strictly(model, found.tensors, source=found.source, family=found.family, dtype=dtype)
    config = VideoConfig(
        max_frames=shape.num_frames, fps=float(fps), pooling="cls_token" if shape.class_token else "mean"
    )
    if temporal_layers:
        options = {"temporal_modeling": {"num_layers": temporal_layers}}
        config, _ = changed(config, options, width=shape.embed_dim, num_heads=shape.num_heads)
    return VideoParts(tower=ClipTower(model), config=config, transform=found.transform)


def _own(path: Path, files: ModelFiles) -> VideoParts:
    try:
        with torch.device("meta"):
            tower = _tower(files.config)
        return VideoParts(
            tower=tower,
            config=VideoConfig.from_dict(files.config["video"]),
            transform=from_preprocessor_config(
                files.preprocessing, ImageTransform(size_hw=tower.model.config.img_size)
            ),
            output_dim=files.config["output_dim"],
            trained=bool(files.config.get("trained", True)),
            tensors=files.tensors,
        )
    except (KeyError, TypeError, OptionError) as exc:
        raise WeightsError(f"{path}/config.json: expected a saved VideoEncoder: {exc}") from exc


def _tower(config: dict[str, Any]) -> FrameTower | ClipTower:
    if "frames" in config:
        return FrameTower(VisionTransformer(VitConfig(**config["frames"])))
    return ClipTower(SpaceTimeTransformer(SpaceTimeConfig(**config["clips"])))
