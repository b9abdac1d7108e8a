"""What a policy is: frames in, the vectors that stand for them out, with the work that was done; and the work by formula."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from encoders_core.models.vit import VitConfig

Frame = NDArray[np.uint8]
Rows = NDArray[np.int64]
"""(depth, 5): of each block the rows that queries, keys and values, attention, projection and feed-forward compute."""

QUERY, KV, ATTENTION, PROJECTION, MLP = range(5)
LINEAR: Final = (QUERY, KV, PROJECTION, MLP)
"""The layers whose rows count as tokens; attention is in the multiply-adds alone."""


@dataclass(frozen=True, slots=True)
class Step:
    """One frame's vector and its price. `rows` of `rows_total`, `macs` of `macs_total`: the total is the plain pass."""

    features: NDArray[np.float32]
    """(D,), not normalised."""
    rows: int
    rows_total: int
    macs: float
    macs_total: float
    encoded: bool
    """False: nothing was computed, an earlier vector stands."""
    full: bool
    """Everything was computed anew, as by the plain encoder."""
    detail: Rows | None = None
    """What each layer computed; None where nobody counts it."""
    embedded: int | None = None
    """Patches that were embedded, of a held frame too; None where nobody counts them."""


class Policy(Protocol):
    """One way to spend less than a full pass on every frame, for one camera."""

    @property
    def name(self) -> str:
        """What the tables call it."""
        ...

    def reset(self) -> None:
        """Forget the camera: the next frame is its first."""
        ...

    def step(self, frame: Frame, at_ns: int) -> Step:
        """(H, W, 3) uint8 of the time `at_ns` -> the vector that stands for it, and what that took."""
        ...


PolicyFactory = Callable[[float], Policy]
"""From the policy's knob to a policy. Which way the knob turns is the policy's own affair."""


@dataclass(frozen=True, slots=True)
class VitCost:
    """Multiply-adds of a ViT pass from the rows that each layer computes; the norms and the softmax are left out."""

    config: VitConfig
    tokens: int
    """Prefix and patches."""

    @classmethod
    def of(cls, config: VitConfig, size_hw: tuple[int, int] | None = None) -> "VitCost":
        """The cost of pictures of `size_hw`, by default the model's own."""
        height, width = size_hw or config.img_size
        patches = (height // config.patch_size) * (width // config.patch_size)
        return cls(config, config.prefix + patches)

    @property
    def plain_rows(self) -> Rows:
        """Those of a plain pass; with class-token pooling the last block has keys and values of all, and one row behind."""
        rows = np.full((self.config.depth, 5), self.tokens)
        if self.config.pool == "cls":
            rows[-1] = 1
            rows[-1, KV] = self.tokens
        return rows

    def macs(self, rows: Rows, *, embedded: int | None = None) -> float:
        """Rows by layer -> multiply-adds. `embedded`: patches embedded anew, by default all."""
        config, dim = self.config, self.config.embed_dim
        fed = (3 if config.swiglu else 2) * dim * config.mlp_width
        per_row = np.array([dim * dim, 2 * dim * dim, 2 * self.tokens * dim, dim * dim, fed])
        patches = self.tokens - config.prefix if embedded is None else embedded
        return float((rows * per_row).sum()) + patches * config.in_chans * config.patch_size**2 * dim

    @property
    def plain_macs(self) -> float:
        """Multiply-adds of a plain pass."""
        return self.macs(self.plain_rows)

    def step(self, features: NDArray[np.float32], rows: Rows, *, embedded: int | None = None) -> Step:
        """The step of a pass that computed `rows`."""
        plain, linear = self.plain_rows, list(LINEAR)
        return Step(
            features,
            int(rows[:, linear].sum()),
            int(plain[:, linear].sum()),
            self.macs(rows, embedded=embedded),
            self.plain_macs,
            encoded=True,
            full=bool((rows >= plain).all()),
            detail=rows,
            embedded=self.tokens - self.config.prefix if embedded is None else embedded,
        )

    def held(self, features: NDArray[np.float32], *, embedded: int) -> Step:
        """The step of a frame that was embedded, to see whether it may be held, and was."""
        nothing = np.zeros_like(self.plain_rows)
        step = self.step(features, nothing, embedded=embedded)
        return replace(step, encoded=False, detail=None)
