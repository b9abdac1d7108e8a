"""Positional tables: fixed sinusoids, and the learnt table brought to another grid as its own family does it."""

from typing import Final, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor

from encoders_core.errors import OptionError

ResizeMethod = Literal["bicubic_antialias", "bicubic", "bicubic_offset", "bilinear", "nearest"]
RESIZE_METHODS: Final = get_args(ResizeMethod)


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """Positions (N,) -> (N, D) float32: all sines, then all cosines (https://arxiv.org/abs/1706.03762, MAE's order)."""
    if dim % 2:
        raise OptionError(f"a sinusoidal table needs an even width, got {dim}")
    frequencies = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.to(torch.float64).flatten().outer(frequencies)
    return torch.cat((angles.sin(), angles.cos()), dim=1).float()


def sincos_2d(grid_hw: tuple[int, int], dim: int) -> Tensor:
    """Grid (h, w) -> (h * w, D) float32, row by row: half of the width for x, half for y, as MAE and MoCo v3."""
    if dim % 4:
        raise OptionError(f"a two-dimensional sinusoidal table needs a width that 4 divides, got {dim}")
    ys, xs = torch.meshgrid(torch.arange(grid_hw[0]), torch.arange(grid_hw[1]), indexing="ij")
    return torch.cat((sincos_1d(xs, dim // 2), sincos_1d(ys, dim // 2)), dim=1)


def resize_positions(
    table: Tensor, old_hw: tuple[int, int], new_hw: tuple[int, int], prefix: int, method: ResizeMethod
) -> Tensor:
    """A table (1, prefix + h*w, D) for another grid: (1, prefix + new h*w, D); the prefix rows stay as they are.

    The families disagree by a fifth of the table's scale, so `method` belongs to the checkpoint: "bicubic_antialias"
    (timm, DINOv2 with registers in transformers), "bicubic" (the other transformers models), "bicubic_offset" (the
    original DINOv2 code: by scale factor, 0.1 patches added), "bilinear" (big_vision), "nearest" (TimeSformer).
    """
    if old_hw == new_hw:
        return table
    head, grid = table[:, :prefix], table[:, prefix:]
    grid = grid.reshape(1, *old_hw, -1).permute(0, 3, 1, 2).float()
    if method == "bicubic_offset":
        scale = [(new + 0.1) / old for new, old in zip(new_hw, old_hw, strict=True)]
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    elif method == "nearest":
        grid = F.interpolate(grid, size=new_hw, mode="nearest")
    else:
        mode = method.removesuffix("_antialias")
        grid = F.interpolate(grid, size=new_hw, mode=mode, antialias=method.endswith("antialias"))
    grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    return torch.cat((head, grid), dim=1)
