"""Small ViTs of every family whose random weights do something, and moving pictures for them."""

from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from encoders_core.draining import drain
from encoders_core.models.layers import LayerScale
from encoders_core.models.vit import VisionTransformer, VitConfig
from encoders_core.preprocessing import InputSpec, normalise
from encoders_core.realtime.frame_encoder import Plan
from encoders_core.realtime.vit_frame_encoder import VitFrameEncoder, VitState

SIZE: Final = 48
PATCH: Final = 8
SPEC: Final = InputSpec((SIZE, SIZE), mean=(0.5,) * 3, std=(0.25,) * 3)
SHAPE: Final[dict[str, Any]] = {"img_size": (SIZE, SIZE), "patch_size": PATCH, "embed_dim": 32, "num_heads": 2}
FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "timm, class token": {},
    "timm, mean": {"pool": "mean", "fc_norm": True},
    "CLIP": {"norm_pre": True, "act": "quick_gelu", "num_classes": 24, "head_bias": False},
    "SigLIP": {"pool": "map", "class_token": False, "act": "gelu_tanh"},
    "DINOv2": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1.0, "swiglu": True},
}

Frame = NDArray[np.uint8]


def tiny_vit(family: str = "timm, class token", *, seed: int = 0, **changes: Any) -> VisionTransformer:
    config = VitConfig(**{"depth": 3, **SHAPE, **FAMILIES[family], **changes})
    generator = torch.Generator().manual_seed(seed)

    def draw(parameter: nn.Parameter, std: float, mean: float = 0.0) -> None:
        nn.init.normal_(parameter, mean, std, generator=generator)

    network = VisionTransformer(config)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            draw(module.weight, module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                draw(module.bias, 0.1)
        elif isinstance(module, nn.LayerNorm):
            draw(module.weight, 0.1, 1.0)
            draw(module.bias, 0.1)
        elif isinstance(module, LayerScale):
            draw(module.gamma, 0.2, 0.5)
    for token in (network.cls_token, network.reg_token, network.pos_embed):
        if token is not None:
            draw(token, 0.5)
    return network.eval()


def tiny_encoder(family: str = "timm, class token", *, variance: float = 30.0, **options: Any) -> VitFrameEncoder:
    words = {key: options.pop(key) for key in ("dense_fallback",) if key in options}
    network = tiny_vit(family, **options)
    spec = InputSpec(network.config.img_size, mean=SPEC.mean, std=SPEC.std)
    return VitFrameEncoder(network, spec, model_id="tiny", name="tiny", trained=True, variance=variance, **words)


def scene(seed: int, size: int = SIZE) -> Frame:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)


def redrawn(frame: Frame, patches: list[int], seed: int = 0) -> Frame:
    """The frame with these patches, counted row by row, drawn at random."""
    frame, across = frame.copy(), frame.shape[1] // PATCH
    for patch in patches:
        top, left = patch // across * PATCH, patch % across * PATCH
        colours = np.random.default_rng((seed, patch)).integers(0, 256, (PATCH, PATCH, 3), np.uint8)
        frame[top : top + PATCH, left : left + PATCH] = colours
    return frame


def walk(length: int, seed: int = 0) -> list[Frame]:
    """A still scene across which a square walks."""
    frames = [scene(seed) for _ in range(length)]
    for index, frame in enumerate(frames):
        left = 3 * index % (SIZE - 12)
        frame[16:28, left : left + 12] = 255 if seed % 2 else 0
    return frames


@torch.inference_mode()
def plain(encoder: VitFrameEncoder, frame: Frame) -> NDArray[np.float32]:
    """What the network gives, with the layers that the encoder uses."""
    spec = InputSpec((frame.shape[0], frame.shape[1]), mean=SPEC.mean, std=SPEC.std)
    features: NDArray[np.float32] = encoder.passes.network(normalise(torch.from_numpy(frame)[None], spec))[0].numpy()
    return features


def see(encoder: VitFrameEncoder, state: VitState, frame: Frame, **settings: Any) -> NDArray[np.float32]:
    """Plan and encode one frame; `settings` are fields of the plan."""
    return drain(encoder.encode([planned(encoder, state, frame, **settings)]))[0]


def planned(encoder: VitFrameEncoder, state: VitState, frame: Frame, **settings: Any) -> Plan:
    plan = encoder.plan(state, frame)
    for name, value in settings.items():
        setattr(plan, name, value)
    return plan


def warmed(encoder: VitFrameEncoder, frame: Frame, scale: float = 1.0) -> VitState:
    """A camera that has seen this frame twice: the third gets a gated pass."""
    state = encoder.new_state()
    encoder.set_fidelity(state, scale)
    for _ in range(2):
        see(encoder, state, frame)
    return state


def distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Relative to the length of the second."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
