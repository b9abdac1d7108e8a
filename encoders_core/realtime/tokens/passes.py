"""The passes of a token-gated ViT: dense, which fills a camera's cache, and gated, which computes what has changed.

In a gated pass the linear layers run over the changed rows of all its cameras in one matrix product; gates and attention
are each camera's own.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders_core.errors import OptionError
from encoders_core.models.layers import Block
from encoders_core.models.vit import VisionTransformer
from encoders_core.preprocessing import InputSpec
from encoders_core.realtime.tokens import kernels
from encoders_core.realtime.tokens.attention import attend
from encoders_core.realtime.tokens.cache import TokenCache
from encoders_core.realtime.tokens.embedding import Embedding
from encoders_core.realtime.tokens.lane import Counts, Lane
from encoders_core.realtime.tokens.memory import PRODUCTS, BlockMemory, Product
from encoders_core.realtime.tokens.plain import Floats, Indices, Norm
from encoders_core.realtime.tokens.row_product import Room, RowLayer, Shelf, linear_rows, mlp_rows

_FIRST: Final = np.zeros(1, np.int64)
_NONE: Final = np.zeros(0, np.int64)


class TokenPasses:
    """A ViT with norms in front of its layers, run densely or by its changed rows; it holds no camera's state."""

    def __init__(self, network: VisionTransformer) -> None:
        if not network.config.pre_layer_norm:
            raise OptionError(
                "expected a ViT with norms in front of attention and feed-forward, got one with them behind"
            )
        self.network = network.eval()
        lonely = network.layers[-1] if network.config.pool == "cls" else None
        shelf = Shelf(network)  # which is filled in the order of use
        self._embedding = Embedding(network, shelf)
        self._blocks = [_GatedBlock(block, shelf, class_only=block is lonely) for block in network.layers]
        self._room = self._blocks[0].room(0)

    @torch.inference_mode()
    def embed(self, frame: NDArray[np.uint8], spec: InputSpec) -> Floats:
        """(H, W, 3) uint8 as `spec` wants it but for its size -> (N, D) float32, the input of the blocks.

        What the network makes of the normalised frame, to the bit.
        """
        return self._embedding.whole(frame, spec)

    @torch.inference_mode()
    def embed_changed(
        self, cache: TokenCache, frame: NDArray[np.uint8], spec: InputSpec, forced: Indices = _NONE
    ) -> tuple[Floats, int]:
        """A warm camera's (H, W, 3) uint8, of the model's own size -> (N, D), and how many patches had to be embedded.

        Those that are further from `cache.patches` than `cache.patch_limits`, and those `forced`; the others are as they were.
        The rows are the memory's own.
        """
        if cache.patches is None or cache.patch_limits is None:
            raise AssertionError("a frame is compared with none")
        memory, room = cache.patches, self._room_for(len(cache.patches.tokens))
        count = self._embedding.renew(memory, frame, spec, cache.patch_limits, forced=forced, room=room)
        return memory.tokens, count

    def first_change(self, cache: TokenCache, tokens: Floats) -> Floats:
        """(N, D) of `embed` -> (N,) how far each row is from what the first gate last let through."""
        return self._blocks[0].first_change(cache.blocks[0], tokens)

    @torch.inference_mode()
    def dense(self, cache: TokenCache, tokens: Floats) -> Generator[None, None, Floats]:
        """(N, D) of `embed` -> yields between blocks, returns (output_dim,): what the network gives, to the bit.

        The cache is filled anew.
        """
        x, memories = torch.from_numpy(tokens)[None], cache.begin(self.network.config, len(tokens))
        for block, memory in zip(self._blocks, memories, strict=True):
            x = block.dense(x, memory)
            yield
        cache.fill()
        features: Floats = self.network.forward_head(self.network.norm(x))[0].numpy()
        return features

    @torch.inference_mode()
    def gated(self, lanes: Sequence[Lane]) -> Generator[None, None, Floats]:
        """Lanes with warm caches -> yields between blocks, returns (B, output_dim). Changed rows alone are computed.

        With limits of 0 it equals the network but for rounding.
        """
        room = self._room_for(sum(len(lane.x) for lane in lanes))
        for index, block in enumerate(self._blocks):
            block.gated(index, lanes, room)
            yield
        x = torch.from_numpy(np.stack([lane.x for lane in lanes]))
        features: Floats = self.network.forward_head(self.network.norm(x)).numpy()
        return features

    def _room_for(self, rows: int) -> Room:
        if rows > len(self._room.out):
            self._room = self._blocks[0].room(rows)
        return self._room


@dataclass(slots=True)
class _Batch:
    """Rows of several lanes in one matrix, one of the two there is room for: those of each lane, and where the next begin."""

    room: Room
    block: int
    product: Product
    lanes: list[Lane] = field(default_factory=list)
    rows: list[Indices] = field(default_factory=list)
    used: int = 0

    @property
    def left(self) -> Floats:
        """Room for more rows."""
        return self._rows[self.used :]

    @property
    def _rows(self) -> Floats:
        """Queries have a place of their own: they are laid down before keys and values are computed."""
        rows: Floats = self.room.rows[int(self.product == "query")]
        return rows

    def add(self, lane: Lane, rows: Indices) -> None:
        """`rows` of `lane` have been laid into `left`."""
        self.lanes.append(lane)
        self.rows.append(rows)
        self.used += len(rows)

    def put(self, lane: Lane, row: Floats) -> None:
        """The first row of `lane`, (D,) or (1, D)."""
        self.left[0] = row
        self.add(lane, _FIRST)

    def through(self, layer: RowLayer) -> Iterator[tuple[Lane, Indices, Floats]]:
        """One matrix product; what came of each lane's rows."""
        asks = [lane.cache.blocks[self.block].asks[self.product] for lane in self.lanes]
        ask = asks[0] if len(asks) == 1 else np.concatenate(asks)
        computed, start = layer(self._rows, self.used, self.room, ask), 0
        for lane, rows in zip(self.lanes, self.rows, strict=True):
            yield lane, rows, computed[start : start + len(rows)]
            start += len(rows)


class _GatedBlock:
    """One block of the network. With `class_only`, behind its keys and values the class token alone is computed."""

    def __init__(self, block: Block, shelf: Shelf, *, class_only: bool) -> None:
        self._block, self._class_only = block, class_only
        self._heads, self._dim = block.attn.num_heads, block.attn.proj.in_features
        self._norm1, self._norm2 = _norm(block.norm1), _norm(block.norm2)
        # In the order in which they are used.
        self._kv = linear_rows(block.attn.qkv, shelf, slice(self._dim, None))
        self._query = linear_rows(block.attn.qkv, shelf, slice(self._dim))
        self._proj = linear_rows(block.attn.proj, shelf, scale=block.ls1)
        self._mlp = mlp_rows(block.mlp, shelf, block.ls2)

    def room(self, rows: int) -> Room:
        """For products of so many rows."""
        hidden = self._block.mlp.fc1.out_features
        return Room.of(rows, self._dim, hidden)

    def first_change(self, memory: BlockMemory, tokens: Floats) -> Floats:
        """(N, D) -> (N,)."""
        return kernels.measure(tokens, self._norm1, memory.kv.reference, np.empty_like(tokens))

    def dense(self, x: Tensor, memory: BlockMemory) -> Tensor:
        """(1, N, D) -> (1, N, D), or (1, 1, D) of the class token; all that was computed is left in `memory`."""
        block, attn = self._block, self._block.attn
        normed = block.norm1(x)
        if self._class_only:
            q, k, v = attn.heads(normed[:, :1], normed)
            x = x[:, :1]
        else:
            q, k, v = attn.heads(normed)
            _keep(memory.query.reference, normed)
            _keep(memory.query.output, _rows(q))
        looked = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        projected = block.ls1(attn.proj(looked))
        x = x + projected
        middle = block.norm2(x)
        fed = block.ls2(block.mlp(middle))
        _keep(memory.kv.reference, normed)
        _keep(memory.kv.output[:, : self._dim], _rows(k))
        _keep(memory.kv.output[:, self._dim :], _rows(v))
        _keep(memory.proj.reference, looked)
        _keep(memory.proj.output, projected)
        _keep(memory.mlp.reference, middle)
        _keep(memory.mlp.output, fed)
        out: Tensor = x + fed
        return out

    def gated(self, index: int, lanes: Sequence[Lane], room: Room) -> None:
        """Take the lanes' tokens through this block, in place."""
        if self._class_only:
            self._gated_class(index, lanes, room)
            return
        kv, query = self._open_attention(index, lanes, room)
        proj, looked = self._attend(index, lanes, room, query)
        mlp = self._feed(index, lanes, room)
        for lane, *rows in zip(lanes, query.rows, kv.rows, looked, proj.rows, mlp.rows, strict=True):
            lane.counts.append(Counts(*map(len, rows)))

    def _open_attention(self, index: int, lanes: Sequence[Lane], room: Room) -> tuple[_Batch, _Batch]:
        """Queries, keys and values that have to be computed, computed."""
        kv, query = _Batch(room, index, "kv"), _Batch(room, index, "query")
        for lane in lanes:
            opened, asked = lane.open_attention(index, self._norm1, kv.left, query.left)
            kv.add(lane, opened)
            query.add(lane, asked)
        for lane, rows, computed in kv.through(self._kv):
            kernels.store(lane.cache.blocks[index].kv.output, rows, computed)
        for lane, rows, computed in query.through(self._query):
            kernels.store(lane.cache.blocks[index].query.output, rows, computed)
        return kv, query

    def _attend(self, index: int, lanes: Sequence[Lane], room: Room, query: _Batch) -> tuple[_Batch, list[Indices]]:
        """What attention and the projection of it add to the tokens; which rows of attention were looked at."""
        proj, looked = _Batch(room, index, "proj"), []
        for lane, asked in zip(lanes, query.rows, strict=True):
            rows, memory = lane.look_at(index, asked), lane.cache.blocks[index]
            seen = attend(memory.query.output, rows, memory.kv.output, self._heads)
            proj.add(lane, lane.open_projection(index, rows, seen, proj.left))
            looked.append(rows)
        for lane, rows, computed in proj.through(self._proj):
            kernels.settle(lane.x, lane.cache.blocks[index].proj.output, rows, computed)
        return proj, looked

    def _feed(self, index: int, lanes: Sequence[Lane], room: Room) -> _Batch:
        """What the feed-forward adds to the tokens."""
        mlp = _Batch(room, index, "mlp")
        for lane in lanes:
            mlp.add(lane, lane.open_gate(index, "mlp", self._norm2, mlp.left))
        for lane, rows, computed in mlp.through(self._mlp):
            kernels.settle(lane.x, lane.cache.blocks[index].mlp.output, rows, computed)
        return mlp

    def _gated_class(self, index: int, lanes: Sequence[Lane], room: Room) -> None:
        kv, query, proj, mlp = (_Batch(room, index, product) for product in PRODUCTS)
        for lane in lanes:
            kv.add(lane, lane.open_gate(index, "kv", self._norm1, kv.left))
        for lane, rows, computed in kv.through(self._kv):
            kernels.store(lane.cache.blocks[index].kv.output, rows, computed)
        for lane in lanes:
            query.put(lane, lane.normed[0])
        looked = [
            attend(row, _FIRST, lane.cache.blocks[index].kv.output, self._heads)
            for lane, _, row in query.through(self._query)
        ]
        for lane, row in zip(lanes, looked, strict=True):
            proj.put(lane, row)
        for lane, _, row in proj.through(self._proj):
            lane.x = lane.x[:1] + row
            mlp.put(lane, self._block.norm2(torch.from_numpy(lane.x)).numpy())
        for lane, _, row in mlp.through(self._mlp):
            lane.x = lane.x + row
        for lane, rows in zip(lanes, kv.rows, strict=True):
            lane.counts.append(Counts(1, len(rows), 1, 1, 1))


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight.detach().numpy(), norm.bias.detach().numpy(), norm.eps)


def _rows(heads: Tensor) -> Tensor:
    """(1, heads, N, D / heads) -> (1, N, heads, D / heads)."""
    return heads.transpose(1, 2)


def _keep(memory: Floats, computed: Tensor) -> None:
    """(1, N, ...) -> (N, D) memory."""
    torch.from_numpy(memory).view(computed.shape[1:]).copy_(computed[0])
