"""ViT checkpoints as frame encoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from encoders_core.errors import OptionError
from encoders_core.models.vit import VisionTransformer
from encoders_core.preprocessing import Fit, InputSpec, normalise
from encoders_core.realtime.vit_frame_encoder import VitFrameEncoder
from encoders_core.weights.files import read_json


def load_vit(path: str | Path, fit: Fit = "squash") -> VitFrameEncoder:
    """A ViT checkpoint, as `VisionEncoder.from_pretrained` takes it, as a frame encoder.

    `feature_variance` in its config.json is the mean |z - mean|^2 of its features over many scenes; without it half of the
    mean squared length over generated pictures stands in. Raises what `from_pretrained` raises.
    """
    from encoders_core.vision_encoder import VisionEncoder  # noqa: PLC0415  the whole module of encoders, for ViTs alone

    encoder = VisionEncoder.from_pretrained(path)
    transform, config = encoder.transform, encoder.model.config
    if config.img_size[0] != config.img_size[1]:
        raise OptionError(f"{path}: expected a model of square pictures, got {config.img_size}")
    scaler = transform.interpolation if transform.interpolation in ("area", "bilinear", "bicubic") else "area"
    spec = InputSpec(config.img_size, fit, cast("Any", scaler), _three(transform.mean), _three(transform.std))
    name = Path(path).name
    return VitFrameEncoder(
        encoder.model,
        spec,
        model_id="".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-"),
        name=name,
        trained=encoder.trained,
        variance=_stated_variance(Path(path)) or _guessed_variance(encoder.model, spec),
    )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise OptionError(f"expected a model of RGB pictures, got one of {len(values)} channels")
    return values[0], values[1], values[2]


def _stated_variance(path: Path) -> float | None:
    stated = read_json(path / "config.json").get("feature_variance")
    if stated is not None and not (isinstance(stated, int | float) and stated > 0):
        raise OptionError(f"{path}/config.json: feature_variance: expected a positive number, got {stated!r}")
    return stated


@torch.inference_mode()
def _guessed_variance(network: VisionTransformer, spec: InputSpec) -> float:
    """Half of the mean squared length of the features of smooth random pictures: an order of magnitude."""
    noise = torch.rand((8, 3, 14, 14), generator=torch.Generator().manual_seed(0))
    pictures = torch.nn.functional.interpolate(noise, spec.size_hw, mode="bicubic").clamp(0, 1)
    frames = (pictures * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    features = network(normalise(frames, spec))
    return float(features.square().sum(dim=1).mean()) / 2
