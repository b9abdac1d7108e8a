"""The passes of a token-gated ViT: dense, which fills a camera's cache, and gated, which computes what has changed.

In a gated pass the linear layers run over the changed rows of all its cameras in one matrix product; gates and attention
are each camera's own.
"""

from collections.abc import Callable, Generator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.errors import OptionError
from encoders_core.models.layers import Block, Mlp
from encoders_core.models.packed_linear import PackedLinear
from encoders_core.models.vit import VisionTransformer
from encoders_core.realtime import token_kernels as kernels
from encoders_core.realtime.token_cache import AttentionWatch, BlockMemory, GateMemory, TokenCache
from encoders_core.realtime.token_kernels import Floats, Indices
from encoders_core.realtime.token_lane import Counts, Lane, learn

Layer = Callable[[Tensor], Tensor]
_ROWS: Final = 32
"""Rows that packed weights are laid out for: the layout for 197 costs a tenth more with few, this one nothing with many."""


class TokenPasses:
    """A ViT with norms in front of its layers, run densely or by its changed rows; it holds no camera's state."""

    def __init__(self, network: VisionTransformer) -> None:
        if not network.config.pre_layer_norm:
            raise OptionError(
                "expected a ViT with norms in front of attention and feed-forward, got one with them behind"
            )
        self.network = network.eval()
        lonely = network.layers[-1] if network.config.pool == "cls" else None
        self._prepared = False
        self._blocks = [_GatedBlock(block, class_only=block is lonely) for block in network.layers]

    @torch.inference_mode()
    def prepare(self) -> None:
        """Make the code for every size of product that one camera's passes can want, so that no frame waits for it."""
        if self._prepared or not any(isinstance(one, PackedLinear) for one in self.network.modules()):
            return
        config = self.network.config
        rows = config.prefix + config.grid_hw[0] * config.grid_hw[1]
        for size in sorted({bucket(count) for count in range(1, rows + 1)}):
            for block in (self._blocks[0], self._blocks[-1]):
                block.prepare(size)
        self._prepared = True

    @torch.inference_mode()
    def embed(self, image: Tensor) -> Floats:
        """(1, C, H, W) normalised -> (N, D) float32, the input of the blocks."""
        tokens: Floats = self.network.embed(image)[0].contiguous().numpy()
        return tokens

    def first_change(self, cache: TokenCache, tokens: Floats) -> Floats:
        """(N, D) of `embed` -> (N,) how far each row is from what the first gate last let through."""
        return self._blocks[0].first_change(cache.blocks[0], tokens)

    @torch.inference_mode()
    def dense(self, cache: TokenCache, tokens: Floats) -> Generator[None, None, Floats]:
        """(N, D) of `embed` -> yields between blocks, returns (output_dim,): what the network gives, to the bit.

        The cache is filled anew.
        """
        cache.reset()
        x, memories = torch.from_numpy(tokens)[None], list[BlockMemory]()
        for block in self._blocks:
            x, memory = block.dense(x)
            memories.append(memory)
            yield
        cache.fill(memories)
        features: Floats = self.network.forward_head(self.network.norm(x))[0].numpy()
        return features

    @torch.inference_mode()
    def gated(self, lanes: Sequence[Lane]) -> Generator[None, None, Floats]:
        """Lanes with warm caches -> yields between blocks, returns (B, output_dim). Changed rows alone are computed.

        With limits of 0 it equals the network but for rounding.
        """
        for index, block in enumerate(self._blocks):
            block.gated(index, lanes)
            yield
        x = torch.from_numpy(np.stack([lane.x for lane in lanes]))
        features: Floats = self.network.forward_head(self.network.norm(x)).numpy()
        return features


class _Pick(NamedTuple):
    """Rows `places` of `source` that a gate lets through: they become rows `indices` of its memory."""

    source: Floats
    places: Indices
    memory: GateMemory
    indices: Indices


class _GatedBlock:
    """One block of the network. With `class_only`, behind its keys and values the class token alone is computed."""

    def __init__(self, block: Block, *, class_only: bool) -> None:
        self._block, self._class_only = block, class_only
        self._heads, self._dim = block.attn.num_heads, block.attn.proj.in_features
        self._norm1, self._norm2 = _Norm(block.norm1), _Norm(block.norm2)
        self._query = _linear(block.attn.qkv, 0, self._dim)
        self._kv = _linear(block.attn.qkv, self._dim)
        self._proj = _scaled(_linear(block.attn.proj), block.ls1)
        self._mlp = _scaled(_mlp(block.mlp), block.ls2)

    def prepare(self, rows: int) -> None:
        """Run its products once with so many rows."""
        x = torch.zeros(rows, self._dim)
        for layer in (self._query, self._kv, self._proj, self._mlp):
            layer(x)

    def first_change(self, memory: BlockMemory, tokens: Floats) -> Floats:
        """(N, D) -> (N,)."""
        return self._norm1.measure(tokens, memory.kv.reference, np.empty_like(tokens))

    def dense(self, x: Tensor) -> tuple[Tensor, BlockMemory]:
        """(1, N, D) -> (1, N, D), or (1, 1, D) of the class token; and all that was computed."""
        block, attn, rows = self._block, self._block.attn, x.shape[1]
        normed = block.norm1(x)
        if self._class_only:
            q, k, v = attn.heads(normed[:, :1], normed)
            query, x = GateMemory(*np.empty((2, 0, self._dim), np.float32)), x[:, :1]
        else:
            q, k, v = attn.heads(normed)
            query = _memory(normed.clone(), _rows(q))
        looked = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        projected = block.ls1(attn.proj(looked))
        x = x + projected
        middle = block.norm2(x)
        fed = block.ls2(block.mlp(middle))
        kv = torch.cat((_rows(k), _rows(v)), dim=-1)
        gates = (query, _memory(normed, kv), _memory(looked, projected), _memory(middle, fed))
        return x + fed, BlockMemory(*gates, AttentionWatch.of(rows))

    def gated(self, index: int, lanes: Sequence[Lane]) -> None:
        """Take the lanes' tokens through this block, in place."""
        memories = [lane.cache.blocks[index] for lane in lanes]
        if self._class_only:
            last = [self._open_last(index, lane, memory) for lane, memory in zip(lanes, memories, strict=True)]
            _store(last, _product(self._kv, last))
            self._finish_class(lanes, memories, last)
            return
        asked, opened = zip(
            *(self._open(index, lane, memory) for lane, memory in zip(lanes, memories, strict=True)), strict=True
        )
        _store(opened, _product(self._kv, opened))
        _store(asked, _product(self._query, asked))
        looked = [
            self._attend(index, lane, memory, pick.indices)
            for lane, memory, pick in zip(lanes, memories, asked, strict=True)
        ]
        moved = [pick for pick, _ in looked]
        _settle(lanes, moved, _product(self._proj, moved))
        fed = [self._feed(index, lane, memory.mlp) for lane, memory in zip(lanes, memories, strict=True)]
        _settle(lanes, fed, _product(self._mlp, fed))
        for lane, query, kv, (proj, rows), mlp in zip(lanes, asked, opened, looked, fed, strict=True):
            lane.counts.append(Counts(len(query.indices), len(kv.indices), rows, len(proj.indices), len(mlp.indices)))

    def _open(self, index: int, lane: Lane, memory: BlockMemory) -> tuple[_Pick, _Pick]:
        """The rows whose query is computed, and those whose key and value are."""
        change, asked = self._norm1.measure_both(lane.x, memory.kv.reference, memory.query.reference, lane.normed)
        chosen, queries = lane.choose(index, "kv", change), lane.choose(index, "query", asked)
        memory.watch.moved += float(change[chosen].sum())
        return _Pick(lane.normed, queries, memory.query, queries), _Pick(lane.normed, chosen, memory.kv, chosen)

    def _open_last(self, index: int, lane: Lane, memory: BlockMemory) -> _Pick:
        chosen = lane.choose(index, "kv", self._norm1.measure(lane.x, memory.kv.reference, lane.normed))
        return _Pick(lane.normed, chosen, memory.kv, chosen)

    def _attend(self, index: int, lane: Lane, memory: BlockMemory, changed: Indices) -> tuple[_Pick, int]:
        """The rows of attention that moved too far from what the projection saw of them; how many were looked at."""
        rows = lane.look_at(index, changed)
        looked = self._look(memory.query.output[rows], memory)
        change = kernels.distances(looked, memory.proj.reference, rows)
        chosen = lane.choose(index, "proj", change, rows)
        learn(memory.watch, rows, change, chosen)
        return _Pick(looked, chosen, memory.proj, rows[chosen]), len(rows)

    def _feed(self, index: int, lane: Lane, memory: GateMemory) -> _Pick:
        chosen = lane.choose(index, "mlp", self._norm2.measure(lane.x, memory.reference, lane.normed))
        return _Pick(lane.normed, chosen, memory, chosen)

    def _look(self, queries: Floats, memory: BlockMemory) -> Floats:
        """(M, D) queries, each over all keys and values of its camera -> (M, D)."""
        split = (self._heads, self._dim // self._heads)
        k, v = torch.from_numpy(memory.kv.output).view(-1, 2, *split).permute(1, 2, 0, 3)[:, None]
        q = torch.from_numpy(queries).view(1, -1, *split).transpose(1, 2)
        looked: Floats = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1).numpy()
        return looked

    def _finish_class(self, lanes: Sequence[Lane], memories: list[BlockMemory], opened: list[_Pick]) -> None:
        queries = self._query(torch.from_numpy(np.stack([lane.normed[0] for lane in lanes]))).numpy()
        looked = [self._look(row[None], memory) for row, memory in zip(queries, memories, strict=True)]
        x = torch.from_numpy(np.stack([lane.x[0] for lane in lanes])) + self._proj(
            torch.from_numpy(np.concatenate(looked))
        )
        x = x + self._mlp(self._block.norm2(x))
        for lane, row, pick in zip(lanes, x.numpy(), opened, strict=True):
            lane.x = row[None]
            lane.counts.append(Counts(1, len(pick.indices), 1, 1, 1))


class _Norm:
    """A layer norm as the gates compute it: together with how far each row is from its reference."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self._weight: Floats = norm.weight.detach().numpy()
        self._bias: Floats = norm.bias.detach().numpy()
        self._eps = norm.eps

    def measure(self, x: Floats, reference: Floats, normed: Floats) -> Floats:
        """(N, D) -> (N,) lengths of change; the normalised rows are left in `normed`."""
        return kernels.measure(x, self._weight, self._bias, self._eps, reference, normed)

    def measure_both(self, x: Floats, first: Floats, second: Floats, normed: Floats) -> Floats:
        """The same with two references -> (2, N)."""
        return kernels.measure_both(x, self._weight, self._bias, self._eps, first, second, normed)


def bucket(rows: int) -> int:
    """A count of rows -> the next that products are made for: sixteen of them from one power of two to the next.

    oneDNN takes about a millisecond to make the code for a product of another size, and keeps a thousand.
    """
    step = 1 << max(0, rows.bit_length() - 5)
    return -(-rows // step) * step


def _product(layer: Layer, picks: Sequence[_Pick]) -> list[Floats]:
    """One matrix product for the rows of all cameras; what came of each camera's."""
    ends = list(accumulate(len(pick.places) for pick in picks))
    if not ends[-1]:
        return [np.empty((0, pick.memory.output.shape[1]), np.float32) for pick in picks]
    rows = np.empty((bucket(ends[-1]), picks[0].source.shape[1]), np.float32)
    rows[ends[-1] :] = 0.0
    parts = [slice(end - len(pick.places), end) for end, pick in zip(ends, picks, strict=True)]
    for pick, part in zip(picks, parts, strict=True):
        kernels.let_through(pick.source, pick.places, pick.memory.reference, pick.indices, rows[part])
    computed: Floats = layer(torch.from_numpy(rows)).numpy()
    return [computed[part] for part in parts]


def _store(picks: Sequence[_Pick], results: Sequence[Floats]) -> None:
    for pick, computed in zip(picks, results, strict=True):
        kernels.store(pick.memory.output, pick.indices, computed)


def _settle(lanes: Sequence[Lane], picks: Sequence[_Pick], results: Sequence[Floats]) -> None:
    for lane, pick, rows in zip(lanes, picks, results, strict=True):
        kernels.settle(lane.x, pick.memory.output, pick.indices, rows)


def _rows(heads: Tensor) -> Tensor:
    """(1, heads, N, D / heads) -> (1, N, D), memory of its own."""
    return heads.transpose(1, 2).flatten(2).contiguous()


def _memory(reference: Tensor, output: Tensor) -> GateMemory:
    return GateMemory(reference[0].numpy(), output[0].numpy())


def _scaled(layer: Layer, scale: nn.Module) -> Layer:
    return layer if isinstance(scale, nn.Identity) else lambda rows: scale(layer(rows))


def _mlp(mlp: nn.Module) -> Layer:
    """A feed-forward without the detours of a module: dropout is nothing here, and an activation may be packed."""
    if not isinstance(mlp, Mlp):
        return mlp
    up, down = _linear(mlp.fc1), _linear(mlp.fc2)
    if isinstance(mlp.act, nn.Identity):
        return lambda rows: down(up(rows))
    return lambda rows: down(mlp.act(up(rows)))


def _linear(linear: nn.Linear, first: int = 0, last: int | None = None) -> Layer:
    """The layer, or one of some of its outputs; packed for few rows if it is packed."""
    bias = None if linear.bias is None else linear.bias[first:last].detach()
    weight = linear.weight[first:last].detach()
    if isinstance(linear, PackedLinear):
        return PackedLinear.from_weights(weight, bias, linear.act, linear.compute).frozen(_ROWS)
    return lambda rows: F.linear(rows, weight, bias)
