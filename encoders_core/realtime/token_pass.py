"""The passes of a token-gated ViT: dense, which fills a camera's cache, and gated, which computes what has changed.

In a gated pass the linear layers run over the changed rows of all its cameras in one matrix product; gates and attention
are each camera's own.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders_core.errors import OptionError
from encoders_core.models.layers import Block, Mlp
from encoders_core.models.packed_linear import PackedLinear
from encoders_core.models.vit import VisionTransformer
from encoders_core.realtime import token_kernels as kernels
from encoders_core.realtime.attention_kernel import attend
from encoders_core.realtime.token_cache import BlockMemory, TokenCache
from encoders_core.realtime.token_lane import Counts, Lane
from encoders_core.realtime.token_plain import AttentionWatch, Floats, GateMemory, Indices, Norm

Layer = Callable[[Tensor], Tensor]
_Room = NDArray[np.float32]
"""(2, M, D): where the rows of all lanes lie side by side for a product, the same memory in every block."""
_FIRST: Final = np.zeros(1, np.int64)
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
        self._prepared, self._room = False, np.zeros((2, 0, network.config.embed_dim), np.float32)
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
            block.gated(index, lanes, self._room_for(lanes))
            yield
        x = torch.from_numpy(np.stack([lane.x for lane in lanes]))
        features: Floats = self.network.forward_head(self.network.norm(x)).numpy()
        return features

    def _room_for(self, lanes: Sequence[Lane]) -> _Room:
        rows = bucket(sum(len(lane.x) for lane in lanes))
        if rows > self._room.shape[1]:
            self._room = np.zeros((2, rows, self._room.shape[2]), np.float32)
        return self._room


@dataclass(slots=True)
class _Batch:
    """Rows of several lanes in one matrix: those of each lane, and where the next begin."""

    room: Floats
    lanes: list[Lane] = field(default_factory=list)
    rows: list[Indices] = field(default_factory=list)
    used: int = 0

    @property
    def left(self) -> Floats:
        """Room for more rows."""
        return self.room[self.used :]

    def add(self, lane: Lane, rows: Indices) -> None:
        """`rows` of `lane` have been laid into `left`."""
        self.lanes.append(lane)
        self.rows.append(rows)
        self.used += len(rows)

    def through(self, layer: Layer, width: int) -> Iterator[tuple[Lane, Indices, Floats]]:
        """(M, D) -> (M, width), one matrix product; what came of each lane's rows."""
        computed: Floats = np.empty((0, width), np.float32)
        if self.used:
            computed = layer(torch.from_numpy(self.room[: bucket(self.used)])).numpy()
        start = 0
        for lane, rows in zip(self.lanes, self.rows, strict=True):
            yield lane, rows, computed[start : start + len(rows)]
            start += len(rows)


class _GatedBlock:
    """One block of the network. With `class_only`, behind its keys and values the class token alone is computed."""

    def __init__(self, block: Block, *, class_only: bool) -> None:
        self._block, self._class_only = block, class_only
        self._heads, self._dim = block.attn.num_heads, block.attn.proj.in_features
        self._norm1, self._norm2 = _norm(block.norm1), _norm(block.norm2)
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
        return kernels.measure(tokens, self._norm1, memory.kv.reference, np.empty_like(tokens))

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

    def gated(self, index: int, lanes: Sequence[Lane], room: _Room) -> None:
        """Take the lanes' tokens through this block, in place."""
        if self._class_only:
            self._gated_class(index, lanes, room)
            return
        kv, query = self._open_attention(index, lanes, room)
        proj, looked = self._attend(index, lanes, room, query)
        mlp = self._feed(index, lanes, room)
        for lane, *rows in zip(lanes, query.rows, kv.rows, looked, proj.rows, mlp.rows, strict=True):
            lane.counts.append(Counts(*map(len, rows)))

    def _open_attention(self, index: int, lanes: Sequence[Lane], room: _Room) -> tuple[_Batch, _Batch]:
        """Queries, keys and values that have to be computed, computed."""
        kv, query = _Batch(room[0]), _Batch(room[1])
        for lane in lanes:
            opened, asked = lane.open_attention(index, self._norm1, kv.left, query.left)
            kv.add(lane, opened)
            query.add(lane, asked)
        for lane, rows, computed in kv.through(self._kv, 2 * self._dim):
            kernels.store(lane.cache.blocks[index].kv.output, rows, computed)
        for lane, rows, computed in query.through(self._query, self._dim):
            kernels.store(lane.cache.blocks[index].query.output, rows, computed)
        return kv, query

    def _attend(self, index: int, lanes: Sequence[Lane], room: _Room, query: _Batch) -> tuple[_Batch, list[Indices]]:
        """What attention and the projection of it add to the tokens; which rows of attention were looked at."""
        proj, looked = _Batch(room[0]), []
        for lane, asked in zip(lanes, query.rows, strict=True):
            rows, memory = lane.look_at(index, asked), lane.cache.blocks[index]
            seen = attend(memory.query.output, rows, memory.kv.output, self._heads)
            proj.add(lane, lane.open_projection(index, rows, seen, proj.left))
            looked.append(rows)
        for lane, rows, computed in proj.through(self._proj, self._dim):
            kernels.settle(lane.x, lane.cache.blocks[index].proj.output, rows, computed)
        return proj, looked

    def _feed(self, index: int, lanes: Sequence[Lane], room: _Room) -> _Batch:
        """What the feed-forward adds to the tokens."""
        mlp = _Batch(room[0])
        for lane in lanes:
            mlp.add(lane, lane.open_gate(index, "mlp", self._norm2, mlp.left))
        for lane, rows, computed in mlp.through(self._mlp, self._dim):
            kernels.settle(lane.x, lane.cache.blocks[index].mlp.output, rows, computed)
        return mlp

    def _gated_class(self, index: int, lanes: Sequence[Lane], room: _Room) -> None:
        kv = _Batch(room[0])
        for lane in lanes:
            kv.add(lane, lane.open_gate(index, "kv", self._norm1, kv.left))
        for lane, rows, computed in kv.through(self._kv, 2 * self._dim):
            kernels.store(lane.cache.blocks[index].kv.output, rows, computed)
        queries = self._query(torch.from_numpy(np.stack([lane.normed[0] for lane in lanes]))).numpy()
        looked = [
            attend(row[None], _FIRST, lane.cache.blocks[index].kv.output, self._heads)
            for row, lane in zip(queries, lanes, strict=True)
        ]
        x = torch.from_numpy(np.stack([lane.x[0] for lane in lanes]))
        x = x + self._proj(torch.from_numpy(np.concatenate(looked)))
        x = x + self._mlp(self._block.norm2(x))
        for lane, row, rows in zip(lanes, x.numpy(), kv.rows, strict=True):
            lane.x = row[None]
            lane.counts.append(Counts(1, len(rows), 1, 1, 1))


def bucket(rows: int) -> int:
    """A count of rows -> the next that products are made for: sixteen of them from one power of two to the next.

    oneDNN takes about a millisecond to make the code for a product of another size, and keeps a thousand.
    """
    step = 1 << max(0, rows.bit_length() - 5)
    return -(-rows // step) * step


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight.detach().numpy(), norm.bias.detach().numpy(), norm.eps)


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
