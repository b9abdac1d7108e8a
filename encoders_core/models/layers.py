"""The bricks of every transformer here: patches, attention, feed-forward, block. Parameter names are timm's.

Nothing here holds state between calls, and no branch depends on data: the bricks export, compile and copy.
"""

from collections.abc import Callable
from typing import Final, cast

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.errors import OptionError
from encoders_core.models.eager_linear import Linear, linear
from encoders_core.models.packed_linear import fusible


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the approximation that OpenAI's CLIP was trained with; others are measurably wrong."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> same shape."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def make_activation(name: str) -> nn.Module:
    """The activation called `name`. Raises OptionError naming the known ones."""
    if name not in ACTIVATIONS:
        raise OptionError(f"unknown activation {name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class PatchEmbed(nn.Module):
    """2-D image to patch tokens: (B, C, H, W) -> (B, H/p * W/p, D), row by row."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D); H and W are multiples of the patch size."""
        return self.project(self.unfold(x))

    def unfold(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, C p p): the pixels of each patch side by side."""
        batch, chans, height, width = x.shape
        side = self.proj.kernel_size[0]
        parts = x.reshape(batch, chans, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
        return parts.flatten(3).flatten(1, 2)

    def project(self, patches: Tensor) -> Tensor:
        """(B, N, C p p) -> (B, N, D).

        The same product as the convolution, which takes up to three times as long for one picture that is channels-last.
        """
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class PatchDropout(nn.Module):
    """Keeps a random share of the patch tokens while training: (B, N, D) -> (B, M, D).

    https://arxiv.org/abs/2208.07220. The first `prefix` tokens (class, registers) always stay.
    """

    def __init__(self, p: float, prefix: int) -> None:
        super().__init__()
        self.p, self.prefix = p, prefix

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, prefix + kept, D); in evaluation mode the input itself."""
        if not self.training or self.p == 0.0:
            return x
        prefix, patches = x[:, : self.prefix], x[:, self.prefix :]
        batch, count, dim = patches.shape
        keep = max(1, int(count * (1.0 - self.p)))
        order = torch.rand(batch, count, device=x.device).argsort(dim=1)[:, :keep].sort(dim=1).values
        kept = patches.gather(1, order.unsqueeze(-1).expand(batch, keep, dim))
        return torch.cat((prefix, kept), dim=1)


class LayerScale(nn.Module):
    """A learnt factor per channel (https://arxiv.org/abs/2103.17239): (..., D) -> (..., D)."""

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.gamma


class Mlp(nn.Module):
    """Feed-forward of two linear layers: (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden: int, *, act: str = "gelu", drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = make_activation(act)
        self.drop = nn.Dropout(drop)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        hidden = self._hidden(x)
        if not self.training:
            return cast("Tensor", self.fc2(hidden))
        out: Tensor = self.drop(self.fc2(self.drop(hidden)))
        return out

    def _hidden(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., hidden); the activation is part of the product unless somebody watches it."""
        watched = self.act._forward_hooks  # noqa: SLF001  torch has no other name for them
        act = fusible(self.act) if type(self.fc1) is Linear and not watched else None
        hidden: Tensor = self.act(self.fc1(x)) if act is None else self.fc1(x, act)
        return hidden


class SwiGLU(nn.Module):
    """Gated feed-forward (https://arxiv.org/abs/2002.05202), gate and value packed in `fc1`: (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden: int, *, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 2 * hidden)
        self.drop = nn.Dropout(drop)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        out: Tensor = self.drop(self.fc2(self.drop(F.silu(gate) * value)))
        return out


class Attention(nn.Module):
    """Multi-head attention: rows (B, M, D), looking at a context (B, N, D), or at themselves -> (B, M, D)."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True, attn_drop: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise OptionError(f"expected a width that {num_heads} heads divide, got {dim}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D). `attn_mask` is True where a row may look, broadcastable to (B, heads, M, N)."""
        q, k, v = self.heads(x, context)
        drop = self.attn_drop.p if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=drop)
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected

    def heads(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `x` and keys and values of `context` (or `x`), each (B, heads, rows, D / heads)."""
        if context is None:
            q, k, v = self._split(self.qkv(x), 3)
        else:
            dim, (weight, bias) = x.shape[-1], (self.qkv.weight, self.qkv.bias)
            (q,) = self._split(linear(x, weight[:dim], None if bias is None else bias[:dim]), 1)
            k, v = self._split(linear(context, weight[dim:], None if bias is None else bias[dim:]), 2)
        return q, k, v

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, rows, parts * D) -> as many of (B, heads, rows, D / heads)."""
        batch, rows, width = x.shape
        dim = width // (parts * self.num_heads)
        return x.view(batch, rows, parts, self.num_heads, dim).permute(2, 0, 3, 1, 4).unbind(0)

    def weights(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Who looks at whom, written out: (B, N, D) -> (B, heads, N, N), rows sum to 1."""
        q, k, _ = self.heads(x)
        scores: Tensor = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        return scores.softmax(dim=-1)


class Block(nn.Module):
    """One transformer layer: (B, M, D) -> (B, M, D).

    It works on any subset of rows: `block(x[:, rows], context=x)` equals `block(x)[:, rows]`, because rows meet only
    in attention. With `pre_norm` off the norms stand behind the residual sums, as in the first transformer and BERT.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_hidden: int,
        swiglu: bool = False,
        qkv_bias: bool = True,
        act: str = "gelu",
        eps: float = 1e-6,
        init_values: float | None = None,
        attn_drop: float = 0.0,
        mlp_drop: float = 0.0,
        pre_norm: bool = True,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop)
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = SwiGLU(dim, mlp_hidden, drop=mlp_drop) if swiglu else Mlp(dim, mlp_hidden, act=act, drop=mlp_drop)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values)

    def forward(self, x: Tensor, context: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """(B, M, D) rows, optionally looking at a context (B, N, D) -> (B, M, D)."""
        out: Tensor
        if self.pre_norm:
            context = None if context is None else self.norm1(context)
            x = x + self.ls1(self.attn(self.norm1(x), context, attn_mask))
            out = x + self.ls2(self.mlp(self.norm2(x)))
        else:
            x = self.norm1(x + self.ls1(self.attn(x, context, attn_mask)))
            out = self.norm2(x + self.ls2(self.mlp(x)))
        return out

    def attention_weights(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """The attention of this layer on its input: (B, N, D) -> (B, heads, N, N)."""
        return self.attn.weights(self.norm1(x) if self.pre_norm else x, attn_mask)


def init_weights(module: nn.Module) -> None:
    """For `Module.apply`: truncated normal of 0.02 for linear layers and embeddings, zero biases (as timm)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
