"""What a token-gated ViT remembers of one camera: the inputs that its rows were last computed from, and their outputs.

Four gates a block, before queries, keys and values, projection and feed-forward: Eventful Transformers
(https://arxiv.org/abs/2308.13494, their token-wise part) with the first one in two, as a changed query matters to its own row
alone. Each compares its input with the one it last *let through*, so that what is not computed now is not forgotten: it
stays in the difference until it is.
"""

from typing import Final, Literal

import numpy as np

from encoders_core.models.vit import VitConfig
from encoders_core.realtime.tokens.embedding import PatchMemory
from encoders_core.realtime.tokens.memory import BlockMemory, TokenMemory, numbers_of, rows_of
from encoders_core.realtime.tokens.plain import Floats

Gate = Literal["query", "kv", "proj", "mlp"]
GATES: Final[tuple[Gate, ...]] = ("query", "kv", "proj", "mlp")


class TokenCache:
    """The state of one camera; it takes `memory_bytes(config)` when warm, and does not grow."""

    def __init__(self) -> None:
        self.importance: Floats | None = None
        """(depth, 4, N): how far a change of one row at one gate moves the features; None before it has been measured."""
        self.allowed: Floats | None = None
        """(depth, 4, N): how far a row may change for each unit of error that this may make; from `importance`."""
        self.limits: Floats | None = None
        """(depth, 4, N): how long a change of a row may be before its gate lets it through; from `allowed`."""
        self.patches: PatchMemory | None = None
        """What its patches were when they were last embedded: always a pair, whatever became of the pass behind."""
        self.patch_importance: Floats | None = None
        """(P,): how far a change of a grey level's length of one patch moves the features."""
        self.patch_limits: Floats | None = None
        """(P,): how far a patch may be from its pixels, in grey levels, before it is embedded anew; 0 for any change."""
        self.ages = np.zeros((0, len(GATES), 0), np.float32)
        """(depth, 4, N): passes since a row was let through by a gate, this one included."""
        self.next_refresh = 0
        """The row that is next in the rolling refresh."""
        self.warm = False
        """Whether there is something to start from."""
        self._memory: TokenMemory | None = None

    @property
    def blocks(self) -> list[BlockMemory]:
        """What each block remembers; empty before the first frame and after a reset."""
        return self._memory.blocks if self.warm and self._memory else []

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        places = self.importance, self.allowed, self.limits, self.ages, self.patch_importance, self.patch_limits
        parts = (*places, self.patches, self._memory)
        return sum(part.nbytes for part in parts if part is not None)

    def reset(self) -> None:
        """Forget what was computed. The importance of places stays: a camera's places do."""
        self.warm, self.next_refresh = False, 0
        self.ages = np.zeros((0, len(GATES), 0), np.float32)

    def begin(self, config: VitConfig, rows: int) -> list[BlockMemory]:
        """Forget what was computed -> where a dense pass over so many rows puts what it computes anew."""
        self.reset()
        if self._memory is None or (self._memory.config, self._memory.rows) != (config, rows):
            self._memory = TokenMemory(config, rows)
        self._memory.forget()
        return self._memory.blocks

    def fill(self) -> None:
        """Everything was computed now, to where `begin` said."""
        if self._memory is None:
            raise AssertionError("a dense pass ends that did not begin")
        self.warm = True
        self.ages = np.ones((len(self.blocks), len(GATES), self._memory.rows), np.float32)


def memory_bytes(config: VitConfig) -> int:
    """Bytes that a camera's cache takes: 9 N D float32 a block and 19 N besides, and of the input N D, 2 P and its pixels.

    N are rows, P of them patches. The last block of a class-token model has less: it computes its class token alone, 3 N D for
    keys and values, and 4 rows.
    """
    rows, (height, width) = rows_of(config), config.img_size
    floats = numbers_of(config) + 19 * config.depth * rows + rows * config.embed_dim + 2 * (rows - config.prefix)
    return np.dtype(np.float32).itemsize * floats + height * width * config.in_chans
