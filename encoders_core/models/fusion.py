"""Several modalities to one vector: project each, let them look at each other, fuse, finish.

Cross-modal attention after Tsai et al., https://arxiv.org/abs/1906.00295, but each modality has one set of queries, keys
and values that all its pairs share, so the weights grow with the modalities and not with their square.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar, cast, get_args

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.errors import OptionError
from encoders_core.models.layers import Attention, init_weights
from encoders_core.models.pooling import masked_mean

FusionMethod = Literal["attention", "concat", "weighted_sum", "mlp"]
Tensors = Mapping[str, Tensor]
Part = TypeVar("Part", bound=nn.Module)

FUSED: Final = "fused"
"""Who looks in the scores of the fusion itself."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The shape and manners of a `FusionNetwork`; `output_dim` is its width inside, too."""

    input_dimensions: dict[str, int]
    output_dim: int
    method: FusionMethod = "attention"
    cross_attention: bool = True
    symmetric: bool = True
    """Each pair looks both ways; else the modality named first looks at the one named later."""
    residual: bool = True
    num_heads: int = 8
    attention_dropout: float = 0.0
    temperature: float = 1.0
    """Divides the attention's logits at the start, in the fusion and between modalities."""
    learnable_temperature: bool = False
    layer_norm: bool = True
    dropout: float = 0.0
    final_projection: bool = True

    def __post_init__(self) -> None:
        if not self.input_dimensions:
            raise OptionError("input_dimensions: expected at least one modality, got none")
        for name, dim in self.input_dimensions.items():
            _check_modality(name, dim)
        if self.method not in get_args(FusionMethod):
            raise OptionError(
                f"fusion_method: expected one of {', '.join(get_args(FusionMethod))}, got {self.method!r}"
            )
        if self.output_dim < 1:
            raise OptionError(f"output_dim: expected a positive number, got {self.output_dim}")
        if self.num_heads < 1 or self.output_dim % self.num_heads:
            raise OptionError(
                f"num_attention_heads: expected a divisor of output_dim {self.output_dim}, got {self.num_heads}"
            )
        for key in ("attention_dropout", "dropout"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise OptionError(f"{key}: expected 0 to below 1, got {getattr(self, key)}")
        if not (math.isfinite(self.temperature) and self.temperature > 0.0):
            raise OptionError(f"temperature: expected a positive number, got {self.temperature}")

    @property
    def modalities(self) -> tuple[str, ...]:
        """The names, in the order that counts for one-sided cross-attention."""
        return tuple(self.input_dimensions)

    def contexts(self, name: str) -> tuple[str, ...]:
        """Whom `name` looks at in cross-modal attention."""
        after = self.modalities.index(name) + 1
        return self.modalities[: after - 1] * self.symmetric + self.modalities[after:]

    @property
    def attends(self) -> bool:
        """Whether there is any attention to set."""
        return self.method == "attention" or self.crosses

    @property
    def crosses(self) -> bool:
        """Whether modalities look at each other."""
        return self.cross_attention and len(self.input_dimensions) > 1


class ModalityInput(nn.Module):
    """Features of one modality into the common width, on a common scale and marked: (B, N, in) -> (B, N, D)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.mark = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, D)."""
        out: Tensor = self.norm(self.proj(x)) + self.mark
        return out


class CrossModalAttention(nn.Module):
    """Each modality looks at others: a dict of (B, N, D) -> a dict of the same shapes."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        self.norms = nn.ModuleDict({name: nn.LayerNorm(config.output_dim) for name in config.modalities})
        self.attn = nn.ModuleDict({name: Attention(config.output_dim, config.num_heads) for name in config.modalities})

    def forward(self, x: Tensors, masks: Tensors, temperature: Tensor, scores: dict[str, Tensor] | None) -> Tensors:
        """A modality without anyone to look at stays as it is, sample by sample."""
        heads = {}
        for name, tokens in x.items():
            q, k, v = self.brick(name).heads(self.norms[name](tokens))
            heads[name] = (q / temperature, k, v)
        return {name: self._look(name, x, heads, masks, scores) for name in x}

    def brick(self, name: str) -> Attention:
        """The projections of one modality."""
        return cast("Attention", self.attn[name])

    def _look(
        self,
        name: str,
        x: Tensors,
        heads: Mapping[str, tuple[Tensor, Tensor, Tensor]],
        masks: Tensors,
        scores: dict[str, Tensor] | None,
    ) -> Tensor:
        others = [other for other in self.config.contexts(name) if other in x]
        if not others:
            return x[name]
        attn, q = self.brick(name), heads[name][0]
        looks, seen = [], []
        for other in others:
            there = masks[other].any(dim=1)
            may_look = masks[other] | ~there[:, None]  # a softmax over nothing is NaN: what it gives is dropped below
            bias = torch.zeros_like(may_look, dtype=q.dtype).masked_fill(~may_look, float("-inf"))[:, None, None]
            out, weights = attend(q, *heads[other][1:], bias, attn.attn_drop, written_out=scores is not None)
            present = there[:, None, None].to(q.dtype)
            if scores is not None and weights is not None:
                scores[f"{name}->{other}"] = weights * present[:, None]
            looks.append(out.transpose(1, 2).flatten(2) * present)
            seen.append(present)
        count = torch.stack(seen).sum(dim=0)
        update = attn.proj(torch.stack(looks).sum(dim=0) / count.clamp(min=1.0))
        changed = x[name] + update if self.config.residual else update
        return torch.where(count > 0, changed, x[name])


class AttentionFusion(nn.Module):
    """A learnt query looks at the tokens of all modalities: (B, D).

    The share of a modality is a prior on where it looks, spread over its tokens: with nothing learnt to tell tokens
    apart each modality gets its share, however many tokens it has.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.output_dim)
        self.latent = nn.Parameter(torch.empty(1, 1, config.output_dim))
        self.attn = Attention(config.output_dim, config.num_heads)

    def forward(
        self, x: Tensors, masks: Tensors, shares: Tensor, temperature: Tensor, scores: dict[str, Tensor] | None
    ) -> Tensor:
        """(B, N, D) by modality and shares (B, M) -> (B, D)."""
        tokens = self.norm(torch.cat(tuple(x.values()), dim=1))
        q, k, v = self.attn.heads(self.latent.expand(tokens.shape[0], -1, -1), tokens)
        bias = torch.cat([_prior(masks[name], shares[:, [i]]) for i, name in enumerate(x)], dim=1)[:, None, None]
        out, weights = attend(q / temperature, k, v, bias, self.attn.attn_drop, written_out=scores is not None)
        if scores is not None and weights is not None:
            lengths = [tokens.shape[1] for tokens in x.values()]
            parts = torch.split(weights[:, :, 0], lengths, dim=-1)
            scores |= {f"{FUSED}->{name}": part for name, part in zip(x, parts, strict=True)}
        fused: Tensor = self.attn.proj(out.transpose(1, 2).flatten(2))[:, 0]
        return fused


class WeightedSum(nn.Module):
    """Means of the modalities, summed by their shares and a learnt weight that starts as 1: (B, D)."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.logits = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in config.modalities})

    def forward(self, x: Tensors, masks: Tensors, shares: Tensor) -> Tensor:
        """(B, N, D) by modality and shares (B, M) -> (B, D)."""
        logits = torch.stack([self.logits[name] for name in x])
        weights = (logits + shares.log()).softmax(dim=1)
        pooled = torch.stack([masked_mean(tokens, masks[name]) for name, tokens in x.items()], dim=1)
        return (weights.to(pooled.dtype)[:, :, None] * pooled).sum(dim=1)


class JoinedFusion(nn.Module):
    """Means of the modalities side by side, zeros for what is missing, through one linear layer or two: (B, D).

    A share counts relative to the mean share of what is there: equal ones change nothing.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.modalities, dim = config.modalities, config.output_dim
        joined = len(self.modalities) * dim
        self.mix: nn.Module = nn.Linear(joined, dim)
        if config.method == "mlp":
            self.mix = nn.Sequential(nn.Linear(joined, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensors, masks: Tensors, shares: Tensor) -> Tensor:
        """(B, N, D) by modality and shares (B, M) -> (B, D)."""
        factors = shares * torch.stack([mask.any(dim=1) for mask in masks.values()], dim=1).sum(dim=1, keepdim=True)
        pooled = {
            name: masked_mean(tokens, masks[name]) * factors[:, [i]].to(tokens.dtype)
            for i, (name, tokens) in enumerate(x.items())
        }
        blank = torch.zeros_like(next(iter(pooled.values())))
        fused: Tensor = self.mix(torch.cat([pooled.get(name, blank) for name in self.modalities], dim=1))
        return fused


class FusionNetwork(nn.Module):
    """Tokens (B, N, dim) by modality, masks (B, N) and shares (B, M) -> (B, output_dim)."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.output_dim
        self.inputs = nn.ModuleDict({name: ModalityInput(size, dim) for name, size in config.input_dimensions.items()})
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.fusion = _make_fusion(config)
        self.cross: CrossModalAttention | None = None
        self.norm: nn.Module = nn.Identity()
        self.drop = nn.Dropout(config.dropout)
        self.head: nn.Module = nn.Identity()
        self.apply(_reset)
        self.reconfigure(temperature=config.temperature)

    def forward(
        self, tokens: Tensors, masks: Tensors, shares: Tensor, scores: dict[str, Tensor] | None = None
    ) -> Tensor:
        """A dict in `scores` receives the attention by pair, written out. Modalities come in the order of the config."""
        x = {name: self.inputs[name](t.masked_fill(~masks[name][:, :, None], 0.0)) for name, t in tokens.items()}
        temperature = self.log_temperature.exp()
        if self.cross is not None:
            x = dict(self.cross(x, masks, temperature, scores))
        if isinstance(self.fusion, AttentionFusion):
            fused = self.fusion(x, masks, shares, temperature, scores)
        else:
            fused = self.fusion(x, masks, shares)
        out: Tensor = self.head(self.drop(self.norm(fused)))
        return out

    def reconfigure(self, **changes: Any) -> "FusionNetwork":
        """Itself with other manners; parts that are new start at random, all others keep their very parameters."""
        config = replace(self.config, **changes)
        dim, self.config = config.output_dim, config
        with torch.no_grad():
            if "temperature" in changes:
                self.log_temperature.fill_(math.log(config.temperature))
        self.log_temperature.requires_grad_(config.learnable_temperature)
        if config.crosses != (self.cross is not None):
            self.cross = self._fresh(CrossModalAttention(config)) if config.crosses else None
        if config.layer_norm != isinstance(self.norm, nn.LayerNorm):
            self.norm = self._fresh(nn.LayerNorm(dim)) if config.layer_norm else nn.Identity()
        if config.final_projection != isinstance(self.head, nn.Linear):
            self.head = self._fresh(nn.Linear(dim, dim)) if config.final_projection else nn.Identity()
            if isinstance(self.head, nn.Linear):
                nn.init.orthogonal_(self.head.weight)
        if self.cross is not None:
            self.cross.config = config
        self.drop.p = config.dropout
        for module in self.modules():
            if isinstance(module, Attention):
                module.num_heads, module.attn_drop.p = config.num_heads, config.attention_dropout
        return self

    def _fresh(self, part: Part) -> Part:
        return part.apply(_reset).to(self.log_temperature).train(self.training)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, drop: nn.Dropout, *, written_out: bool
) -> tuple[Tensor, Tensor | None]:
    """softmax(q k' / sqrt(d) + bias) v: (B, heads, M, d), and the weights (B, heads, M, N) when `written_out`."""
    if not written_out:
        p = drop.p if drop.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=p), None
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(dim=-1)
    return drop(weights) @ v, weights


def _prior(mask: Tensor, share: Tensor) -> Tensor:
    """(B, N) True where a token counts, (B, 1) -> (B, N): log of the share of each token, -inf for none."""
    per_token = share / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(mask, per_token, 0.0).log()


def _make_fusion(config: FusionConfig) -> nn.Module:
    if config.method == "attention":
        return AttentionFusion(config)
    return WeightedSum(config) if config.method == "weighted_sum" else JoinedFusion(config)


def _reset(module: nn.Module) -> None:
    """Small random weights; what enters keeps its angles."""
    init_weights(module)
    if isinstance(module, ModalityInput):
        nn.init.orthogonal_(module.proj.weight)
        nn.init.trunc_normal_(module.mark, std=0.02)
    if isinstance(module, AttentionFusion):
        dim = module.latent.shape[-1]
        nn.init.trunc_normal_(module.latent, std=0.02)
        nn.init.orthogonal_(module.attn.proj.weight)
        with torch.no_grad():
            module.attn.qkv.weight[2 * dim :] = nn.init.orthogonal_(torch.empty(dim, dim))


def _check_modality(name: str, dim: int) -> None:
    if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict, name) or name == FUSED:
        raise OptionError(f"input_dimensions: expected a name like 'text' or 'image_left', got {name!r}")
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
        raise OptionError(f"input_dimensions.{name}: expected a positive number, got {dim!r}")
