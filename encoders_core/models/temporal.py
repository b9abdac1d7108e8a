"""Temporal head over frame features, banded-causal: (B, T, D) -> (B, T, D), each output from what came before it alone.

Output t = mean of the last `window` features + a correction by `depth` transformer layers, each of which sees `window`
positions of the one below: the receptive field is depth * (window - 1) + 1 frames. Position is distance in frames (ALiBi,
https://arxiv.org/abs/2108.12409), so nothing depends on when the stream began. The correction's last projection starts at
zero: an untrained head is the windowed mean, and does not harm trained features.

`forward` is the batch computation. Frame by frame the same head runs in `encoders_core.realtime.temporal`, to 1e-5 equal.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders_core.config import TemporalConfig


def alibi_slopes(num_heads: int) -> Tensor:
    """(num_heads,) float32: how fast each head forgets, a geometric series from 2^(-8/H) to 2^-8."""
    return torch.tensor([2.0 ** (-8.0 * (head + 1) / num_heads) for head in range(num_heads)])


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """(B, H, Q, d), (B, H, K, d), (B, H, K, d), bias (H, Q, K) -> (B, Q, H * d)."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


class CausalLayer(nn.Module):
    """Pre-norm transformer layer, split where a ring of keys and values goes in between."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, width) -> query, key, value, each (B, H, T, d)."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return query, key, value

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """(B, T, width) input and attention output -> (B, T, width)."""
        x = x + self.proj(attended)
        mixed: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return mixed


class TemporalHead(nn.Module):
    """The head's weights and its batch computation. `dim` is that of the frame features."""

    def __init__(self, dim: int, config: TemporalConfig) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.norm_in, self.embed = nn.LayerNorm(dim), nn.Linear(dim, config.width)
            self.layers = nn.ModuleList(CausalLayer(config.width, config.num_heads) for _ in range(config.depth))
            self.norm_out, self.correct = nn.LayerNorm(config.width), nn.Linear(config.width, dim)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)
        self.register_buffer("slopes", alibi_slopes(config.num_heads), persistent=False)

    @property
    def receptive_field(self) -> int:
        """How many frames, the present one included, can change an output."""
        return self.config.depth * (self.config.window - 1) + 1

    def causal_layers(self) -> list[CausalLayer]:
        """The layers in order."""
        return [layer for layer in self.layers if isinstance(layer, CausalLayer)]

    def bias(self, distance: Tensor) -> Tensor:
        """(Q, K) distances in frames, query minus key -> (H, Q, K) float32; -inf outside of the band."""
        slopes: Tensor = self.get_buffer("slopes")
        outside = (distance < 0) | (distance >= self.config.window)
        return (-slopes[:, None, None] * distance).masked_fill(outside, -torch.inf)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, D) float32 -> (B, T, D) float32."""
        index = torch.arange(features.shape[1])
        distance = index[:, None] - index[None, :]
        bias = self.bias(distance)
        x = self.embed(self.norm_in(features))
        for layer in self.causal_layers():
            x = layer.finish(x, attend(*layer.project(x), bias))
        inside = ((distance >= 0) & (distance < self.config.window)).float()
        mean = (inside / inside.sum(1, keepdim=True)) @ features
        corrected: Tensor = mean + self.correct(self.norm_out(x))
        return corrected
