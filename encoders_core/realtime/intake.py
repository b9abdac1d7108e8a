"""What users hand over as frames, brought to the one form that the encoder takes: (H, W, 3) uint8 RGB of its size."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from encoders_core.errors import InputError
from encoders_core.preprocessing import InputSpec

_SCALERS: Final = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_EXPECTED: Final = "expected uint8, or float from 0 to 1, of shape (T, C, H, W), (C, H, W), (T, H, W, C) or (H, W, C)"

Frames = torch.Tensor | NDArray[Any] | Sequence["torch.Tensor | NDArray[Any]"]


def as_frames(frames: Frames, spec: InputSpec) -> Iterator[NDArray[np.uint8]]:
    """Frames in any of the forms below -> one (H, W, 3) uint8 after the other, of `spec.size_hw`.

    (T, C, H, W) or (C, H, W) or the same with channels last; tensors or arrays; uint8, or float from 0 to 1; or a list of
    single frames, which may differ in size. Raises InputError for anything else.
    """
    if isinstance(frames, torch.Tensor | np.ndarray):
        pixels = _as_array(frames)
        for frame in pixels if pixels.ndim == 4 else [pixels]:
            yield fit_frame(_as_rgb(frame), spec)
        return
    if not isinstance(frames, Sequence):
        raise InputError(f"{_EXPECTED}, or a list of such frames; got {type(frames).__name__}")
    for frame in frames:
        yield as_frame(frame, spec)


def as_frame(frame: torch.Tensor | NDArray[Any], spec: InputSpec) -> NDArray[np.uint8]:
    """One frame, (C, H, W) or (H, W, C), uint8 or float from 0 to 1 -> (H, W, 3) uint8 of `spec.size_hw`."""
    pixels = _as_array(frame)
    if pixels.ndim != 3:
        raise InputError(f"expected a frame of shape (C, H, W) or (H, W, C), got shape {pixels.shape}")
    return fit_frame(_as_rgb(pixels), spec)


def fit_frame(frame: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 -> (H', W', 3) uint8 of `spec.size_hw`, contiguous; fit and scaler as `spec` says."""
    high, wide = spec.size_hw
    if frame.shape[:2] == (high, wide):
        return np.ascontiguousarray(frame)
    match spec.fit:
        case "squash":
            return _resize(frame, (high, wide), spec)
        case "crop":
            scale = min(frame.shape[0] / high, frame.shape[1] / wide)
            inner_h, inner_w = round(high * scale), round(wide * scale)
            top, left = (frame.shape[0] - inner_h) // 2, (frame.shape[1] - inner_w) // 2
            return _resize(frame[top : top + inner_h, left : left + inner_w], (high, wide), spec)
        case "letterbox":
            scale = min(high / frame.shape[0], wide / frame.shape[1])
            inner_h, inner_w = max(1, round(frame.shape[0] * scale)), max(1, round(frame.shape[1] * scale))
            top, left = (high - inner_h) // 2, (wide - inner_w) // 2
            boxed = np.zeros((high, wide, 3), np.uint8)
            boxed[top : top + inner_h, left : left + inner_w] = _resize(frame, (inner_h, inner_w), spec)
            return boxed


def shrink_frame(frame: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 -> (size_px, size_px, 3) uint8, the mean over each new pixel's area."""
    if frame.shape[:2] == (size_px, size_px):
        return frame
    return np.asarray(cv2.resize(frame, (size_px, size_px), interpolation=cv2.INTER_AREA), np.uint8)


def _resize(frame: NDArray[np.uint8], size_hw: tuple[int, int], spec: InputSpec) -> NDArray[np.uint8]:
    resized = cv2.resize(np.ascontiguousarray(frame), size_hw[::-1], interpolation=_SCALERS[spec.scaler])
    return np.asarray(resized, np.uint8)


def _as_array(frames: torch.Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    pixels = frames.detach().cpu().numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames)
    if pixels.ndim not in (3, 4) or pixels.size == 0:
        raise InputError(f"{_EXPECTED}; got shape {pixels.shape}")
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(f"{_EXPECTED}; got {pixels.dtype}")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"{_EXPECTED}; got values from {low:.3g} to {high:.3g}: undo the normalisation first")
    return np.asarray(np.rint(pixels * 255), np.uint8)


def _as_rgb(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if frame.shape[2] == 3:
        return frame
    if frame.shape[0] == 3:
        return frame.transpose(1, 2, 0)
    raise InputError(f"{_EXPECTED} with C = 3 (RGB); got a frame of shape {frame.shape}")
