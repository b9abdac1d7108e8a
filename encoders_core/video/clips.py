"""Clips of every kind a user has (paths, tensors, arrays, lists of pictures) as RGB frames of a chosen few moments."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from encoders_core.errors import InputError
from encoders_core.image_transform import ImageTransform
from encoders_core.images import ChannelOrder, ValueRange, load_images
from encoders_core.options import refuse_unknown
from encoders_core.video.sampling import Sampling, at_rate, choose, spread, thumbnail

logger = logging.getLogger(__name__)

_EXPECTED: Final = (
    "expected clips as a tensor (B, T, C, H, W), an array (B, T, H, W, C), one clip (T, C, H, W), a path, a list of "
    "pictures, or a list of clips"
)
_PICTURE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_CAP_PROP_FPS: Final = 5  # cv2.CAP_PROP_FPS, part of OpenCV's stable interface


@dataclass(frozen=True, kw_only=True)
class ClipReading:
    """How clips become frames. `limit` of them at most, or with `exactly` that many; `fps` is what clips are brought to."""

    limit: int
    exactly: bool
    fps: float
    sampling: Sampling
    channels: int
    channel_order: ChannelOrder = "rgb"
    value_range: ValueRange = "auto"
    unit: Callable[[Tensor], Tensor]
    """(T, C, H, W) uint8 pixels or model input -> 0 to 1."""


@dataclass(frozen=True)
class Clip:
    """The frames that were chosen, each (C, H, W) uint8 or model input, and which of the clip's frames they are."""

    frames: list[Tensor]
    indices: list[int]


def is_single(videos: Any) -> bool:
    """Whether `videos` is one clip: a path, an array of four dimensions, a list of pictures, an {"array": ...}."""
    if isinstance(videos, Tensor | np.ndarray):
        return videos.ndim < 5
    if isinstance(videos, str | os.PathLike | Mapping) or not isinstance(videos, Sequence):
        return True
    return bool(videos) and all(_is_picture(item) for item in videos)


def as_clips(videos: Any) -> list[Any]:
    """The clips of a batch one by one, not yet loaded; one clip is a batch of one."""
    if isinstance(videos, Tensor | np.ndarray) and videos.ndim not in (4, 5):
        raise InputError(f"{_EXPECTED}; got shape {tuple(videos.shape)}")
    return [videos] if is_single(videos) else list(videos)


def read_clip(clip: Any, how: ClipReading, *, mask: Tensor | None = None, source_fps: float | None = None) -> Clip:
    """One clip -> its chosen frames. `mask` (T,) False for frames that do not count; they are never chosen.

    `source_fps` says how fast the clip was taken, a file says so itself. Raises InputError for what is no clip.
    """
    if isinstance(clip, Mapping):
        refuse_unknown(clip, ("array", "video_metadata"), "clip")
        source_fps = (clip.get("video_metadata") or {}).get("fps", source_fps)
        clip = clip["array"]
    if isinstance(clip, str | os.PathLike):
        if mask is not None:
            raise InputError("a mask of frames is for clips of frames, not for files")
        return _read_file(os.fspath(clip), how)
    frames = _frames(clip, how)
    valid = list(range(len(frames))) if mask is None else _valid(mask, len(frames))
    if source_fps is not None:
        valid = [valid[index] for index in at_rate(len(valid), _positive(source_fps), how.fps)]
    picked = choose(how.sampling, len(valid), how.limit, lambda: _thumbnails([frames[i] for i in valid], how))
    indices = [valid[index] for index in spread(picked, how.limit, exactly=how.exactly)]
    return Clip([frames[index] for index in indices], indices)


def masks_of(given: Any, count: int) -> list[Tensor | None]:
    """`frame_mask` of `encode` -> one mask (T,) for each of `count` clips. Raises InputError for another number."""
    if given is None:
        return [None] * count
    rows = [torch.as_tensor(row, dtype=torch.bool) for row in given]
    if rows and rows[0].ndim == 0 and count == 1:
        rows = [torch.stack(rows)]
    if len(rows) != count:
        raise InputError(f"frame_mask: expected one row for each of {count} clips, got {len(rows)}")
    return list(rows)


def unit_pixels(frames: Tensor, transform: ImageTransform) -> Tensor:
    """(T, C, H, W) uint8, or model input as `transform` makes it -> 0 to 1."""
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    mean, std = (
        torch.tensor(values, device=frames.device).view(-1, 1, 1) for values in (transform.mean, transform.std)
    )
    pixels = (frames.float() * std + mean - transform.offset) / transform.scale
    return (pixels / 255).clamp(0, 1)


def _frames(clip: Any, how: ClipReading) -> list[Tensor]:
    if isinstance(clip, Tensor | np.ndarray):
        if clip.ndim != 4:
            raise InputError(f"{_EXPECTED}; got a clip of shape {tuple(clip.shape)}")
    elif not isinstance(clip, Sequence):
        raise InputError(f"{_EXPECTED}; got {type(clip).__name__}")
    value_range = how.value_range
    if value_range == "auto" and isinstance(clip, Tensor | np.ndarray) and _is_unit(clip):
        value_range = "normalized"  # said once here, not once a frame
        logger.warning(
            "a clip of floats from 0 to 1 was taken as model input, already normalised; if they are pixels, say "
            "value_range='unit' (or 'normalized' to say that they are not)"
        )
    return load_images(clip, channels=how.channels, channel_order=how.channel_order, value_range=value_range)


def _is_unit(clip: Any) -> bool:
    floats = clip.is_floating_point() if isinstance(clip, Tensor) else np.issubdtype(clip.dtype, np.floating)
    return bool(floats and len(clip) and clip.min() >= 0 and clip.max() <= 1)


def _valid(mask: Tensor, length: int) -> list[int]:
    if tuple(mask.shape) != (length,):
        raise InputError(f"expected a mask with one entry for each of {length} frames, got shape {tuple(mask.shape)}")
    return [index for index, counts in enumerate(mask.tolist()) if counts]


def _positive(fps: float) -> float:
    if not fps > 0:
        raise InputError(f"source_fps: expected a positive number of frames a second, got {fps}")
    return fps


def _is_picture(item: Any) -> bool:
    if isinstance(item, Tensor | np.ndarray):
        return item.ndim < 4
    if isinstance(item, str | os.PathLike):
        return Path(item).suffix.lower() in _PICTURE_SUFFIXES
    return hasattr(item, "getbands")


def _thumbnails(frames: Sequence[Tensor], how: ClipReading) -> Tensor:
    return torch.cat([thumbnail(how.unit(frame[None])) for frame in frames])


# --- Files ----------------------------------------------------------------------------------------------------------


def _read_file(path: str, how: ClipReading) -> Clip:
    """A file's chosen frames, in two passes, so that no more than those are held in memory.

    The first counts the frames, which containers lie about, and looks at them if it must; the second reads.
    """
    fps, length, thumbnails = _survey(path, how)
    at_fps = at_rate(length, fps, how.fps) if fps > 0 else list(range(length))
    picked = choose(how.sampling, len(at_fps), how.limit, lambda: torch.stack([thumbnails[i] for i in at_fps]))
    indices = [at_fps[index] for index in spread(picked, how.limit, exactly=how.exactly)]
    wanted = set(indices)
    found = {index: picture for index, picture in _pictures(_open(path), wanted) if picture is not None}
    if len(found) != len(wanted):
        raise InputError(f"{path!r}: {len(wanted) - len(found)} of {len(wanted)} frames could not be decoded")
    chosen = [_rgb(found[index], how) for index in indices]
    return Clip(chosen, indices)


def _survey(path: str, how: ClipReading) -> tuple[float, int, list[Tensor]]:
    """Frames a second (0 if unknown), number of frames, and their thumbnails when the sampling looks at them."""
    capture, length, looks = _open(path), 0, how.sampling.looks
    thumbnails: list[Tensor] = []
    fps = float(capture.get(_CAP_PROP_FPS))
    for index, picture in _pictures(capture, None if looks else set()):
        length = index + 1
        if looks:
            damaged = picture is None and thumbnails
            thumbnails.append(thumbnails[-1] if damaged else thumbnail(how.unit(_rgb(picture, how)[None]))[0])
    if length == 0:
        raise InputError(f"{path!r}: damaged, or no video that OpenCV can read: it gave no frame")
    return fps, length, thumbnails


def _pictures(capture: Any, wanted: set[int] | None) -> Iterator[tuple[int, Any]]:
    """Index and picture (H, W, 3) uint8 BGR of each frame in order; None for those not in `wanted` (None: all)."""
    last = max(wanted) if wanted else None
    try:
        index = 0
        while capture.grab():
            take = wanted is None or index in wanted
            yield index, capture.retrieve()[1] if take else None
            if index == last:
                return
            index += 1
    finally:
        capture.release()


def _open(path: str) -> Any:
    if "://" in path:
        raise InputError(
            f"expected a file, got the address {path.partition('://')[0]}://...: streams go through encode_stream"
        )
    try:
        import cv2  # noqa: PLC0415  optional: tensors and arrays need none
    except ImportError as exc:
        raise InputError("reading video files needs OpenCV: pip install 'camvec[edge]'") from exc
    if not Path(path).is_file():
        raise InputError(f"no video file {path!r}")
    capture = cv2.VideoCapture(path)
    if not capture.isOpened():
        raise InputError(f"{path!r}: damaged, or no video that OpenCV can read")
    return capture


def _rgb(picture: Any, how: ClipReading) -> Tensor:
    """(H, W, 3) uint8 BGR, as OpenCV gives it -> (C, H, W) uint8, RGB or grey."""
    frame = torch.from_numpy(picture[:, :, ::-1].copy()).permute(2, 0, 1)
    if how.channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        return (frame * weights).sum(dim=0, keepdim=True).round().to(torch.uint8)
    return frame
