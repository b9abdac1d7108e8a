"""The Vision Transformer of every supported family, one module with timm's parameter names.

One class holds plain ViT and DeiT, CLIP (norm before the blocks), SigLIP (no class token, attention pool), and DINOv2
(LayerScale, registers, SwiGLU): they differ in `VitConfig` alone. https://arxiv.org/abs/2010.11929
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from encoders_core.errors import InputError, OptionError
from encoders_core.models.layers import Block, PatchDropout, PatchEmbed, init_weights, make_activation
from encoders_core.models.pooling import AttentionPool, Pool, pool_tokens
from encoders_core.models.positions import RESIZE_METHODS, ResizeMethod, resize_positions, sincos_2d

Position = Literal["learnable", "sinusoidal", "sinusoidal_learnable", "none"]


@dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Shape and manners of a ViT; the words are timm's. Activation and epsilon are not in a weights file: say them."""

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    in_chans: int = 3
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    mlp_hidden: int | None = None
    """Width of the feed-forward where it is no simple multiple of `embed_dim`; wins over `mlp_ratio`."""
    act: str = "gelu"
    eps: float = 1e-6
    qkv_bias: bool = True
    patch_bias: bool = True
    init_values: float | None = None
    """Start of LayerScale; None has none."""
    swiglu: bool = False
    class_token: bool = True
    reg_tokens: int = 0
    no_embed_class: bool = False
    """The positional table covers patches only."""
    norm_pre: bool = False
    """A norm between embedding and blocks (CLIP)."""
    pre_layer_norm: bool = True
    """Norms in front of attention and feed-forward; False puts them behind the residual sums."""
    final_norm: bool = True
    pool: Pool = "cls"
    fc_norm: bool = False
    """The norm stands behind the pooling."""
    num_classes: int = 0
    """Width of the output projection; 0 has none, and features are `embed_dim` wide."""
    head_bias: bool = True
    final_activation: str | None = None
    position: Position = "learnable"
    position_resize: ResizeMethod = "bicubic_antialias"
    patch_dropout: float = 0.0
    attn_drop: float = 0.0
    mlp_drop: float = 0.0

    def __post_init__(self) -> None:
        sizes = self.img_size if isinstance(self.img_size, tuple | list) else (self.img_size, self.img_size)
        object.__setattr__(self, "img_size", (int(sizes[0]), int(sizes[1])))
        self._check_numbers()
        self._check_choices()

    def _check_numbers(self) -> None:
        positive = ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_width")
        for name in positive:
            if getattr(self, name) < 1:
                raise OptionError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("patch_dropout", "attn_drop", "mlp_drop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise OptionError(f"{name}: expected a share from 0 to below 1, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads:
            raise OptionError(f"expected a width that {self.num_heads} heads divide, got {self.embed_dim}")
        if any(side < 1 or side % self.patch_size for side in self.img_size):
            raise OptionError(f"img_size: expected multiples of patch_size {self.patch_size}, got {self.img_size}")

    def _check_choices(self) -> None:
        choices = (("pool", Pool), ("position", Position))
        for name, known in choices:
            if getattr(self, name) not in get_args(known):
                raise OptionError(f"{name}: expected one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if self.position_resize not in RESIZE_METHODS:
            raise OptionError(f"position_resize: expected one of {RESIZE_METHODS}, got {self.position_resize!r}")
        if self.pool == "cls" and not self.class_token:
            raise OptionError("pooling by class token needs a model with one; this one has none: use 'mean' or 'max'")

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Patches down and across at the trained size."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches: class token, then registers."""
        return int(self.class_token) + self.reg_tokens

    @property
    def mlp_width(self) -> int:
        """Hidden width of the feed-forward."""
        return self.mlp_hidden or int(self.embed_dim * self.mlp_ratio)

    @property
    def output_dim(self) -> int:
        """Width of the features."""
        return self.num_classes or self.embed_dim


class VisionTransformer(nn.Module):
    """(B, C, H, W) normalised images -> (B, output_dim) features; H and W any multiples of the patch size."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config, dim, eps = config, config.embed_dim, config.eps
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, dim, bias=config.patch_bias)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.empty(1, config.reg_tokens, dim)) if config.reg_tokens else None
        self.pos_embed = _position_table(config)
        self.patch_drop = PatchDropout(config.patch_dropout, config.prefix)
        self.norm_pre = nn.LayerNorm(dim, eps=eps) if config.norm_pre else nn.Identity()
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        has_norm = config.final_norm and not config.fc_norm
        self.norm = nn.LayerNorm(dim, eps=eps) if has_norm else nn.Identity()
        self.attn_pool = _attention_pool(config) if config.pool == "map" else None
        self.fc_norm = nn.LayerNorm(dim, eps=eps) if config.fc_norm else nn.Identity()
        head = nn.Linear(dim, config.num_classes, bias=config.head_bias) if config.num_classes else nn.Identity()
        self.head: nn.Module = head
        self.final_act = _final_activation(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights, as timm starts a ViT."""
        self.apply(init_weights)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        if self.pos_embed is not None and self.config.position == "learnable":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return cast("list[Block]", list(self.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, output_dim); without pooling (B, N, output_dim).

        With class-token pooling the last block computes that one row only: the others would be thrown away.
        """
        if self.config.pool != "cls":
            return self.forward_head(self.forward_features(x))
        x = self.embed(x)
        *body, last = self.layers
        for block in body:
            x = block(x)
        return self.forward_head(self.norm(last(x[:, :1], context=x)))

    def forward_features(self, x: Tensor, attention: list[Tensor] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, prefix + N, embed_dim) tokens after the final norm.

        A list in `attention` receives the weights of each layer, (B, heads, N, N); this costs a second look at Q and K.
        """
        x = self.embed(x)
        for block in self.layers:
            if attention is not None:
                attention.append(block.attention_weights(x))
            x = block(x)
        tokens: Tensor = self.norm(x)
        return tokens

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, embed_dim) -> features (B, output_dim); without pooling (B, N, output_dim)."""
        if self.attn_pool is not None:
            pooled = self.attn_pool(tokens)
        elif self.config.pool == "none":
            pooled = tokens
        else:
            pooled = pool_tokens(tokens, self.config.pool, self.config.prefix)
        features: Tensor = self.final_act(self.head(self.fc_norm(pooled)))
        return features

    def embed(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, prefix + N, embed_dim): patches, positions, class and register tokens, first norm.

        Raises InputError when the channels or the size do not fit the patches.
        """
        grid_hw = self._check_input(x)
        return self._placed(self.patch_embed(x), grid_hw)

    def embed_patches(self, patches: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """(B, N, C p p) of `PatchEmbed.unfold`, rows by columns of patches -> (B, prefix + N, embed_dim), as `embed`."""
        return self._placed(self.patch_embed.project(patches), grid_hw)

    def place_patches(self, patches: Tensor, places: Tensor) -> Tensor:
        """(M, D) of `PatchEmbed.project` -> (M, embed_dim): the rows that `embed` has for patches `places` of its own size."""
        if self.pos_embed is not None:
            prefix = 0 if self.config.no_embed_class else self.config.prefix
            patches = patches + self._positions(self.config.grid_hw, prefix)[0, prefix:][places]
        placed: Tensor = self.norm_pre(patches)
        return placed

    def _placed(self, patches: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """(B, N, embed_dim) -> with positions, behind class and register tokens, through the first norm."""
        config = self.config
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        tokens = [token.expand(patches.shape[0], -1, -1) for token in prefix]
        if self.pos_embed is None:
            patches = torch.cat((*tokens, patches), dim=1)
        elif config.no_embed_class:
            patches = torch.cat((*tokens, patches + self._positions(grid_hw, 0)), dim=1)
        else:
            patches = torch.cat((*tokens, patches), dim=1) + self._positions(grid_hw, config.prefix)
        embedded: Tensor = self.norm_pre(self.patch_drop(patches))
        return embedded

    def reconfigure(self, **changes: Any) -> None:
        """Change what needs no other weights: dropouts, order of norms, pooling, positions, final activation.

        Another kind of positions replaces the table; pooling away from an attention pool drops that pool.
        """
        old, new = self.config, replace(self.config, **changes)
        if new.pool == "map" != old.pool:
            raise OptionError("an attention pool has weights of its own and cannot be added to a finished model")
        if new.position != old.position:
            self.pos_embed = _position_table(new, like=self.patch_embed.proj.weight)
        if new.pool != "map":
            self.attn_pool = None
        self.config = new
        self.patch_drop.p, self.final_act = new.patch_dropout, _final_activation(new)
        for block in self.layers:
            block.pre_norm = new.pre_layer_norm
            block.attn.attn_drop.p, block.mlp.drop.p = new.attn_drop, new.mlp_drop

    def _positions(self, grid_hw: tuple[int, int], prefix: int) -> Tensor:
        if self.pos_embed is None:
            raise OptionError("this model has no positional table")
        return resize_positions(self.pos_embed, self.config.grid_hw, grid_hw, prefix, self.config.position_resize)

    def _check_input(self, x: Tensor) -> tuple[int, int]:
        patch, channels = self.config.patch_size, self.config.in_chans
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % patch or x.shape[3] % patch:
            raise InputError(
                f"expected images (B, {channels}, H, W) with H and W multiples of {patch}, got {tuple(x.shape)}"
            )
        return x.shape[2] // patch, x.shape[3] // patch


def _block(config: VitConfig) -> Block:
    return Block(
        config.embed_dim,
        config.num_heads,
        mlp_hidden=config.mlp_width,
        swiglu=config.swiglu,
        qkv_bias=config.qkv_bias,
        act=config.act,
        eps=config.eps,
        init_values=config.init_values,
        attn_drop=config.attn_drop,
        mlp_drop=config.mlp_drop,
        pre_norm=config.pre_layer_norm,
    )


def _attention_pool(config: VitConfig) -> AttentionPool:
    return AttentionPool(
        config.embed_dim, config.num_heads, mlp_hidden=config.mlp_width, act=config.act, eps=config.eps
    )


def _final_activation(config: VitConfig) -> nn.Module:
    return nn.Identity() if config.final_activation is None else make_activation(config.final_activation)


def _position_table(config: VitConfig, like: Tensor | None = None) -> nn.Parameter | None:
    """The table (1, rows, D): learnt, or the fixed sinusoid with zeros for the prefix; None without positions."""
    if config.position == "none":
        return None
    prefix = 0 if config.no_embed_class else config.prefix
    if config.position == "learnable":
        rows = prefix + config.grid_hw[0] * config.grid_hw[1]
        table = nn.init.trunc_normal_(torch.empty(1, rows, config.embed_dim), std=0.02)
    else:
        grid = sincos_2d(config.grid_hw, config.embed_dim)
        table = torch.cat((torch.zeros(prefix, config.embed_dim), grid))[None]
    if like is not None:
        table = table.to(like)
    return nn.Parameter(table, requires_grad=config.position != "sinusoidal")
