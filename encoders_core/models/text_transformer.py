"""The text tower of every supported family in one module: CLIP, SigLIP and BERT differ in `TextConfig` alone.

Names follow the Vision Transformer's (`blocks.N.attn.qkv` and so on), so that both share their blocks.
"""

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.errors import InputError, OptionError
from encoders_core.models.layers import Block, init_weights, make_activation
from encoders_core.models.pooling import masked_mean

TextPool = Literal["eot", "last", "cls", "mean", "max"]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Shape and manners of a text tower. The defaults are OpenAI's CLIP ViT-B/32."""

    vocab_size: int = 49408
    context_length: int = 77
    """Rows of the positional table: no text is longer."""
    embed_dim: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_hidden: int | None = None
    """Width of the feed-forward; None is four times `embed_dim`."""
    act: str = "quick_gelu"
    eps: float = 1e-5
    causal: bool = True
    """A token looks at the ones before it only (CLIP)."""
    masked: bool = False
    """Nobody looks at padding (BERT); CLIP needs no mask, SigLIP was trained without."""
    pre_layer_norm: bool = True
    type_vocab_size: int = 0
    """Rows of BERT's segment table; all texts are of segment 0."""
    norm_embed: bool = False
    final_norm: bool = True
    pool: TextPool = "eot"
    eos_id: int | None = None
    """End-of-text token for "eot" pooling; None takes the largest id of the text, as OpenAI does."""
    num_classes: int = 0
    """Width of the projection; 0 has none."""
    head_bias: bool = False
    final_activation: str | None = None
    normalized: bool = False
    """Vectors leave with unit length, as some sentence-transformers models promise."""
    attn_drop: float = 0.0
    mlp_drop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "embed_dim", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads:
            raise OptionError(f"expected a width that {self.num_heads} heads divide, got {self.embed_dim}")
        if self.pool not in get_args(TextPool):
            raise OptionError(f"pool: expected one of {', '.join(get_args(TextPool))}, got {self.pool!r}")

    @property
    def output_dim(self) -> int:
        """Width of the features."""
        return self.num_classes or self.embed_dim


class TextTransformer(nn.Module):
    """Token ids (B, L) int64, and True where a token counts (B, L) -> (B, output_dim)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config, dim = config, config.embed_dim
        self.token_embed = nn.Embedding(config.vocab_size, dim)
        self.pos_embed = nn.Parameter(torch.empty(1, config.context_length, dim))
        self.type_embed = nn.Embedding(config.type_vocab_size, dim) if config.type_vocab_size else None
        self.norm_embed = nn.LayerNorm(dim, eps=config.eps) if config.norm_embed else nn.Identity()
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=config.eps) if config.final_norm else nn.Identity()
        head = nn.Linear(dim, config.num_classes, bias=config.head_bias) if config.num_classes else nn.Identity()
        self.head: nn.Module = head
        self.final_act = make_activation(config.final_activation) if config.final_activation else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights, truncated normal of 0.02, positions of 0.01 (CLIP)."""
        self.apply(init_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.01)

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return cast("list[Block]", list(self.blocks))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L) ids, (B, L) True where a token counts (None: everywhere) -> (B, output_dim)."""
        return self.forward_head(self.forward_features(ids, mask), ids, mask)

    def forward_features(
        self, ids: Tensor, mask: Tensor | None = None, attention: list[Tensor] | None = None
    ) -> Tensor:
        """(B, L) -> (B, L, embed_dim) tokens after the final norm; `attention` receives (B, heads, L, L) a layer.

        Raises InputError when the text is longer than the positional table.
        """
        if ids.ndim != 2 or ids.shape[1] > self.config.context_length:
            raise InputError(f"expected ids (B, L) with L up to {self.config.context_length}, got {tuple(ids.shape)}")
        x = self.token_embed(ids) + self.pos_embed[:, : ids.shape[1]]
        if self.type_embed is not None:
            x = x + self.type_embed.weight[0]
        x, may_look = self.norm_embed(x), self._attention_mask(ids, mask)
        for block in self.layers:
            if attention is not None:
                attention.append(block.attention_weights(x, may_look))
            x = block(x, attn_mask=may_look)
        tokens: Tensor = self.norm(x)
        return tokens

    def forward_head(self, tokens: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L, embed_dim) -> (B, output_dim)."""
        features: Tensor = self.final_act(self.head(self._pool(tokens, ids, mask)))
        return F.normalize(features, dim=-1) if self.config.normalized else features

    def _pool(self, tokens: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        config = self.config
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        if config.pool == "cls":
            return tokens[:, 0]
        if config.pool == "last":
            return tokens[:, -1]
        if config.pool == "mean":
            return masked_mean(tokens, mask)
        if config.pool == "max":
            return tokens.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(dim=1)
        end = ids.argmax(dim=1) if config.eos_id is None else (ids == config.eos_id).int().argmax(dim=1)
        return tokens[torch.arange(ids.shape[0], device=ids.device), end]

    def _attention_mask(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        if self.config.causal:
            length = ids.shape[1]
            return torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        if self.config.masked and mask is not None:
            return mask[:, None, None, :]
        return None


def _block(config: TextConfig) -> Block:
    return Block(
        config.embed_dim,
        config.num_heads,
        mlp_hidden=config.mlp_hidden or 4 * config.embed_dim,
        act=config.act,
        eps=config.eps,
        attn_drop=config.attn_drop,
        mlp_drop=config.mlp_drop,
        pre_norm=config.pre_layer_norm,
    )
