"""What MedicalEncoder.encode returns: a VisionResult with maps, scales, regions, and which frame each row is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from encoders_core.medical.regions import Region
from encoders_core.results import VisionResult


@dataclass(frozen=True, kw_only=True, repr=False)
class MedicalResult(VisionResult):
    """Features of medical pictures, (B, D) float32; B counts frames."""

    attention_maps: Tensor | None = None
    """(B, h, w): how much each patch flows into the feature, see `attention_rollout`; each map sums to 1."""
    scale_features: Tensor | None = None
    """(B, 2, D): of unit length, of the picture whole and at half its size; `features` are their mean."""
    region_boxes: Tensor | None = None
    """(B, R, 4): left, top, right, bottom in pixels of the picture as it came; zeros where there is no further region."""
    region_scores: Tensor | None = None
    """(B, R): share of all attention in the region, strongest first; 0 where there is no further region."""
    picture_indices: Tensor
    """(B,) int64: which input the row is of."""
    frame_indices: Tensor
    """(B,) int64: which frame of that input."""

    @property
    def regions(self) -> list[list[Region]] | None:
        """The regions of each picture, strongest first."""
        if self.region_boxes is None or self.region_scores is None:
            return None
        rows = torch.cat((self.region_boxes, self.region_scores[:, :, None]), dim=2).tolist()
        return [[Region(*region) for region in row if region[-1] > 0] for row in rows]
