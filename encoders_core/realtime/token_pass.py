"""The passes of a token-gated ViT: dense, which fills a camera's cache, and gated, which computes what has changed.

In a gated pass the linear layers run over the changed rows of all its cameras in one matrix product; gates and attention
are each camera's own.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor

from encoders_core.models.layers import Block
from encoders_core.models.vit import VisionTransformer
from encoders_core.realtime.token_cache import GATES, AttentionWatch, BlockMemory, Gate, GateMemory, TokenCache

_SLOPE_RATE: Final = 0.3
_MOVED: Final = 1e-3  # of `moved`: below it a slope would be noise over nothing
_MAX_MOVED: Final = 1e4  # float32 sums stay exact enough


@torch.inference_mode()
def dense_pass(network: VisionTransformer, cache: TokenCache, image: Tensor) -> Generator[None, None, Tensor]:
    """(1, C, H, W) normalised -> yields between blocks, returns (output_dim,): `network(image)[0]` to the bit.

    The cache is filled anew.
    """
    cache.reset()
    x, blocks = network.embed(image), list[BlockMemory]()
    for index, block in enumerate(network.layers):
        x, memory = _dense_block(block, x, only_class=_only_class(network, index))
        blocks.append(memory)
        yield
    cache.blocks = blocks
    return network.forward_head(network.norm(x))[0]


def _only_class(network: VisionTransformer, index: int) -> bool:
    """Whether of this block's outputs the class token's alone is used."""
    return network.config.pool == "cls" and index == network.config.depth - 1


def _dense_block(block: Block, x: Tensor, *, only_class: bool) -> tuple[Tensor, BlockMemory]:
    normed, rows = block.norm1(x), x.shape[1]
    if only_class:
        q, k, v = block.attn.heads(normed[:, :1], normed)
        qkv, x = torch.cat((k, v), dim=1).transpose(1, 2).flatten(2), x[:, :1]
    else:
        qkv = block.attn.qkv(normed)
        q, k, v = (part.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    looked = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    projected = block.ls1(block.attn.proj(looked))
    x = x + projected
    middle = block.norm2(x)
    fed = block.ls2(block.mlp(middle))
    memory = BlockMemory(
        GateMemory(normed[0], qkv[0]),
        GateMemory(looked[0], projected[0]),
        GateMemory(middle[0], fed[0]),
        AttentionWatch.of(rows),
    )
    return x + fed, memory


class Counts(NamedTuple):
    """Rows of one block that were computed by its QKV, looked at by its attention, and computed behind it."""

    qkv: int
    attention: int
    proj: int
    mlp: int


@dataclass
class Lane:
    """One camera in a gated pass: its cache, its tokens (N, D) on their way through the blocks, how many may be computed.

    `forced` (N,) is True for rows that every gate lets through: the rolling refresh. A subclass may choose otherwise.
    """

    cache: TokenCache
    x: Tensor
    row_cap: int | None = None
    forced: Tensor | None = None
    counts: list[Counts] = field(default_factory=list)

    def choose(self, block: int, gate: Gate, change: Tensor, rows: Tensor | None = None) -> Tensor:
        """(M,) lengths of change of all rows, or of `rows` -> indices into them to compute; the most urgent if capped."""
        limit = self._limit(block, gate)
        if rows is not None:
            limit = limit[rows]
        chosen = (change > limit).nonzero().squeeze(1)
        if self.row_cap is None or len(chosen) <= self.row_cap:
            return chosen
        limit = limit[chosen]
        urgency = (change[chosen] / limit).where(limit >= 0, torch.inf)
        return chosen[urgency.topk(self.row_cap).indices]

    def look_at(self, block: int, changed: Tensor) -> Tensor:
        """Rows whose query changed -> all rows of attention to look at: these, and those that may have moved too far."""
        watch = self.cache.blocks[block].watch
        moved = (watch.slope * (watch.moved - watch.seen)).nan_to_num_(0.0, torch.inf)
        needed = watch.drift + moved > self._limit(block, "proj")
        needed[changed] = True
        return needed.nonzero().squeeze(1)

    def _limit(self, block: int, gate: Gate) -> Tensor:
        """(N,); negative where a row is let through whatever it is."""
        if self.cache.limits is None:
            raise AssertionError("a gated pass before the importance of rows was measured")
        limit = self.cache.limits[block, GATES.index(gate)]
        return limit if self.forced is None else limit.masked_fill(self.forced, -1.0)


@torch.inference_mode()
def gated_pass(network: VisionTransformer, lanes: Sequence[Lane]) -> Generator[None, None, Tensor]:
    """Lanes with warm caches -> yields between blocks, returns (B, output_dim). Changed rows alone are computed.

    With limits of 0 it equals the plain encoder but for rounding.
    """
    for index, block in enumerate(network.layers):
        run = _last_block if _only_class(network, index) else _gated_block
        run(block, index, lanes)
        yield
    return network.forward_head(network.norm(torch.stack([lane.x for lane in lanes])))


Picked = tuple[Tensor, Tensor]
"""Indices (M,) and the rows (M, D) to compute."""


def _gated_block(block: Block, index: int, lanes: Sequence[Lane]) -> None:
    memories = [lane.cache.blocks[index] for lane in lanes]
    pairs = list(zip(lanes, memories, strict=True))
    opened = [_open(lane, index, "qkv", memory.qkv, block.norm1(lane.x), memory.watch) for lane, memory in pairs]
    _compute(block.attn.qkv, [memory.qkv for memory in memories], opened)
    attended = [_attend(block, index, *pair, changed) for pair, (changed, _) in zip(pairs, opened, strict=True)]
    _compute(
        lambda rows: block.ls1(block.attn.proj(rows)), [memory.proj for memory in memories], [p for p, _ in attended]
    )
    for lane, memory in pairs:
        lane.x = lane.x + memory.proj.output
    fed = [_open(lane, index, "mlp", memory.mlp, block.norm2(lane.x)) for lane, memory in pairs]
    _compute(lambda rows: block.ls2(block.mlp(rows)), [memory.mlp for memory in memories], fed)
    for (lane, memory), first, (second, looked), third in zip(pairs, opened, attended, fed, strict=True):
        lane.x = lane.x + memory.mlp.output
        lane.counts.append(Counts(len(first[0]), looked, len(second[0]), len(third[0])))


def _last_block(block: Block, index: int, lanes: Sequence[Lane]) -> None:
    """Keys and values of the changed rows, then the class token alone."""
    memories = [lane.cache.blocks[index] for lane in lanes]
    attn, dim = block.attn, lanes[0].x.shape[1]
    weight, bias = attn.qkv.weight, attn.qkv.bias
    query_bias, other_bias = (None, None) if bias is None else (bias[:dim], bias[dim:])
    normed = [block.norm1(lane.x) for lane in lanes]
    opened = [
        _open(lane, index, "qkv", memory.qkv, x) for lane, memory, x in zip(lanes, memories, normed, strict=True)
    ]
    _compute(lambda rows: F.linear(rows, weight[dim:], other_bias), [memory.qkv for memory in memories], opened)
    queries = F.linear(torch.cat([x[:1] for x in normed]), weight[:dim], query_bias)
    looked = [_look(query[None], memory, attn.num_heads) for query, memory in zip(queries, memories, strict=True)]
    x = torch.cat([lane.x[:1] for lane in lanes]) + block.ls1(attn.proj(torch.cat(looked)))
    x = x + block.ls2(block.mlp(block.norm2(x)))
    for lane, row, (changed, _) in zip(lanes, x, opened, strict=True):
        lane.x = row[None]
        lane.counts.append(Counts(len(changed), 1, 1, 1))


def _open(
    lane: Lane, index: int, gate: Gate, memory: GateMemory, x: Tensor, watch: AttentionWatch | None = None
) -> Picked:
    """A gate: (N, D) input -> the rows that it lets through, remembered as the new reference."""
    change = torch.linalg.vector_norm(x - memory.reference, dim=1)
    indices = lane.choose(index, gate, change)
    rows = x[indices]
    memory.reference[indices] = rows
    if watch is not None:
        watch.moved += float(change[indices].sum())
    return indices, rows


def _compute(layer: Callable[[Tensor], Tensor], memories: list[GateMemory], picked: list[Picked]) -> None:
    """One matrix product for the rows of all cameras, the results put where they belong."""
    rows = picked[0][1] if len(picked) == 1 else torch.cat([rows for _, rows in picked])
    if not len(rows):
        return
    done = layer(rows).split([len(indices) for indices, _ in picked])
    for memory, (indices, _), part in zip(memories, picked, done, strict=True):
        memory.output[indices] = part


def _attend(block: Block, index: int, lane: Lane, memory: BlockMemory, changed: Tensor) -> tuple[Picked, int]:
    """The rows of attention that have moved too far from what the projection saw of them; how many were looked at."""
    rows = lane.look_at(index, changed)
    looked = _look(memory.qkv.output[rows, : lane.x.shape[1]], memory, block.attn.num_heads)
    change = torch.linalg.vector_norm(looked - memory.proj.reference[rows], dim=1)
    chosen = lane.choose(index, "proj", change, rows)
    indices, moved = rows[chosen], looked[chosen]
    memory.proj.reference[indices] = moved
    _learn(memory.watch, rows, change, chosen)
    return (indices, moved), len(rows)


def _look(queries: Tensor, memory: BlockMemory, heads: int) -> Tensor:
    """(M, D) queries, each over all keys and values of its camera -> (M, D)."""
    dim = queries.shape[1]
    k, v = memory.qkv.output[:, -2 * dim :].view(-1, 2, heads, dim // heads).permute(1, 2, 0, 3).unsqueeze(1)
    q = queries.view(1, -1, heads, dim // heads).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)


def _learn(watch: AttentionWatch, rows: Tensor, change: Tensor, chosen: Tensor) -> None:
    """What looking at `rows` showed of how they move."""
    grown = watch.moved - watch.seen[rows]
    found = (change - watch.drift[rows]).clamp_(min=0) / grown.clamp(min=_MOVED)
    before = watch.slope[rows]
    after = torch.where(before.isinf(), found, torch.lerp(before, found, _SLOPE_RATE))
    watch.slope[rows] = torch.where(grown > _MOVED, after, before)
    watch.seen[rows] = watch.moved
    change[chosen] = 0.0
    watch.drift[rows] = change
    if watch.moved > _MAX_MOVED:
        watch.seen -= watch.moved
        watch.moved = 0.0
