"""From tokens to one vector: class token, mean, max, or SigLIP's attention pool."""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from encoders_core.models.layers import Mlp

Pool = Literal["cls", "mean", "max", "map", "none"]


class AttentionPool(nn.Module):
    """A learnt query looks at all tokens, then one feed-forward (big_vision's MAP head): (B, N, D) -> (B, D)."""

    def __init__(self, dim: int, num_heads: int, *, mlp_hidden: int, act: str, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim), std=dim**-0.5))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, mlp_hidden, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        q = self.q(self.latent.expand(x.shape[0], -1, -1))
        k, v = self.kv(x).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        pooled = self.proj(pooled)
        pooled = pooled + self.mlp(self.norm(pooled))
        vector: Tensor = pooled[:, 0]
        return vector


def pool_tokens(tokens: Tensor, pool: Pool, prefix: int) -> Tensor:
    """(B, N, D) -> (B, D): the first token, or mean or maximum over the patches (class and register tokens left out)."""
    if pool == "cls":
        return tokens[:, 0]
    patches = tokens[:, prefix:]
    return patches.mean(dim=1) if pool == "mean" else patches.amax(dim=1)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, N, D) and (B, N) True where a token counts -> (B, D). A row without any token gives zeros."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
