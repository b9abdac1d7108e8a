"""Transformers over space and time: VideoMAE, ViViT (joint attention over tubelets) and TimeSformer (divided attention).

One class under timm's parameter names, with TimeSformer's own for its temporal parts. Tokens lie as (B, T, h*w, D).
VideoMAE https://arxiv.org/abs/2203.12602, ViViT https://arxiv.org/abs/2103.15691, TimeSformer
https://arxiv.org/abs/2102.05095.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from encoders_core.errors import InputError, OptionError
from encoders_core.models.layers import Attention, Block, init_weights
from encoders_core.models.positions import RESIZE_METHODS, ResizeMethod, resize_positions

SpaceTimePosition = Literal["joint", "divided", "sinusoidal"]


@dataclass(frozen=True, kw_only=True)
class SpaceTimeConfig:
    """Shape and manners of a space-time transformer. Activation and epsilon are not in a weights file: say them."""

    img_size: tuple[int, int] = (224, 224)
    num_frames: int = 16
    patch_size: int = 16
    tubelet_size: int = 2
    """Frames in one patch; 1 embeds frame by frame."""
    in_chans: int = 3
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_hidden: int = 3072
    act: str = "gelu"
    eps: float = 1e-6
    qkv_bias: bool = True
    class_token: bool = False
    divided: bool = False
    """Attention over time, then over space, instead of over both at once."""
    position: SpaceTimePosition = "sinusoidal"
    """"joint": one learnt table over space and time; "divided": one of each; "sinusoidal": fixed, over both."""
    position_resize: ResizeMethod = "bicubic"
    final_norm: bool = True
    fc_norm: bool = False
    """A norm behind the pooling."""

    def __post_init__(self) -> None:
        sizes = self.img_size if isinstance(self.img_size, tuple | list) else (self.img_size, self.img_size)
        object.__setattr__(self, "img_size", (int(sizes[0]), int(sizes[1])))
        if self.position not in get_args(SpaceTimePosition) or self.position_resize not in RESIZE_METHODS:
            raise OptionError(f"position, position_resize: unknown {self.position!r}, {self.position_resize!r}")
        if any(side % self.patch_size for side in self.img_size) or self.num_frames % self.tubelet_size:
            raise OptionError(f"expected whole patches and tubelets, got {self}")
        if self.embed_dim % self.num_heads:
            raise OptionError(f"expected a width that {self.num_heads} heads divide, got {self.embed_dim}")
        if self.divided and not (self.class_token and self.position == "divided"):
            raise OptionError("divided attention needs a class token and divided positions")

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Patches down and across at the trained size."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def steps(self) -> int:
        """Steps in time that a clip becomes."""
        return self.num_frames // self.tubelet_size


class PatchEmbed3d(nn.Module):
    """Clip to patch tokens: (B, T, C, H, W) -> (B, T / t, h * w, D). One frame a patch is a two-dimensional kernel."""

    def __init__(self, config: SpaceTimeConfig) -> None:
        super().__init__()
        patch, chans, dim, tubelet = config.patch_size, config.in_chans, config.embed_dim, config.tubelet_size
        self.proj: nn.Module
        if tubelet == 1:
            self.proj = nn.Conv2d(chans, dim, patch, stride=patch)
        else:
            self.proj = nn.Conv3d(chans, dim, (tubelet, patch, patch), stride=(tubelet, patch, patch))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, T / t, h * w, D)."""
        if isinstance(self.proj, nn.Conv2d):
            flat: Tensor = self.proj(x.flatten(0, 1)).flatten(2).transpose(1, 2)
            return torch.unflatten(flat, 0, (x.shape[0], -1))
        tokens: Tensor = self.proj(x.transpose(1, 2))  # Conv3d wants (B, C, T, H, W)
        return tokens.flatten(3).permute(0, 2, 3, 1)


class DividedBlock(Block):
    """TimeSformer's layer: each place looks along time, then each frame with the class token over space."""

    def __init__(self, config: SpaceTimeConfig) -> None:
        super().__init__(config.embed_dim, config.num_heads, **_block_options(config))
        self.temporal_norm1 = nn.LayerNorm(config.embed_dim, eps=config.eps)
        self.temporal_attn = Attention(config.embed_dim, config.num_heads, qkv_bias=config.qkv_bias)
        self.temporal_fc = nn.Linear(config.embed_dim, config.embed_dim)

    def divide(self, token: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (B, 1, D) and patches (B, T, P, D) -> the same shapes."""
        batch, steps, places, _ = x.shape
        along = self.temporal_attn(self.temporal_norm1(x.transpose(1, 2).flatten(0, 1)))
        x = x + self.temporal_fc(along).unflatten(0, (batch, places)).transpose(1, 2)
        each = torch.cat((token[:, None].expand(-1, steps, -1, -1), x), dim=2).flatten(0, 1)
        seen = self.attn(self.norm1(each)).unflatten(0, (batch, steps))
        rows = torch.cat((token + seen[:, :, 0].mean(dim=1, keepdim=True), (x + seen[:, :, 1:]).flatten(1, 2)), dim=1)
        rows = rows + self.mlp(self.norm2(rows))
        return rows[:, :1], torch.unflatten(rows[:, 1:], 1, (steps, places))


class SpaceTimeTransformer(nn.Module):
    """(B, T, C, H, W) normalised clips of `num_frames` -> tokens; H and W any multiples of the patch size."""

    def __init__(self, config: SpaceTimeConfig) -> None:
        super().__init__()
        self.config, dim, eps = config, config.embed_dim, config.eps
        self.patch_embed = PatchEmbed3d(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        rows = config.grid_hw[0] * config.grid_hw[1] * (config.steps if config.position == "joint" else 1)
        learnt = config.position != "sinusoidal"
        self.pos_embed = nn.Parameter(torch.empty(1, rows + int(config.class_token), dim)) if learnt else None
        self.time_embed = nn.Parameter(torch.zeros(1, config.steps, dim)) if config.position == "divided" else None
        self.blocks = nn.ModuleList(
            DividedBlock(config) if config.divided else Block(dim, config.num_heads, **_block_options(config))
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=eps) if config.final_norm else nn.Identity()
        self.fc_norm = nn.LayerNorm(dim, eps=eps) if config.fc_norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights."""
        self.apply(init_weights)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """(B, T, C, H, W) -> class token (B, D), or None without one, and patches (B, steps, h, w, D), normed."""
        config = self.config
        self._check(x)
        grid_hw = (x.shape[-2] // config.patch_size, x.shape[-1] // config.patch_size)
        patches = self.patch_embed(x)
        steps = patches.shape[1]
        token, patches = self._place(patches, grid_hw)
        if config.divided and token is not None:
            for block in self.blocks:
                token, patches = cast("DividedBlock", block).divide(token, patches)
            rows = torch.cat((token, patches.flatten(1, 2)), dim=1)
        else:
            rows = patches.flatten(1, 2)
            rows = rows if token is None else torch.cat((token, rows), dim=1)
            for block in self.blocks:
                rows = block(rows)
        rows = self.norm(rows)
        maps = torch.unflatten(rows[:, int(config.class_token) :], 1, (steps, *grid_hw))
        return (rows[:, 0] if config.class_token else None), maps

    def _place(self, patches: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
        """Class token (B, 1, D) and patches (B, T, P, D), positions added."""
        token = None if self.cls_token is None else self.cls_token.expand(patches.shape[0], -1, -1)
        if self.pos_embed is None:
            table = sinusoid_table(self.config.steps * _area(self.config.grid_hw), self.config.embed_dim)
            return token, patches + self._over_time(table.to(patches), grid_hw)
        prefix = int(self.config.class_token)
        token = None if token is None else token + self.pos_embed[:, :prefix]
        table = self.pos_embed[0, prefix:]
        if self.time_embed is None:
            return token, patches + self._over_time(table, grid_hw)
        space = resize_positions(table[None], self.config.grid_hw, grid_hw, 0, self.config.position_resize)
        return token, patches + space[:, None] + self.time_embed[:, :, None]

    def _over_time(self, table: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """A table (steps * h * w, D) for another grid: (steps, new h * w, D), step by step."""
        steps, old, method = self.config.steps, self.config.grid_hw, self.config.position_resize
        slices = torch.unflatten(table, 0, (steps, -1)).chunk(steps)
        return torch.cat([resize_positions(one, old, grid_hw, 0, method) for one in slices])

    def _check(self, x: Tensor) -> None:
        config, patch = self.config, self.config.patch_size
        fits = x.ndim == 5 and x.shape[1:3] == (config.num_frames, config.in_chans)
        if not fits or x.shape[3] % patch or x.shape[4] % patch:
            raise InputError(
                f"expected clips (B, {config.num_frames}, {config.in_chans}, H, W) with H and W multiples of {patch}, "
                f"got {tuple(x.shape)}"
            )


def sinusoid_table(rows: int, dim: int) -> Tensor:
    """(rows, dim) float32: sine and cosine in turns (VideoMAE's order, unlike `positions.sincos_1d`)."""
    pairs = torch.arange(dim, dtype=torch.float64) // 2
    angles = torch.arange(rows, dtype=torch.float64)[:, None] / 10000.0 ** (2 * pairs / dim)
    even = torch.arange(dim) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()


def _area(grid_hw: tuple[int, int]) -> int:
    return grid_hw[0] * grid_hw[1]


def _block_options(config: SpaceTimeConfig) -> dict[str, Any]:
    return {"mlp_hidden": config.mlp_hidden, "qkv_bias": config.qkv_bias, "act": config.act, "eps": config.eps}
