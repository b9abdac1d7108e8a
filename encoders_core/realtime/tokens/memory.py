"""What a token-gated ViT has computed of one camera, in one array and in the order of its use: what is next is always known."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from encoders_core.models.vit import VitConfig
from encoders_core.realtime.tokens.plain import AttentionWatch, Floats, GateMemory

Product = Literal["kv", "query", "proj", "mlp"]
PRODUCTS: Final[tuple[Product, ...]] = ("kv", "query", "proj", "mlp")
"""In the order in which a block computes them."""
Asks = NDArray[np.int64]
"""(L, 2): addresses and bytes of what will be read or written next."""
_USES: Final = len(PRODUCTS) + 1
_FLOAT_BYTES: Final = 4


@dataclass(slots=True)
class BlockMemory:
    """The gates of one block, and what is known of its attention. `query` is empty where one row alone is computed."""

    query: GateMemory
    kv: GateMemory
    proj: GateMemory
    mlp: GateMemory
    watch: AttentionWatch
    asks: dict[Product, Asks]
    """(1, 2) each: what is used between this product and the next one."""


class TokenMemory:
    """The memory of all blocks for one camera and pictures of so many rows; the watches know nothing, the rest is anything."""

    def __init__(self, config: VitConfig, rows: int) -> None:
        self.config, self.rows = config, rows
        shapes = [shape for use in _uses(config, rows) for shape in use]
        bounds = np.cumsum([0, *(rows * columns for rows, columns in shapes)])
        self._room = np.empty(bounds[-1], np.float32)
        parts = np.split(self._room, bounds[1:-1])
        arrays = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        asks = _asks(config, rows, self._room)
        self.blocks = [_block(arrays, asks, rows) for _ in range(config.depth)]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        watches = (block.watch for block in self.blocks)
        return self._room.nbytes + sum(
            part.nbytes for watch in watches for part in (watch.seen, watch.drift, watch.slope)
        )

    def forget(self) -> None:
        """Nothing is known of any block's attention."""
        for block in self.blocks:
            block.watch.take(AttentionWatch.of(self.rows))

    def __deepcopy__(self, _memo: Any) -> "TokenMemory":
        twin = TokenMemory(self.config, self.rows)
        twin._room[:] = self._room
        for block, other in zip(twin.blocks, self.blocks, strict=True):
            block.watch.take(other.watch)
        return twin


def rows_of(config: VitConfig) -> int:
    """Rows of a picture of the model's own size: its patches and what stands in front of them."""
    return config.prefix + config.grid_hw[0] * config.grid_hw[1]


def numbers_of(config: VitConfig) -> int:
    """Numbers that a camera's memory holds besides the watches."""
    return sum(rows * columns for use in _uses(config, rows_of(config)) for rows, columns in use)


def _uses(config: VitConfig, rows: int) -> Iterator[list[tuple[int, int]]]:
    """Shapes of what is used together, in the order of use: in each block in front of, between and behind its products."""
    dim = config.embed_dim
    for block in range(config.depth):
        lonely = config.pool == "cls" and block == config.depth - 1
        asking, behind = (0, 1) if lonely else (rows, rows)
        yield [(rows, dim), (asking, dim)]
        yield [(rows, 2 * dim)]
        yield [(asking, dim), (behind, dim)]
        yield [(behind, dim), (behind, dim)]
        yield [(behind, dim)]


def _block(arrays: Iterator[Floats], asks: Iterator[Asks], rows: int) -> BlockMemory:
    """From the next arrays in the order of their use."""
    kv_in, query_in, kv, query, proj_in, proj, mlp_in, mlp = (next(arrays) for _ in range(8))
    gates = GateMemory(query_in, query), GateMemory(kv_in, kv), GateMemory(proj_in, proj), GateMemory(mlp_in, mlp)
    return BlockMemory(*gates, AttentionWatch.of(rows), {product: next(asks) for product in PRODUCTS})


def _asks(config: VitConfig, rows: int, room: Floats) -> Iterator[Asks]:
    """For each product of each block the use behind it; for a feed-forward also the one in front of the next block."""
    sizes = [sum(high * wide for high, wide in use) * _FLOAT_BYTES for use in _uses(config, rows)]
    start = room.ctypes.data + sizes[0]
    for place, size in enumerate(sizes):
        product = place % _USES - 1
        if product >= 0:
            wanted = size + sum(sizes[place + 1 : place + 2]) if product == len(PRODUCTS) - 1 else size
            yield np.array([[start, wanted]], np.int64)
            start += wanted
