"""A small ViT with random weights, and clips made of disturbances: what the tests of the policies share."""

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encoders_core.fidelity.frame_policies import Plain
from encoders_core.fidelity.policy import Policy, Step
from encoders_core.fidelity.run import Clip
from encoders_core.fidelity.subject import DenseVitEncoder, Subject, load_subject, vit_subject
from encoders_core.models.vit import VisionTransformer, VitConfig
from encoders_core.preprocessing import InputSpec
from encoders_core.realtime.vit_frame_encoder import VitFrameEncoder

Frame = NDArray[np.uint8]
SIZE_PX = 64
INTERVAL_NS = 100_000_000


@cache
def small_subject(pool: str = "cls") -> Subject:
    """64 pixels, 16 patches, 3 blocks; weights larger than those of a fresh ViT, so that features react to pictures."""
    torch.manual_seed(0)
    config = VitConfig(img_size=(SIZE_PX, SIZE_PX), embed_dim=32, depth=3, num_heads=2, pool=pool)  # type: ignore[arg-type]
    network = VisionTransformer(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    spec = InputSpec((SIZE_PX, SIZE_PX), mean=(0.5,) * 3, std=(0.5,) * 3)
    shipped = VitFrameEncoder(network, spec, model_id="small", name="small", trained=False, variance=50.0)
    return vit_subject(shipped)


def small_vit(pool: str = "cls") -> DenseVitEncoder:
    vit = small_subject(pool).vit
    assert vit is not None
    return vit


@cache
def trained_subject(name: str = "vit-small-128") -> Subject:
    folder = os.environ.get("CAMVEC_MODELS")
    if not folder or not (Path(folder) / name).is_dir():
        pytest.skip(f"needs trained weights: set CAMVEC_MODELS to the folder that holds {name}")
    return load_subject(str(Path(folder) / name))


def as_clip(frames: Iterable[Frame], name: str = "made") -> Clip:
    pixels = list(frames)
    return Clip(name, pixels, [index * INTERVAL_NS for index in range(len(pixels))])


def play(policy: Policy, frames: Iterable[Frame]) -> list[Step]:
    return [policy.step(frame, index * INTERVAL_NS) for index, frame in enumerate(frames)]


def truth(encoder: DenseVitEncoder, frames: Iterable[Frame]) -> NDArray[np.float32]:
    return np.stack([Plain(encoder).encode(frame) for frame in frames])
