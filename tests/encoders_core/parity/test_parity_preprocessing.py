"""Preprocessing against transformers' Pillow processors: within one level a pixel, features all but the same."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from numpy.typing import NDArray
from torch import Tensor

from encoders_core.image_transform import ImageTransform
from encoders_core.vision_encoder import VisionEncoder
from encoders_core.weights.files import read_json
from encoders_core.weights.layouts_preprocessing import DEFAULTS, from_preprocessor_config

PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTImageProcessorPil", {}),
    "vit_crops": ("ViTImageProcessorPil", {"size": {"height": 40, "width": 56}, "resample": 3}),
    "deit": ("DeiTImageProcessorPil", {}),
    "clip": ("CLIPImageProcessorPil", {}),
    "clip_odd": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 61}, "crop_size": {"height": 50, "width": 40}}),
    "clip_pads": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 40}, "crop_size": {"height": 52, "width": 52}}),
    "dinov2": ("BitImageProcessorPil", {"size": {"shortest_edge": 256}}),
    "siglip": ("SiglipImageProcessorPil", {}),
    "lanczos": ("SiglipImageProcessorPil", {"resample": 1}),
    "unscaled": ("SiglipImageProcessorPil", {"do_rescale": False, "do_normalize": False}),
}
SIZES = ((720, 1280), (640, 480), (500, 300), (301, 200), (50, 61), (224, 224))


def picture(size_hw: tuple[int, int], kind: str) -> NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    if kind == "noise":
        return rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    ys, xs = np.mgrid[0 : size_hw[0], 0 : size_hw[1]]
    waves = [np.sin(xs / (7 + c)) * 60 + np.cos(ys / (11 + c)) * 60 + 128 for c in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def assert_within_one_level(ours: Tensor, theirs: Tensor, transform: ImageTransform) -> None:
    levels = (ours - theirs).abs() * torch.tensor(transform.std).view(1, -1, 1, 1) / transform.scale
    assert levels.max() < 2.01
    assert (levels > 1.01).float().mean() < 1e-4, "bicubic shrinking is two levels off here and there, and no more"


@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_parity_of_preprocessing(transformers: ModuleType, tmp_path: Path, name: str, kind: str) -> None:
    class_name, options = PROCESSORS[name]
    processor = getattr(transformers, class_name)(**options)
    processor.save_pretrained(tmp_path)
    family = DEFAULTS["clip" if "clip" in name else "siglip" if class_name.startswith("Siglip") else "vit"]
    transform = from_preprocessor_config(read_json(tmp_path / "preprocessor_config.json"), family)
    for size in SIZES:
        pixels = picture(size, kind)
        theirs = torch.as_tensor(np.asarray(processor(images=pixels, return_tensors="np")["pixel_values"]))
        ours = transform([torch.from_numpy(pixels).permute(2, 0, 1)])
        assert_within_one_level(ours, theirs, transform)


@pytest.mark.parametrize("family", ["vivit", "videomae"])
def test_parity_of_video_preprocessing(transformers: ModuleType, tmp_path: Path, family: str) -> None:
    name = {"vivit": "VivitImageProcessorPil", "videomae": "VideoMAEImageProcessorPil"}[family]
    processor = getattr(transformers, name, getattr(transformers, name.removesuffix("Pil")))()
    processor.save_pretrained(tmp_path)
    transform = from_preprocessor_config(read_json(tmp_path / "preprocessor_config.json"), DEFAULTS[family])
    frame = picture((300, 400), "smooth")
    theirs = torch.as_tensor(np.asarray(processor([frame], return_tensors="np")["pixel_values"]))[0]
    ours = transform([torch.from_numpy(frame).permute(2, 0, 1)])
    assert_within_one_level(ours, theirs, transform)


def test_parity_of_features_from_pixels(transformers: ModuleType, tmp_path: Path) -> None:
    """Pixels to vector, both sides with their own preprocessing."""
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(image_size=64, patch_size=16, projection_dim=48, **small)
    ).eval()
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pixels = [picture((720, 1280), "noise"), picture((480, 640), "smooth")]
    theirs = model(torch.as_tensor(np.asarray(processor(pixels, return_tensors="np")["pixel_values"]))).image_embeds
    ours = VisionEncoder.from_pretrained(tmp_path).encode_image(pixels, convert_to_tensor=True)
    assert F.cosine_similarity(ours, theirs).min() >= 0.9999


def test_saved_preprocessing_is_read_by_transformers(transformers: ModuleType, tmp_path: Path) -> None:
    transform = dataclasses.replace(DEFAULTS["clip"], size_hw=(96, 96), resize_px=110)
    encoder = VisionEncoder(image_size=96, num_layers=1, hidden_dim=32, num_heads=2, output_dim=None, seed=0)
    encoder.transform = transform
    encoder.save_pretrained(tmp_path)
    pixels = picture((300, 400), "smooth")
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path)
    theirs = torch.as_tensor(np.asarray(processor(pixels, return_tensors="np")["pixel_values"]))
    assert_within_one_level(encoder.preprocess(pixels), theirs, transform)
