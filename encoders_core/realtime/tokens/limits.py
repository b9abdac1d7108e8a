"""How far a row may change before a gate lets it through, from what a change of it does to the features and what it costs."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from encoders_core.models.vit import VisionTransformer
from encoders_core.realtime.tokens.cache import GATES
from encoders_core.realtime.tokens.lane import Counts
from encoders_core.realtime.tokens.plain import Floats

ROW_ERROR: Final = 9.5e-5
"""What letting one row of one gate wait may cost, of the features' standard deviation over many scenes, for a camera whose
own variance is a hundredth of it. On six fixed cameras, at 10 and at 24 to 30 frames a second, the FVU then was .007 to .02;
it grows about as the square of this."""
_ROUNDING: Final = 1e-5
"""Length of a change that is none: layer-normalised rows, computed twice, differ by less."""
_TRUST: Final = 0.6
"""How far the measured importance of one row is believed against the mean of its gate: it was measured on a frame or two,
and what will move there may not have been in them."""

_PATCH_SHARE: Final = 0.4
"""Of a row's error, for a patch that waits to be embedded. On five cameras a third to a half of the patches then wait, and the
FVU is 0 to 3 % higher; at .8 half to two thirds wait, for 0 to 9 %. Changes of pixels are mostly even, which moves features
further than a change of no particular direction."""


def allowed_changes(importance: Floats, row_costs: NDArray[np.float64], first: int) -> Floats:
    """(depth, 4, N) -> the same: a row of a costlier gate may cost more error, one of a more important place change less.

    The sum of work falls the most for a given sum of squared errors. Rows before `first` are left out of the means.
    """
    costs = row_costs[[Counts._fields.index(gate) for gate in GATES]]
    shrunk = np.maximum(_shrunk(importance[:, :, first:]), np.finfo(np.float32).tiny)
    allowed = np.ones_like(importance)
    allowed[:, :, first:] = np.sqrt(costs / costs.mean())[None, :, None] / shrunk
    return allowed


def _shrunk(importance: Floats) -> Floats:
    """(..., N) -> the same, each row's square drawn towards the mean square of its gate, on a scale of logarithms."""
    squares = np.square(importance, dtype=np.float64)
    mean = np.maximum(squares.mean(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray(np.sqrt(mean * (squares / mean) ** _TRUST), np.float32)


def limits_of(allowed: Floats, error: float, *, class_token: bool) -> Floats:
    """(depth, 4, N) of `allowed_changes` -> limits, for an error of each row in units of the features."""
    limits: Floats = np.maximum(np.float32(error) * allowed, np.float32(_ROUNDING))
    if class_token:
        limits[:, :, 0] = -1.0  # it is what is read
    return limits


def patch_limits_of(importance: Floats, error: float) -> Floats:
    """(P,) importance of a change of patches -> how far one may change, for an error of a row in units of the features."""
    shrunk = np.maximum(_shrunk(importance), np.finfo(np.float32).tiny)
    return np.asarray(_PATCH_SHARE * error / shrunk, np.float32)


def row_costs_of(network: VisionTransformer, rows: int) -> NDArray[np.float64]:
    """(5,): multiplications for a row of each layer, in the order of `Counts`."""
    dim, config = network.config.embed_dim, network.config
    feed = (3 if config.swiglu else 2) * dim * config.mlp_width
    return np.array([dim * dim, 2 * dim * dim, 2 * rows * dim, dim * dim, feed], np.float64)


def dense_cost_of(network: VisionTransformer, row_costs: NDArray[np.float64], rows: int) -> float:
    """Multiplications of all rows of all blocks; the last of a class-token model computes that token alone."""
    whole = Counts(*[rows] * len(Counts._fields))
    last = Counts(1, rows, 1, 1, 1) if network.config.pool == "cls" else whole
    return float((network.config.depth - 1) * np.dot(row_costs, whole) + np.dot(row_costs, last))
