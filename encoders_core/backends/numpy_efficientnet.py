"""EfficientNet-Lite0 of `encoders_core.models.efficientnet_lite` without torch: same names, same features to 1e-4."""

from collections.abc import Mapping
from typing import Any, Final

from encoders_core.backends.array_ops import Array

Weights = Mapping[str, Array]

_BN_EPS: Final = 1e-3
_STRIDES: Final = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
"""Of the depthwise convolution of each block."""


def forward(xp: Any, config: Mapping[str, Any], weights: Weights, x: Array) -> Array:  # noqa: ARG001  one signature for all networks; this one has nothing to configure
    """(B, 3, H, W) float32 normalised -> (B, 1280), average-pooled."""
    x = x.transpose(0, 2, 3, 1)
    x = _relu6(xp, _norm(xp, weights, "_bn0", _stem(xp, weights["_conv_stem.weight"], x)))
    for index, stride in enumerate(_STRIDES):
        x = _block(xp, weights, f"_blocks.{index}", x, stride)
    head = _relu6(xp, _norm(xp, weights, "_bn1", _pointwise(weights["_conv_head.weight"], x)))
    return head.mean(axis=(1, 2))


def _block(xp: Any, weights: Weights, name: str, x: Array, stride: int) -> Array:
    """Expand, depthwise, project; (B, H, W, C) -> (B, H / stride, W / stride, C')."""
    y = x
    if f"{name}._expand_conv.weight" in weights:
        y = _relu6(xp, _norm(xp, weights, f"{name}._bn0", _pointwise(weights[f"{name}._expand_conv.weight"], y)))
    y = _depthwise(xp, weights[f"{name}._depthwise_conv.weight"], y, stride)
    y = _relu6(xp, _norm(xp, weights, f"{name}._bn1", y))
    y = _norm(xp, weights, f"{name}._bn2", _pointwise(weights[f"{name}._project_conv.weight"], y))
    return x + y if stride == 1 and x.shape[-1] == y.shape[-1] else y


def _pointwise(kernel: Array, x: Array) -> Array:
    return x @ kernel[:, :, 0, 0].T


def _depthwise(xp: Any, kernel: Array, x: Array, stride: int) -> Array:
    """A sum over the kernel's taps of the shifted picture: each is one multiplication of whole arrays."""
    taps = list(_taps(xp, x, kernel.shape[-1], stride))
    out = taps[0][2] * kernel[:, 0, 0, 0]
    for row, column, shifted in taps[1:]:
        out = out + shifted * kernel[:, 0, row, column]
    return out


def _stem(xp: Any, kernel: Array, x: Array) -> Array:
    columns = xp.concatenate([shifted for _, _, shifted in _taps(xp, x, 3, 2)], axis=-1)
    return columns @ kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])


def _taps(xp: Any, x: Array, kernel: int, stride: int) -> list[tuple[int, int, Array]]:
    """What each tap of a "same" convolution sees: row, column, (B, ceil(H / stride), ceil(W / stride), C)."""
    outs = [-(-side // stride) for side in x.shape[1:3]]
    gaps = [max((out - 1) * stride + kernel - side, 0) for out, side in zip(outs, x.shape[1:3], strict=True)]
    padded = xp.pad(x, ((0, 0), *((gap // 2, gap - gap // 2) for gap in gaps), (0, 0)))
    return [
        (
            row,
            column,
            padded[:, row : row + (outs[0] - 1) * stride + 1 : stride, column : column + (outs[1] - 1) * stride + 1 : stride],
        )
        for row in range(kernel)
        for column in range(kernel)
    ]  # fmt: skip


def _norm(xp: Any, weights: Weights, name: str, x: Array) -> Array:
    scale = weights[f"{name}.weight"] / xp.sqrt(weights[f"{name}.running_var"] + _BN_EPS)
    return x * scale + (weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale)


def _relu6(xp: Any, x: Array) -> Array:
    return xp.clip(x, 0.0, 6.0)
