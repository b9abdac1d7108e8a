"""The few operations of the networks, written for any array library with numpy's names (numpy, jax.numpy).

Every function takes that library first, as `xp`. Nothing is changed in place, so that jax can trace it.
"""

from typing import Any, Final

Array = Any

_ERF_P: Final = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
_ERF_Q: Final = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03),
    -1.42647390514189e-02,
)


def erf(xp: Any, x: Array) -> Array:
    """The error function to float32's precision: Eigen's rational approximation on -4 to 4, beyond which it is 1."""
    x = xp.clip(x, -4.0, 4.0)
    square = x * x
    return x * _polynomial(square, _ERF_P) / _polynomial(square, _ERF_Q)


def activation(xp: Any, name: str, x: Array) -> Array:
    """The activation that `encoders_core.models.layers.ACTIVATIONS` has under `name`."""
    if name == "gelu":
        return 0.5 * x * (1.0 + erf(xp, x * 0.7071067811865476))
    if name == "gelu_tanh":
        return 0.5 * x * (1.0 + xp.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    if name == "relu":
        return xp.maximum(x, 0.0)
    if name == "tanh":
        return xp.tanh(x)
    gate = sigmoid(xp, 1.702 * x if name == "quick_gelu" else x)
    return gate if name == "sigmoid" else x * gate


def sigmoid(xp: Any, x: Array) -> Array:
    """1 / (1 + exp(-x)), by way of tanh, which does not overflow."""
    return 0.5 * (1.0 + xp.tanh(0.5 * x))


def softmax(xp: Any, x: Array) -> Array:
    """Over the last axis."""
    shifted = xp.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def linear(weights: Any, name: str, x: Array) -> Array:
    """(..., D) -> (..., D'): torch's nn.Linear called `name`, with a bias if there is one."""
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def layer_norm(xp: Any, weights: Any, name: str, x: Array, eps: float) -> Array:
    """Torch's nn.LayerNorm called `name`, over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = xp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    y = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        y = y * x + coefficient
    return y
