"""What a token-gated ViT remembers of one camera: the inputs that its rows were last computed from, and their outputs.

Four gates a block, before queries, keys and values, projection and feed-forward: Eventful Transformers
(https://arxiv.org/abs/2308.13494, their token-wise part) with the first one in two, as a changed query matters to its own row
alone. Each compares its input with the one it last *let through*, so that what is not computed now is not forgotten: it
stays in the difference until it is.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from encoders_core.models.vit import VitConfig
from encoders_core.realtime.token_plain import AttentionWatch, Floats, GateMemory

Gate = Literal["query", "kv", "proj", "mlp"]
GATES: Final[tuple[Gate, ...]] = ("query", "kv", "proj", "mlp")


@dataclass(slots=True)
class BlockMemory:
    """The gates of one block, and what is known of its attention. `query` is empty where one row alone is computed."""

    query: GateMemory
    kv: GateMemory
    proj: GateMemory
    mlp: GateMemory
    watch: AttentionWatch


class TokenCache:
    """The state of one camera; it takes `memory_bytes(config)` when warm, and does not grow."""

    def __init__(self) -> None:
        self.blocks: list[BlockMemory] = []
        """Empty before the first frame and after a reset."""
        self.importance: Floats | None = None
        """(depth, 4, N): how far a change of one row at one gate moves the features; None before it has been measured."""
        self.allowed: Floats | None = None
        """(depth, 4, N): how far a row may change for each unit of error that this may make; from `importance`."""
        self.limits: Floats | None = None
        """(depth, 4, N): how long a change of a row may be before its gate lets it through; from `allowed`."""
        self.ages = np.zeros((0, len(GATES), 0), np.float32)
        """(depth, 4, N): passes since a row was let through by a gate, this one included."""
        self.next_refresh = 0
        """The row that is next in the rolling refresh."""

    @property
    def warm(self) -> bool:
        """Whether there is something to start from."""
        return bool(self.blocks)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(array.nbytes for array in self._arrays())

    def reset(self) -> None:
        """Forget what was computed. The importance of places stays: a camera's places do."""
        self.blocks, self.next_refresh = [], 0
        self.ages = np.zeros((0, len(GATES), 0), np.float32)

    def fill(self, blocks: "list[BlockMemory]") -> None:
        """Everything was computed now."""
        self.blocks, rows = blocks, len(blocks[0].kv.reference)
        self.ages = np.ones((len(blocks), len(GATES), rows), np.float32)

    def _arrays(self) -> list[Floats]:
        gates = [gate for block in self.blocks for gate in (block.query, block.kv, block.proj, block.mlp)]
        watches = [part for block in self.blocks for part in (block.watch.seen, block.watch.drift, block.watch.slope)]
        places = [part for part in (self.importance, self.allowed, self.limits) if part is not None]
        return [*(part for gate in gates for part in (gate.reference, gate.output)), *watches, *places, self.ages]


def memory_bytes(config: VitConfig) -> int:
    """Bytes that a camera's cache takes: 9 N D float32 a block and 19 N besides; the last of a class-token model less.

    That block computes its class token alone: 3 N D for keys and values, and 4 rows.
    """
    rows, dim = config.prefix + config.grid_hw[0] * config.grid_hw[1], config.embed_dim
    numbers = config.depth * rows * (9 * dim + 19)
    if config.pool == "cls":
        numbers -= 6 * rows * dim - 4 * dim
    return np.dtype(np.float32).itemsize * numbers
