"""Which frames of a clip are encoded: evenly spread ones, those that differ, or one for each shot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor

from encoders_core.errors import InputError, OptionError

Strategy = Literal["uniform", "adaptive", "key_frames"]

THUMBNAIL_PX: Final = 32
_LUMA: Final = (0.299, 0.587, 0.114)
_C1: Final = 0.01**2
_C2: Final = 0.03**2


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How frames are chosen; similarity is `similarity`, at most 1.

    "uniform": evenly spread. "adaptive": every frame whose similarity to the one chosen before it is below
    `adaptive_threshold`. "key_frames": the clip is cut where neighbours are less similar than `key_frame_threshold`,
    and each shot gives the frame that is most like its mean. More than may be encoded are thinned: adaptive ones evenly,
    of the shots the longest stay.
    """

    strategy: Strategy = "uniform"
    adaptive_threshold: float = 0.8
    key_frame_threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise OptionError(f"strategy: expected one of {', '.join(get_args(Strategy))}, got {self.strategy!r}")
        for name in ("adaptive_threshold", "key_frame_threshold"):
            if not 0 < getattr(self, name) <= 1:
                raise OptionError(f"{name}: expected a number above 0, up to 1, got {getattr(self, name)}")

    @property
    def looks(self) -> bool:
        """Whether the frames must be seen to be chosen."""
        return self.strategy != "uniform"


def choose(sampling: Sampling, length: int, limit: int, thumbnails: Callable[[], Tensor]) -> list[int]:
    """Increasing indices, 1 to `limit` of them, into a clip of `length` frames; `thumbnails` (length, h, w) if needed."""
    if length < 1:
        raise InputError("expected at least one frame in every clip, got an empty one")
    if sampling.strategy == "adaptive":
        return spread(_differing(thumbnails(), sampling.adaptive_threshold), limit)
    if sampling.strategy == "key_frames":
        return _key_frames(thumbnails(), sampling.key_frame_threshold, limit)
    return spread(list(range(length)), limit)


def spread(indices: list[int], limit: int, *, exactly: bool = False) -> list[int]:
    """At most `limit` of `indices`, evenly, first and last among them, as torchvision's uniform_temporal_subsample.

    `exactly`: as many as `limit`, by repeating some when there are fewer.
    """
    if len(indices) <= limit and not exactly:
        return indices
    places = torch.linspace(0, len(indices) - 1, limit).long()
    return [indices[place] for place in places.tolist()]


def at_rate(length: int, source_fps: float, fps: float) -> list[int]:
    """The frames of a clip at `source_fps` that make one at `fps`; a slower clip keeps all of its frames."""
    if source_fps <= fps:
        return list(range(length))
    count = max(1, round(length * fps / source_fps))
    return [min(length - 1, int(index * source_fps / fps)) for index in range(count)]


def thumbnail(frames: Tensor) -> Tensor:
    """(T, C, H, W) in 0 to 1 -> (T, 32, 32) grey, each the mean over its area."""
    return F.interpolate(grey(frames)[:, None], size=(THUMBNAIL_PX, THUMBNAIL_PX), mode="area")[:, 0]


def grey(frames: Tensor) -> Tensor:
    """(T, C, H, W) -> (T, H, W), weighted as BT.601 for three channels, the mean for others."""
    if frames.shape[1] != 3:
        return frames.mean(dim=1)
    return torch.einsum("tchw,c->thw", frames, torch.tensor(_LUMA, dtype=frames.dtype, device=frames.device))


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """(..., h, w) in 0 to 1 each -> (...,): 1 for equal pictures, less when light, contrast or structure differ.

    The structural similarity index over the whole picture: Wang et al., 2004, doi 10.1109/TIP.2003.819861.
    """
    a, b = a.flatten(-2), b.flatten(-2)
    mean_a, mean_b = a.mean(-1), b.mean(-1)
    covariance = ((a - mean_a[..., None]) * (b - mean_b[..., None])).mean(-1)
    light = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return light * (2 * covariance + _C2) / (a.var(-1, correction=0) + b.var(-1, correction=0) + _C2)


def _differing(thumbnails: Tensor, threshold: float) -> list[int]:
    chosen = [0]
    for index in range(1, thumbnails.shape[0]):
        if float(similarity(thumbnails[index], thumbnails[chosen[-1]])) < threshold:
            chosen.append(index)
    return chosen


def _key_frames(thumbnails: Tensor, threshold: float, limit: int) -> list[int]:
    neighbours = similarity(thumbnails[1:], thumbnails[:-1])
    cuts = [0, *(index + 1 for index in range(len(neighbours)) if float(neighbours[index]) < threshold)]
    shots = list(zip(cuts, [*cuts[1:], thumbnails.shape[0]], strict=True))
    longest = sorted(shots, key=lambda shot: shot[0] - shot[1])[:limit]
    return sorted(first + _most_typical(thumbnails[first:end]) for first, end in longest)


def _most_typical(shot: Tensor) -> int:
    return int(similarity(shot, shot.mean(dim=0, keepdim=True)).argmax())
