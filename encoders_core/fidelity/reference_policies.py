"""Token policies on a plain ViT, written to be read: what a fast engine must equal at the same selection of rows.

Three gates a block (before QKV, projection and feed-forward) keep for each token the input that its cached output was
computed from. A token whose input has moved away from that reference is computed again; the others keep output *and*
reference, so what was not paid stays owed (https://arxiv.org/abs/2308.13494, the token-wise block). Attention is dense.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from numpy.typing import NDArray
from torch import Tensor

from encoders_core.errors import OptionError
from encoders_core.fidelity.policy import KV, MLP, PROJECTION, Frame, Step
from encoders_core.fidelity.subject import DenseVitEncoder
from encoders_core.models.layers import Block
from encoders_core.models.vit import VitConfig
from encoders_core.preprocessing import normalise
from encoders_core.realtime.change import Reduced
from encoders_core.realtime.change_kernels import CELL_PX, LOW_PASS_PX, cell_differences, reduce_frame

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Site:
    """One gate: which block, and in front of what (KV, PROJECTION, MLP); queries go with keys and values."""

    block: int
    layer: int


Selector = Callable[[Site, Tensor, float], Tensor]
"""Which tokens of a gate are computed again: the distance of each token's input from its reference (N,), and the typical
length of an input -> (N,) bool."""


def over_threshold(tau: float) -> Selector:
    """The tokens whose input moved by more than `tau` times its typical length; at 0 all that moved at all."""
    return lambda _site, change, scale: change > tau * scale


def random_share(share: float, seed: int = 0) -> Selector:
    """A random `share` of the tokens, whatever they show."""
    generator = torch.Generator().manual_seed(seed)

    def select(_site: Site, change: Tensor, _scale: float) -> Tensor:
        chosen = torch.zeros(change.shape[0], dtype=torch.bool)
        chosen[torch.randperm(change.shape[0], generator=generator)[: round(share * change.shape[0])]] = True
        return chosen

    return select


class _How(TypedDict):
    always: int
    forget: bool


class Gate:
    """One layer with its cache: input (N, D) -> output (N, E), computed anew only where the selector says so."""

    def __init__(self, layer: Callable[[Tensor], Tensor], site: Site) -> None:
        self._layer, self.site = layer, site
        self.reference: Tensor | None = None
        self.output = torch.empty(0)
        self.owed = torch.empty(0)
        """(N,) how far each input is from its reference since the last frame."""
        self.scale = 0.0
        """Typical length of an input: the mean of the first frame's."""

    def __call__(self, x: Tensor, select: Selector, *, always: int, forget: bool) -> tuple[Tensor, int]:
        """(N, D) -> (N, E) and how many rows were computed; the first `always` rows are, whatever they did.

        `forget` overwrites the reference of all tokens, also of those that were not computed: what they owe is lost.
        """
        if self.reference is None:
            self.reference, self.output = x.clone(), self._layer(x)
            self.scale = float(x.norm(dim=1).mean())
            self.owed = torch.zeros(x.shape[0])
            return self.output, x.shape[0]
        change = (x - self.reference).norm(dim=1)
        chosen = select(self.site, change, self.scale)
        chosen[:always] = True
        self.owed = change.masked_fill(chosen, 0.0)
        rows = chosen.nonzero().flatten()
        if rows.numel():
            self.output[rows] = self._layer(x[rows])
        self.reference[slice(None) if forget else rows] = x if forget else x[rows]
        return self.output, int(rows.numel())


class GatedBlock:
    """One block with its three gates. `last` computes the class token alone behind the attention."""

    def __init__(self, block: Block, index: int, *, last: bool) -> None:
        if not block.pre_norm:
            raise OptionError("token gates need norms in front of attention and feed-forward (pre_layer_norm)")
        self._block, self._last = block, last
        attention = block.attn
        self.qkv = Gate(attention.qkv, Site(index, KV))
        self.projection = Gate(lambda x: block.ls1(attention.proj(x)), Site(index, PROJECTION))
        self.mlp = Gate(lambda x: block.ls2(block.mlp(x)), Site(index, MLP))

    def __call__(self, x: Tensor, select: Selector, *, always: int, forget: bool) -> tuple[Tensor, list[int]]:
        """(N, D) -> (N, D), or (1, D) of the last block; and the rows that each gate computed."""
        block, how = self._block, _How(always=always, forget=forget)
        qkv, rows_qkv = self.qkv(block.norm1(x), select, **how)
        queries = 1 if self._last else x.shape[0]
        mixed = attend(qkv[:queries], qkv, block.attn.num_heads)
        projected, rows_projection = self.projection(mixed, select, **how)
        x = x[:queries] + projected
        fed, rows_mlp = self.mlp(block.norm2(x), select, **how)
        return x + fed, [1 if self._last else rows_qkv, rows_qkv, queries, rows_projection, rows_mlp]


def attend(rows: Tensor, context: Tensor, num_heads: int) -> Tensor:
    """Queries of `rows` (M, 3D), keys and values of `context` (N, 3D) -> (M, D)."""
    query = rows.chunk(3, dim=1)[0]
    _, key, value = context.chunk(3, dim=1)
    q, k, v = (part.reshape(part.shape[0], num_heads, -1).transpose(0, 1) for part in (query, key, value))
    return F.scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1).flatten(1)


class TokenPolicy:
    """A ViT with three token-wise gates a block and dense attention, for one camera.

    `selector` makes the rule anew at each reset; `forget` overwrites all references every frame (STGT, the drift
    control).
    """

    def __init__(
        self, name: str, encoder: DenseVitEncoder, selector: Callable[[], Selector], *, forget: bool = False
    ) -> None:
        self.name, self._encoder, self._selector, self._forget = name, encoder, selector, forget
        self.reset()

    def reset(self) -> None:
        """Forget the camera."""
        network = self._encoder.network
        last = len(network.layers) - 1 if network.config.pool == "cls" else -1
        self.blocks = [GatedBlock(block, i, last=i == last) for i, block in enumerate(network.layers)]
        self._select = self._selector()

    @torch.inference_mode()
    def step(self, frame: Frame, at_ns: int) -> Step:  # noqa: ARG002  it compares frames, not times
        """One frame through the gates."""
        encoder, network = self._encoder, self._encoder.network
        x = network.embed(normalise(torch.from_numpy(frame)[None], encoder.descriptor.input))[0]
        counted = []
        for block in self.blocks:
            x, rows = block(x, self._select, always=network.config.prefix, forget=self._forget)
            counted.append(rows)
        features = network.forward_head(network.norm(x)[None])[0].numpy()
        return encoder.cost.step(features, np.asarray(counted))


class PatchWatch:
    """Which tokens changed at the input: the picture of a patch differs from the one last let through by `grey_levels`.

    The prefix always counts as changed. Raises OptionError for patches of another size than the measure's cells.
    """

    def __init__(self, config: VitConfig, grey_levels: float) -> None:
        if config.patch_size != CELL_PX:
            raise OptionError(f"expected patches of {CELL_PX} pixels, as those of the measure of change")
        self._prefix, self._grey_levels = config.prefix, grey_levels
        self.reset()

    def reset(self) -> None:
        """Forget the camera."""
        self._seen: Reduced | None = None

    def changed(self, frame: Frame) -> Tensor:
        """(H, W, 3) uint8 -> indices of the tokens that changed; their pictures become the new reference."""
        small = reduce_frame(frame)
        if self._seen is None:
            self._seen = small
            cells = np.ones(cell_differences(small, small).shape, bool)
        else:
            cells = cell_differences(small, self._seen) > self._grey_levels
            side = CELL_PX // LOW_PASS_PX
            mask = np.kron(cells, np.ones((side, side), bool))
            self._seen[mask] = small[mask]
        return torch.from_numpy(np.concatenate([np.ones(self._prefix, bool), cells.ravel()])).nonzero().flatten()


class StaleKV:
    """Only patches that changed at the input flow; keys and values of the others stay as they were computed last.

    A patch flows when its picture differs from the one it was computed from by more than `grey_levels` on average. The
    class token always does. Attention has one row for each token that flows.
    """

    name = "stale_kv"

    def __init__(self, encoder: DenseVitEncoder, grey_levels: float) -> None:
        self._encoder, self._watch = encoder, PatchWatch(encoder.network.config, grey_levels)
        self.reset()

    def reset(self) -> None:
        """Forget the camera."""
        self._watch.reset()
        self._qkv: list[Tensor] = []
        self._tokens = torch.empty(0)

    @torch.inference_mode()
    def step(self, frame: Frame, at_ns: int) -> Step:  # noqa: ARG002  it compares frames, not times
        """The changed patches through all blocks."""
        encoder, network = self._encoder, self._encoder.network
        rows = self._watch.changed(frame)
        x = network.embed(normalise(torch.from_numpy(frame)[None], encoder.descriptor.input))[0][rows]
        last = network.config.pool == "cls"
        counted = []
        for index, block in enumerate(network.layers):
            final = last and index == len(network.layers) - 1
            fresh = block.attn.qkv(block.norm1(x))
            if len(self._qkv) <= index:
                self._qkv.append(fresh.clone())
            else:
                self._qkv[index][rows] = fresh
            if final:
                x, fresh = x[:1], fresh[:1]
            x = x + block.ls1(block.attn.proj(attend(fresh, self._qkv[index], block.attn.num_heads)))
            x = x + block.ls2(block.mlp(block.norm2(x)))
            counted.append([x.shape[0], int(rows.numel()), *[x.shape[0]] * 3])
        return encoder.cost.step(self._pooled(x, rows), np.asarray(counted))

    def _pooled(self, x: Tensor, rows: Tensor) -> Vector:
        network = self._encoder.network
        if network.config.pool == "cls":
            tokens = x
        else:
            if not self._tokens.numel():
                self._tokens = x.clone()
            self._tokens[rows] = x
            tokens = self._tokens
        features: Vector = network.forward_head(network.norm(tokens)[None])[0].numpy()
        return features
