"""From clips to steps in time: an image model frame by frame, or a space-time transformer, behind one interface."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from encoders_core.models.video_transformer import SpaceTimeTransformer
from encoders_core.models.vit import VisionTransformer

_FRAMES_AT_ONCE = 32


class Steps(NamedTuple):
    """What a tower makes of clips."""

    features: Tensor
    """(B, T, F)."""
    maps: Tensor | None
    """(B, T, h, w, C), when asked for."""
    token: Tensor | None
    """(B, F): the tower's own summary, where it has a class token over the whole clip."""


class FrameTower(nn.Module):
    """An image model on every frame."""

    tubelet_size = 1

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model
        self.dim, self.map_dim = model.config.output_dim, model.config.embed_dim

    def forward(self, x: Tensor, mask: Tensor | None = None, *, maps: bool = False) -> Steps:
        """(B, T, C, H, W) normalised; frames where `mask` (B, T) is False are not computed and give zeros."""
        if mask is None:
            features, grids = self._encode(x.flatten(0, 1), maps=maps)
            return Steps(torch.unflatten(features, 0, x.shape[:2]), _rows(grids, x.shape[:2]), None)
        features, grids = self._encode(x[mask], maps=maps)
        return Steps(_scatter(features, mask), None if grids is None else _scatter(grids, mask), None)

    def finish(self, pooled: Tensor) -> Tensor:
        """What belongs behind the pooling over time: nothing."""
        return pooled

    def _encode(self, frames: Tensor, *, maps: bool) -> tuple[Tensor, Tensor | None]:
        """(N, C, H, W) -> (N, F), and (N, h, w, C) if asked for; a bounded number at a time."""
        # A traced loop would fix the number of frames, and a compiler plans memory itself.
        chunks = [frames] if torch.compiler.is_compiling() else torch.split(frames, _FRAMES_AT_ONCE)
        if not maps:
            return torch.cat([self.model(chunk) for chunk in chunks]), None
        config = self.model.config
        grid_hw = (frames.shape[-2] // config.patch_size, frames.shape[-1] // config.patch_size)
        tokens = [self.model.forward_features(chunk) for chunk in chunks]
        features = torch.cat([self.model.forward_head(one) for one in tokens])
        return features, torch.cat([torch.unflatten(one[:, config.prefix :], 1, grid_hw) for one in tokens])


class ClipTower(nn.Module):
    """A space-time transformer: its steps are the means of its patches over space."""

    def __init__(self, model: SpaceTimeTransformer) -> None:
        super().__init__()
        self.model = model
        self.dim = self.map_dim = model.config.embed_dim
        self.tubelet_size = model.config.tubelet_size

    def forward(self, x: Tensor, mask: Tensor | None = None, *, maps: bool = False) -> Steps:  # noqa: ARG002  one signature for both; clips of this tower are never padded
        """(B, T, C, H, W) normalised, T as the model wants it."""
        token, grids = self.model(x)
        return Steps(grids.mean(dim=(2, 3)), grids if maps else None, token)

    def finish(self, pooled: Tensor) -> Tensor:
        """What belongs behind the pooling over time: VideoMAE's last norm."""
        normed: Tensor = self.model.fc_norm(pooled)
        return normed


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """(N, ...) to where `mask` (B, T) is True, zeros elsewhere: (B, T, ...)."""
    out = values.new_zeros(*mask.shape, *values.shape[1:])
    out[mask] = values
    return out


def _rows(grids: Tensor | None, shape: torch.Size) -> Tensor | None:
    return None if grids is None else torch.unflatten(grids, 0, shape)
