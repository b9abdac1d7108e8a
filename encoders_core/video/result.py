"""What VideoEncoder.encode returns."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor

from encoders_core.results import EncodingResult


@dataclass(frozen=True, kw_only=True, repr=False)
class VideoResult(EncodingResult):
    """Features of clips, (B, D) float32. T counts the steps in time: frames, or tubelets of several frames.

    Clips of other lengths are padded behind their last step; joined results are padded to the longest.
    """

    step_mask: Tensor
    """(B, T) bool: False where a step is padding, or was masked."""
    frame_indices: Tensor
    """(B, frames) int64: which frames of the clip were encoded; -1 is padding."""
    temporal_attention: Tensor | None = None
    """(B, T): how much each step weighs in the features; rows sum to 1, padding has 0."""
    layer_attention: Tensor | None = None
    """(B, layers, heads, T, T): who looks at whom in the temporal model; rows sum to 1."""
    motion: Tensor | None = None
    """(B, T): mean length of the optical flow in pixels, or without it the mean difference in grey levels."""
    frame_features: Tensor | None = None
    """(B, T, F): the features of each step before any temporal model; padding has 0."""

    PADDING: ClassVar[dict[str, tuple[int, Any]]] = {
        "step_mask": (1, False),
        "frame_indices": (1, -1),
        "temporal_attention": (1, 0.0),
        "layer_attention": (2, 0.0),
        "motion": (1, 0.0),
        "frame_features": (1, 0.0),
    }
    """Of each field with a time axis: how many of its last axes that is (frame_features: the one before), what pads it."""

    @classmethod
    def align(cls, results: Sequence[Any]) -> Sequence[Any]:
        """Pad every field to the longest clip among `results`."""
        for name, (axes, value) in cls.PADDING.items():
            fields = [getattr(result, name) for result in results]
            if any(field is None for field in fields):
                continue
            axis = 1 if name == "frame_features" else -1
            longest = max(field.shape[axis] for field in fields)
            padded = [pad_steps(field, longest, axis=axis, axes=axes, value=value) for field in fields]
            results = [dataclasses.replace(one, **{name: field}) for one, field in zip(results, padded, strict=True)]
        return results


def pad_steps(x: Tensor, length: int, *, axis: int, axes: int, value: Any) -> Tensor:
    """Grow `axis` (1, or the last `axes` of them) to `length` with `value`."""
    missing = length - x.shape[axis]
    if missing == 0:
        return x
    padding = [0, 0, 0, missing] if axis == 1 else [0, missing] * axes
    return F.pad(x, padding, value=value)


NO_FRAME: Final = -1
