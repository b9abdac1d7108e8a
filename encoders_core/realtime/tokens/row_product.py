"""Linear layers over the changed rows of a picture: few rows, all weights.

Written twice: PyTorch's, and where numba is installed a product of our own, which asks memory for the next weights while it
works with these. A row's result is the same to the bit whatever rows are beside it.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.models.layers import LayerScale, Mlp, QuickGELU
from encoders_core.models.packed_linear import PackedLinear, fusible
from encoders_core.realtime.compiling import COMPILED, compiled
from encoders_core.realtime.tokens.memory import Asks
from encoders_core.realtime.tokens.plain import Floats

if COMPILED:
    from encoders_core.realtime.tokens.function_code import gelu, gelu_tanh, quick_gelu, relu
    from encoders_core.realtime.tokens.product_code import MOST_ROWS, WIDE, layer_product

_ALIGNED: Final = 16  # numbers in a line of memory
_ROWS: Final = 32
"""Rows that packed weights are laid out for: the layout for 197 costs a tenth more with few, this one nothing with many."""
_ALL: Final = slice(None)
_UNKNOWN: Final = "unknown"
_ACTIVATIONS: Final = (None, "gelu", "gelu_tanh", "quick_gelu", "relu")
_GELU, _GELU_TANH, _QUICK_GELU, _RELU = range(1, 5)
NOTHING: Final = np.zeros((1, 2), np.int64)
"""Asks for no bytes at an address that there is: to ask for one that is not costs a walk through page tables."""
NOTHING[0, 0] = NOTHING.ctypes.data


class Room(NamedTuple):
    """Memory that products work in, the same in every block: two sets of rows side by side, what is inside a feed-forward, results."""

    rows: Floats
    """(2, M, D)"""
    hidden: Floats
    """(M, hidden)"""
    out: Floats
    """(M, 2 D)"""

    @classmethod
    def of(cls, rows: int, dim: int, hidden: int) -> "Room":
        """Room for so many rows."""
        return cls(*(np.zeros(shape, np.float32) for shape in ((2, rows, dim), (rows, hidden), (rows, 2 * dim))))


class RowLayer(Protocol):
    """A layer over rows that lie side by side."""

    def __call__(self, rows: Floats, count: int, room: Room, ask: Asks) -> Floats:
        """(M, K) rows, of which `count` matter -> (count, N), valid until the next layer is called."""
        ...


class Panels(NamedTuple):
    """A linear layer as the compiled product takes it."""

    weight: Floats
    """(N / WIDE, K, WIDE): the columns of a panel lie together."""
    bias: Floats
    """(N,)"""
    activation: int
    """Place in `_ACTIVATIONS`."""


class Shelf:
    """Where the panels of a network lie behind each other in the order of their use, so that the next are always known."""

    def __init__(self, network: nn.Module) -> None:
        layers = (layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
        size = sum(layer.weight.numel() for layer in layers)
        room = np.zeros(size + _ALIGNED if COMPILED else 0, np.float32)
        self._left = room[-room.ctypes.data // 4 % _ALIGNED :]

    def put(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Panels:
        """(N, K), (N,) -> the layer."""
        outputs, inputs = weight.shape
        room, self._left = self._left[: weight.numel()], self._left[weight.numel() :]
        panels = room.reshape(outputs // WIDE, inputs, WIDE)
        panels[:] = weight.numpy().reshape(outputs // WIDE, WIDE, inputs).swapaxes(1, 2)
        added = np.zeros(outputs, np.float32) if bias is None else bias.numpy().copy()
        return Panels(panels, added, _ACTIVATIONS.index(activation))


def linear_rows(layer: nn.Linear, shelf: Shelf, part: slice = _ALL, scale: nn.Module | None = None) -> RowLayer:
    """`part` of the layer's outputs, times the `scale` behind it."""
    weight, bias = _weights(layer, scale)
    weight, bias = weight[part], None if bias is None else bias[part]
    if not _fits(layer, weight):
        return _by_torch(_plain(layer, weight, bias))
    panels = shelf.put(weight, bias)

    def product(rows: Floats, count: int, room: Room, ask: Asks) -> Floats:
        multiply(rows, count, panels, room.out, ask)
        return room.out[:count, : len(panels.bias)]

    return product


def mlp_rows(mlp: nn.Module, shelf: Shelf, scale: nn.Module) -> RowLayer:
    """A feed-forward, times the `scale` behind it."""
    if not isinstance(mlp, Mlp):
        return _by_torch(lambda rows: scale(mlp(rows)))
    activation = _activation(mlp)
    (up_weight, up_bias), (weight, bias) = _weights(mlp.fc1), _weights(mlp.fc2, scale)
    if activation == _UNKNOWN or not (_fits(mlp.fc1, up_weight) and _fits(mlp.fc2, weight)):
        up, down = _plain(mlp.fc1, up_weight, up_bias), _plain(mlp.fc2, weight, bias)
        return _by_torch(lambda rows: down(mlp.act(up(rows))))
    up_panels, panels = shelf.put(up_weight, up_bias, activation), shelf.put(weight, bias)

    def product(rows: Floats, count: int, room: Room, ask: Asks) -> Floats:
        multiply(rows, count, up_panels, room.hidden, NOTHING)
        multiply(room.hidden, count, panels, room.out, ask)
        return room.out[:count, : len(panels.bias)]

    return product


def _by_torch(layer: Callable[[Tensor], Tensor]) -> RowLayer:
    return lambda rows, count, _room, _ask: layer(torch.from_numpy(rows[:count])).numpy()


def _plain(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """PyTorch's product; as the layer computes it, where it is packed."""
    if isinstance(layer, PackedLinear):
        return PackedLinear.from_weights(weight, bias, layer.act, layer.compute).frozen(_ROWS)
    return lambda rows: F.linear(rows, weight, bias)


def _weights(layer: nn.Linear, scale: nn.Module | None = None) -> tuple[Tensor, Tensor | None]:
    """(N, K) and (N,) of the layer with the factors of `scale` in them."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if isinstance(scale, LayerScale):
        factors = scale.gamma.detach()
        weight, bias = weight * factors[:, None], None if bias is None else bias * factors
    return weight, bias


def _fits(layer: nn.Linear, weight: Tensor) -> bool:
    """Whether the compiled product takes the layer: in float32, of whole panels."""
    if not COMPILED or getattr(layer, "compute", weight.dtype) != torch.float32:
        return False
    return len(weight) % WIDE == 0


def _activation(mlp: Mlp) -> str | None:
    """What `_ACTIVATIONS` calls the one inside, which may be part of a packed layer; `_UNKNOWN` if it has none of them."""
    if isinstance(mlp.act, nn.Identity):
        return getattr(mlp.fc1, "act", None)
    return "quick_gelu" if isinstance(mlp.act, QuickGELU) else fusible(mlp.act) or _UNKNOWN


def _multiply(rows: Floats, count: int, layer: Panels, into: Floats, ask: Asks) -> None:
    """(M, K) rows, of which `count` matter -> the same rows of (M, N) `into`.

    Memory is asked for what `ask`, (L, 2) addresses and bytes, says will be wanted next.
    """
    panels, depth = layer.weight.shape[0], layer.weight.shape[1]
    tiles, places = (count + MOST_ROWS - 1) // MOST_ROWS, ask.shape[0]
    for number in range(panels if count else 0):
        place = number * places // panels
        later = ask[place, 0] + ask[place, 1] * (number * places % panels) // panels
        part = ask[place, 1] * places // panels // tiles
        column, done, ahead = number * WIDE, 0, depth * WIDE
        for tile in range(tiles):
            size = -((done - count) // (tiles - tile))
            layer_product(
                rows,
                done,
                size,
                layer.weight[number],
                layer.bias,
                into,
                column,
                ahead,
                WIDE // tiles,
                later,
                part // depth + 1,
            )
            _activate(into, done, done + size, column, layer.activation)
            done, ahead, later = done + size, ahead + depth * (WIDE // tiles), later + part


def _activate(into: Floats, first: int, last: int, column: int, activation: int) -> None:
    """Rows of a panel, in place."""
    for row in range(first, last):
        if activation == _GELU:
            gelu(into, row, column)
        elif activation == _GELU_TANH:
            gelu_tanh(into, row, column)
        elif activation == _QUICK_GELU:
            quick_gelu(into, row, column)
        elif activation == _RELU:
            relu(into, row, column)


def _without_numba(*_: object) -> None:
    raise AssertionError("no layer fits the compiled product without a compiler")


_activate = compiled(_activate, _without_numba)
multiply = compiled(_multiply, _without_numba)
