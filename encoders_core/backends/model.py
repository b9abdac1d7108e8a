"""A network as plain data, for backends that are not torch: which one it is, its weights, its preprocessing."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from encoders_core.backends import numpy_efficientnet, numpy_vit
from encoders_core.errors import EncoderError, InputError, WeightsError

if TYPE_CHECKING:
    from encoders_core.image_transform import ImageTransform

Floats = NDArray[np.float32]
Forward = Callable[[Floats], Floats]

_FORWARD = {"vit": numpy_vit.forward, "efficientnet-lite0": numpy_efficientnet.forward}


@dataclass(frozen=True, kw_only=True)
class ArrayModel:
    """`weights` by torch's parameter names; `preprocessing` as `ImageTransform` has it, in plain data."""

    family: Literal["vit", "efficientnet-lite0"]
    config: Mapping[str, Any]
    weights: Mapping[str, Floats]
    preprocessing: Mapping[str, Any]


def read_directory(path: Path) -> ArrayModel:
    """What `VisionEncoder.save_pretrained` wrote, read without torch. Raises WeightsError for anything else."""
    from safetensors.numpy import load_file  # noqa: PLC0415  wanted only where torch is missing

    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
        preprocessing = json.loads((path / "preprocessor_config.json").read_text("utf-8"))["camvec"]
        weights = load_file(path / "model.safetensors")
    except (OSError, ValueError, KeyError) as exc:
        raise WeightsError(f"{path}: without torch expected what save_pretrained wrote: {exc!r}") from exc
    if config.get("architecture") != "vit":
        raise WeightsError(f"{path}: without torch expected our own ViT, got {config.get('architecture')!r}")
    try:
        single = {name: tensor.astype(np.float32, copy=False) for name, tensor in weights.items()}
    except (TypeError, ValueError) as exc:
        raise WeightsError(f"{path}: numpy cannot read these weights: {exc}") from exc
    return ArrayModel(family="vit", config=config, weights=single, preprocessing=preprocessing)


def open_numpy(model: ArrayModel) -> Forward:
    """(B, C, H, W) float32 -> features, in plain numpy."""
    return partial(_FORWARD[model.family], np, model.config, model.weights)


def open_jax(model: ArrayModel) -> Forward:
    """The same through jax, compiled for each shape of input. Raises EncoderError when it is not installed."""
    try:
        jax = importlib.import_module("jax")
    except ImportError as exc:
        raise EncoderError(f"jax cannot be imported ({exc}): pip install jax") from exc
    weights = {name: jax.numpy.asarray(array) for name, array in model.weights.items()}
    run = jax.jit(partial(_FORWARD[model.family], jax.numpy, model.config))

    def forward(x: Floats) -> Floats:
        # Where jax has an accelerator its default is bfloat16 or TF32 in matrix products.
        with jax.default_matmul_precision("highest"):
            features = run(weights, x)
        return np.asarray(features, np.float32)

    return forward


def plain_input(inputs: Any, model: ArrayModel) -> Floats:
    """Arrays -> (B, C, H, W) float32, without torch: floats are model input, uint8 (B, H, W, C) of the model's size.

    Raises InputError for anything else: decoding and resizing pictures needs torch.
    """
    try:
        batch = (
            np.stack([np.asarray(one) for one in inputs]) if isinstance(inputs, list | tuple) else np.asarray(inputs)
        )
    except ValueError as exc:
        raise InputError(f"without torch expected pictures of one size: {exc}") from exc
    batch = batch[None] if batch.ndim == 3 else batch
    if batch.ndim == 4 and np.issubdtype(batch.dtype, np.floating):
        return np.asarray(batch, np.float32)
    wishes = model.preprocessing
    shape = (*wishes["size_hw"], len(wishes["mean"]))
    if batch.dtype != np.uint8 or batch.shape[1:] != shape:
        raise InputError(
            f"without torch expected floats (B, C, H, W) or uint8 pixels (B, {', '.join(map(str, shape))}), "
            f"got {batch.dtype} {batch.shape}"
        )
    pixels = batch.astype(np.float32) * wishes["scale"] + wishes["offset"]
    normalised = (pixels - np.float32(wishes["mean"])) / np.float32(wishes["std"])
    array: Floats = np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), np.float32)
    return array


def torch_input(inputs: Any, transform: "ImageTransform") -> Floats:
    """Pictures, see `load_images` -> (B, C, H, W) float32, on the CPU, the same for every backend."""
    import torch  # noqa: PLC0415  a backend may be chosen because torch is missing

    from encoders_core.images import load_images  # noqa: PLC0415

    pictures = load_images(inputs, channels=len(transform.mean))
    ready = [transform([one])[0] if one.dtype == torch.uint8 else one for one in pictures]
    if len({one.shape for one in ready}) > 1:
        raise InputError(f"expected pictures of one size, got {sorted({tuple(one.shape) for one in ready})}")
    array: Floats = torch.stack(ready).detach().numpy(force=True) if ready else np.empty((0, 0, 0, 0), np.float32)
    return array
