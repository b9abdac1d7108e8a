"""How much moves from frame to frame: optical flow in pixels, or, cheaper, the difference in grey levels."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders_core.errors import OptionError
from encoders_core.image_transform import ImageTransform
from encoders_core.video.clips import unit_pixels
from encoders_core.video.sampling import grey


def step_motion(
    x: Tensor, counts: Tensor, tubelet_size: int, transform: ImageTransform, measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """(B, T, C, H, W) model input, (B, steps) True where a step counts -> (B, steps); of a tubelet the mean of its frames."""
    rows = []
    for clip, mask in zip(x.detach(), counts.repeat_interleave(tubelet_size, dim=1), strict=True):
        row = torch.zeros(clip.shape[0])
        row[mask.cpu()] = measure(grey(unit_pixels(clip[mask], transform)))
        rows.append(row.view(-1, tubelet_size).mean(dim=1))
    return torch.stack(rows).to(x.device)


def difference_motion(grey: Tensor) -> Tensor:
    """(T, H, W) grey in 0 to 1 -> (T,) mean absolute difference to the frame before, in grey levels of 255.

    The first frame has none before it and takes the value of the second; a single frame has 0.
    """
    if grey.shape[0] < 2:
        return torch.zeros(grey.shape[0])
    return _with_first((grey[1:] - grey[:-1]).abs().mean(dim=(1, 2)).float().cpu() * 255)


def flow_motion(grey: Tensor) -> Tensor:
    """(T, H, W) grey in 0 to 1 -> (T,) mean length of the optical flow from the frame before, in pixels.

    Dense inverse search (DIS, https://arxiv.org/abs/1603.03590) of OpenCV, preset "fast". First frame as above. Raises
    OptionError without OpenCV.
    """
    if grey.shape[0] < 2:
        return torch.zeros(grey.shape[0])
    frames = (grey.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    flow = optical_flow(frames)
    return _with_first(torch.from_numpy(np.linalg.norm(flow, axis=-1).mean(axis=(1, 2))))


def optical_flow(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(T, H, W) uint8 grey -> (T - 1, H, W, 2) float32: displacement x, y in pixels from each frame to the next."""
    try:
        import cv2  # noqa: PLC0415  optional: only optical flow needs it here
    except ImportError as exc:
        raise OptionError("enable_optical_flow needs OpenCV: pip install 'camvec[edge]'") from exc
    create: Any = getattr(cv2, "DISOpticalFlow_create")  # noqa: B009  OpenCV's type stubs leave it out
    estimator = create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    pairs = pairwise(frames)
    return np.stack([np.asarray(estimator.calc(before, after, None), np.float32) for before, after in pairs])


def _with_first(motion: Tensor) -> Tensor:
    return torch.cat((motion[:1], motion))
