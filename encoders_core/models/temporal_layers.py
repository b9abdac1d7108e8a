"""What the temporal heads are made of: banded attention, recurrences, convolutions over time and space.

Each runs over whole clips with a mask of the frames that count (`forward`), and, where it looks back only, frame by frame
(`step`, which keeps what it needs in a list that starts empty, and after the first frame neither grows nor is copied). Both
give the same numbers.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.models.layers import Block
from encoders_core.models.rings import Ring


class AttentionLayers(nn.Module):
    """Transformer layers in which a frame looks at those at most `reach` away, or, if causal, back: (B, T, D) -> same."""

    def __init__(self, width: int, num_heads: int, depth: int, reach: int | None, *, causal: bool) -> None:
        super().__init__()
        self.reach, self.causal = reach, causal
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_hidden=4 * width) for _ in range(depth))

    def forward(self, x: Tensor, mask: Tensor | None = None, attention: list[Tensor] | None = None) -> Tensor:
        """(B, T, D), (B, T) True where a frame counts -> (B, T, D); `attention` receives (B, heads, T, T) a layer."""
        allowed = self._allowed(x.shape[1], mask, x.device)
        for block in cast("list[Block]", list(self.blocks)):
            if attention is not None:
                attention.append(block.attention_weights(x, allowed))
            x = block(x, attn_mask=allowed)
        return x

    def step(self, memory: list[Any], x: Tensor) -> Tensor:
        """(B, 1, D) -> (B, 1, D). Remembers keys and values of each layer, of as many frames as it reaches back over."""
        if self.reach is None:
            raise AssertionError("attention without a reach has no end to its memory")
        for index, block in enumerate(cast("list[Block]", list(self.blocks))):
            query, key, value = block.attn.heads(block.norm1(x))
            if len(memory) <= index:
                memory.append(tuple(Ring.like(part[:, :, 0], self.reach + 1) for part in (key, value)))
            keys, values = (ring.push(part[:, :, 0]) for ring, part in zip(memory[index], (key, value), strict=True))
            attended = F.scaled_dot_product_attention(query, keys, values)
            x = x + block.ls1(block.attn.proj(attended.transpose(1, 2).flatten(2)))
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return x

    def _allowed(self, length: int, mask: Tensor | None, device: torch.device) -> Tensor:
        """True where a row may look, (1 or B, 1, T, T); every frame sees itself, so that no row is empty."""
        index = torch.arange(length, device=device)
        distance = index[:, None] - index[None, :]
        allowed = torch.ones_like(distance, dtype=torch.bool)
        if self.causal:
            allowed = allowed & (distance >= 0)
        if self.reach is not None:
            allowed = allowed & (distance.abs() <= self.reach)
        if mask is None:
            return allowed[None, None]
        return ((allowed & mask[:, None, :]) | (distance == 0))[:, None]


class RecurrentLayers(nn.Module):
    """LSTM or GRU over the frames that count, forwards, and unless causal backwards too: (B, T, D) -> (B, T, D).

    With a `reach` shorter than the clip, the output of a frame is that of a recurrence begun `reach` frames before it.
    """

    def __init__(
        self, kind: Literal["lstm", "gru"], width: int, depth: int, reach: int | None, *, causal: bool
    ) -> None:
        super().__init__()
        self.reach, layer = reach, nn.LSTM if kind == "lstm" else nn.GRU
        self.ahead = layer(width, width, depth, batch_first=True)
        self.back = None if causal else layer(width, width, depth, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor | None = None, attention: list[Tensor] | None = None) -> Tensor:  # noqa: ARG002  one signature for all bodies; there is no attention here
        """(B, T, D), (B, T) True where a frame counts -> (B, T, D); frames that do not count are stepped over."""
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        order = (~mask).long().argsort(dim=1, stable=True)  # the frames that count first, in their order
        packed = _take(x, order)
        out = self._run(self.ahead, packed)
        if self.back is not None:
            backwards = _reversal(mask.sum(dim=1), x.shape[1])
            out = out + _take(self._run(self.back, _take(packed, backwards)), backwards)
        return x + _take(out, order.argsort(dim=1))

    def step(self, memory: list[Any], x: Tensor) -> Tensor:
        """(B, 1, D) -> (B, 1, D). Remembers the hidden state; with a `reach`, that of a recurrence for each frame within it.

        These take their steps together, as one batch: each frame begins one, and the oldest is the one that counts.
        """
        begun = 1 if self.reach is None else self.reach + 1
        if not memory:
            memory[:] = [0, None]
        seen, state = memory
        if state is not None and begun > 1:
            for part in state if isinstance(state, tuple) else (state,):
                part[:, seen % begun :: begun] = 0
        out, state = self.ahead(x.repeat_interleave(begun, dim=0), state)
        memory[:] = [seen + 1, state]
        oldest = 0 if seen < begun else (seen + 1) % begun
        return x + cast("Tensor", out)[oldest::begun]

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        length = x.shape[1]
        if self.reach is None or length <= self.reach + 1:
            return cast("Tensor", layer(x)[0])
        last = torch.arange(length, device=x.device)
        first = (last - self.reach).clamp(min=0)
        inside = (first[:, None] + torch.arange(self.reach + 1, device=x.device)).clamp(max=length - 1)
        windows = x[:, inside]  # (B, T, reach + 1, D)
        out = layer(windows.flatten(0, 1))[0].unflatten(0, windows.shape[:2])
        return cast("Tensor", out[:, last, last - first])


class ConvLayers(nn.Module):
    """Convolutions over time, height and width, then the mean over space: (B, T, h, w, D) -> (B, T, D).

    The gaps in time double from layer to layer (WaveNet, https://arxiv.org/abs/1609.03499) until `reach` is used up.
    Causal kernels see a frame and one before it, the others one on each side.
    """

    def __init__(self, width: int, depth: int, reach: int | None, *, causal: bool) -> None:
        super().__init__()
        self.causal, self.gaps = causal, _gaps(depth, reach)
        taps = 2 if causal else 3
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.gaps)
        self.convs = nn.ModuleList(
            nn.Conv3d(width, width, (taps, 3, 3), dilation=(gap, 1, 1), padding=(0, 1, 1)) for gap in self.gaps
        )

    def forward(self, x: Tensor, mask: Tensor | None = None, attention: list[Tensor] | None = None) -> Tensor:  # noqa: ARG002  one signature for all bodies; there is no attention here
        """(B, T, h, w, D), (B, T) True where a frame counts -> (B, T, D); frames that do not count are zeros to others."""
        for norm, conv, gap in zip(self.norms, self.convs, self.gaps, strict=True):
            y = norm(x)
            if mask is not None:
                y = y * mask[:, :, None, None, None].to(y.dtype)
            y = F.pad(y, (0, 0, 0, 0, 0, 0, gap, 0 if self.causal else gap))
            x = x + _convolve(conv, y)
        return x.mean(dim=(2, 3))

    def step(self, memory: list[Any], x: Tensor) -> Tensor:
        """(B, 1, h, w, D) -> (B, 1, D). Remembers as many frames of each layer as its gap is long."""
        if not memory:
            memory.append(0)
            memory.extend(x.new_zeros(x.shape[0], gap, *x.shape[2:]) for gap in self.gaps)
        seen = memory[0]
        for past, norm, conv, gap in zip(memory[1:], self.norms, self.convs, self.gaps, strict=True):
            y, place = norm(x), seen % gap
            pair = torch.cat((past[:, place : place + 1], y), dim=1).permute(0, 4, 1, 2, 3)
            past[:, place] = y[:, 0]
            out = F.conv3d(pair, cast("Tensor", conv.weight), cast("Tensor", conv.bias), padding=(0, 1, 1))
            x = x + F.gelu(out).permute(0, 2, 3, 4, 1)
        memory[0] = seen + 1
        return x.mean(dim=(2, 3))


def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """(B, T, h, w, D) -> (B, T', h, w, D)."""
    return F.gelu(conv(x.permute(0, 4, 1, 2, 3))).permute(0, 2, 3, 4, 1)


def _gaps(depth: int, reach: int | None) -> list[int]:
    """1, 2, 4, ... frames, together no more than `reach`; layers that nothing is left for fall away."""
    gaps: list[int] = []
    for index in range(depth):
        left = 2**index if reach is None else min(2**index, reach - sum(gaps))
        if left > 0:
            gaps.append(left)
    return gaps


def _take(x: Tensor, index: Tensor) -> Tensor:
    """(B, T, D) and (B, T) -> the frames in that order."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[-1]))


def _reversal(lengths: Tensor, total: int) -> Tensor:
    """(B,) -> (B, total): the first `lengths` indices backwards, the others in place; it is its own inverse."""
    index = torch.arange(total, device=lengths.device)[None]
    reversed_index = lengths[:, None] - 1 - index
    return torch.where(reversed_index >= 0, reversed_index, index)
