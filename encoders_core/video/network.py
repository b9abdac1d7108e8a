"""The computation of a VideoEncoder: from clips or model input to a result, whatever it is built from."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.encoder import Encoder
from encoders_core.errors import InputError
from encoders_core.image_transform import ImageTransform
from encoders_core.models.eager_linear import lay_out
from encoders_core.models.frame_tower import ClipTower, FrameTower, Steps
from encoders_core.models.temporal_heads import SequenceHead
from encoders_core.models.temporal_pooling import TemporalPool, check_mask
from encoders_core.video.clips import Clip
from encoders_core.video.loading import VideoParts
from encoders_core.video.motion import difference_motion, flow_motion, step_motion
from encoders_core.video.options import TemporalAggregation, VideoConfig, check_aggregation
from encoders_core.video.result import NO_FRAME, VideoResult


class ClipNetwork(Encoder):
    """Clips -> vectors: a tower on frames or clips, a temporal model over its steps, a pooling over time, a head."""

    modalities: ClassVar[tuple[str, ...]] = ("video",)
    tower: FrameTower | ClipTower
    temporal: SequenceHead | None
    pool: TemporalPool
    head: nn.Module
    transform: ImageTransform
    """Preprocessing of each frame; replace it to change it."""
    config: VideoConfig
    enable_preprocessing: bool
    seed: int | None

    def furnish(self, parts: VideoParts, *, enable_preprocessing: bool, seed: int | None = None) -> None:
        """Put the parts in their places, in evaluation mode; what they do not bring is made new and random."""
        tower, output_dim = parts.tower, parts.output_dim
        self.tower, self.config, self.transform = tower, parts.config, parts.transform
        self.temporal, self.pool = temporal_model(tower, parts.config), TemporalPool(tower.dim)
        self.head = nn.Identity() if output_dim in (None, tower.dim) else nn.Linear(tower.dim, output_dim or 0)
        self.enable_preprocessing, self.seed, self.trained = enable_preprocessing, seed, parts.trained
        lay_out(self)
        self.eval()

    @property
    def output_dim(self) -> int:
        """Width of the features."""
        return self.head.out_features if isinstance(self.head, nn.Linear) else self.tower.dim

    def forward(
        self, x: Tensor, mask: Tensor | None = None, temporal_aggregation: TemporalAggregation | None = None
    ) -> Tensor:
        """(B, T, C, H, W) normalised, `mask` (B, T) True where a frame counts -> (B, output_dim); gradients pass."""
        return self._run(x, mask, temporal_aggregation).features

    def preprocess(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """Clips -> normalised (B, T, C, H, W) and (B, T) True where a frame is one, padded behind with zeros."""
        options: dict[str, Any] = {"enabled": self.enable_preprocessing, "noun": "frames"}
        ready = [self.transform.model_input(clip.frames, **options) for clip in clips]
        if len({one.shape[1:] for one in ready}) > 1:
            raise InputError(
                f"expected frames of one size in a batch, got {sorted({tuple(x.shape[1:]) for x in ready})}"
            )
        longest = max(one.shape[0] for one in ready)
        batch = torch.stack([F.pad(one, (0, 0, 0, 0, 0, 0, 0, longest - one.shape[0])) for one in ready])
        lengths = torch.tensor([one.shape[0] for one in ready])
        mask = torch.arange(longest)[None] < lengths[:, None]
        return batch.to(self.device, self.dtype), mask.to(self.device)

    def encode_clips(
        self,
        clips: Sequence[Clip],
        aggregation: TemporalAggregation | None,
        *,
        attention: bool = False,
        layers: bool = False,
    ) -> VideoResult:
        """Clips of any lengths as one batch."""
        x, mask = self.preprocess(clips)
        result = self._run(x, None if bool(mask.all()) else mask, aggregation, attention=attention, layers=layers)
        indices = torch.full(mask.shape, NO_FRAME)
        for row, clip in enumerate(clips):
            indices[row, : len(clip.indices)] = torch.tensor(clip.indices)
        return dataclasses.replace(result, frame_indices=indices, features=result.features.float())

    def _run(
        self,
        x: Tensor,
        mask: Tensor | None,
        aggregation: TemporalAggregation | None,
        *,
        attention: bool = False,
        layers: bool = False,
    ) -> VideoResult:
        """The whole computation on model input (B, T, C, H, W)."""
        if x.ndim != 5:
            raise InputError(f"expected clips (B, T, C, H, W), got {tuple(x.shape)}")
        if mask is not None:
            check_mask(mask)
        how = check_aggregation(aggregation or self.config.pooling, token=self.gives_token, attention=attention)
        wants_maps = self.temporal is not None and self.temporal.map_dim is not None
        steps: Steps = self.tower(x, mask, maps=wants_maps)
        counts = torch.ones(steps.features.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        motion = None
        if self.config.measures_motion:
            measure = flow_motion if self.config.optical_flow else difference_motion
            motion = step_motion(x, counts, self.tower.tubelet_size, self.transform, measure)
        weights: list[Tensor] | None = [] if layers else None
        sequence = steps.features
        if self.temporal is not None:
            sequence = self.temporal(sequence, mask, steps.maps, weights)
        if how == "cls_token" and steps.token is not None:
            pooled, attended = steps.token, None
        else:
            drawn = motion if self.config.motion_attention else None
            pooled, attended = self.pool(sequence, counts, how, drawn)
        return VideoResult(
            features=self.head(self.tower.finish(pooled)),
            step_mask=counts,
            frame_indices=torch.empty(x.shape[0], 0, dtype=torch.long),
            temporal_attention=attended.float() if attention and attended is not None else None,
            layer_attention=torch.stack(weights, dim=1).float() if weights else None,
            motion=motion,
            frame_features=steps.features.float(),
        )

    @property
    def gives_token(self) -> bool:
        """Whether a class token of the tower can be the clip's feature."""
        has_token = isinstance(self.tower, ClipTower) and self.tower.model.config.class_token
        return has_token and self.temporal is None


def temporal_model(tower: FrameTower | ClipTower, config: VideoConfig) -> SequenceHead | None:
    """A new one, untrained, as `config` says."""
    return None if config.temporal is None else SequenceHead(tower.dim, config.temporal, tower.map_dim).eval()
