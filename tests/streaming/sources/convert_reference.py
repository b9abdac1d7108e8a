"""The picture conversion written out plainly in float64: chroma up, matrix, exact area average. Slow and easy to read."""

from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from streaming.sources.planes import plane_view

WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


def area_weights(count: int, out: int) -> NDArray[np.float64]:
    """(out, count): how much of each sample lies in each output cell; for count >= out."""
    edges = np.arange(out + 1) * count / out
    sample = np.arange(count)[None, :]
    overlap = np.minimum(edges[1:, None], sample + 1) - np.maximum(edges[:-1, None], sample)
    overlap = np.clip(overlap, 0.0, None)
    return overlap / overlap.sum(axis=1, keepdims=True)


def area_average(picture: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """(H, W) or (H, W, C) -> the mean over each cell of `size_hw`."""
    rows, columns = area_weights(picture.shape[0], size_hw[0]), area_weights(picture.shape[1], size_hw[1])
    return (
        np.moveaxis(rows @ np.moveaxis(picture, -1, 0) @ columns.T, 0, -1)
        if picture.ndim == 3
        else rows @ picture @ columns.T
    )


def upsampled(chroma: NDArray[np.uint8], size_hw: tuple[int, int], *, left: bool) -> NDArray[np.float64]:
    """Chroma at every pixel: samples lie on the left pixel of each pair (decoders of H.264 say so) or between the two."""
    tall = np.repeat(chroma.astype(float), -(-size_hw[0] // chroma.shape[0]), axis=0)[: size_hw[0]]
    if chroma.shape[1] == size_hw[1]:
        return tall
    if not left:
        return np.repeat(tall, 2, axis=1)[:, : size_hw[1]]
    at = np.arange(size_hw[1]) / 2
    here = np.minimum(at.astype(int), chroma.shape[1] - 1)
    after = np.minimum(here + 1, chroma.shape[1] - 1)
    return tall[:, here] * (1 - at % 1) + tall[:, after] * (at % 1)


def rows_of(plane: Any) -> NDArray[np.uint8]:
    """The samples of an 8-bit plane, writable."""
    return plane_view(plane, (plane.height, plane.width))


def planes_of(image: av.VideoFrame) -> list[NDArray[np.uint8]]:
    """Copies of Y, U, V of a planar 8-bit picture."""
    return [rows_of(plane).copy() for plane in image.planes]


def to_rgb(
    y: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64], matrix: str, *, full: bool
) -> NDArray[np.float64]:
    """(H, W) planes in levels of 255 -> (H, W, 3), not clipped; ITU-R BT.601-7 and BT.709-6."""
    red, blue = WEIGHTS[matrix]
    luma, cb, cr = (
        (y, u - 128, v - 128) if full else ((y - 16) * 255 / 219, (u - 128) * 255 / 224, (v - 128) * 255 / 224)
    )
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    return np.stack([r, (luma - red * r - blue * b) / (1 - red - blue), b], axis=-1)


def reference(
    image: av.VideoFrame, size_hw: tuple[int, int], matrix: str, *, full: bool = False, left: bool = False
) -> NDArray[np.float64]:
    """Planar YUV -> (H, W, 3) float64 RGB in 0..255, squashed to `size_hw`."""
    y, u, v = planes_of(image)
    rgb = to_rgb(y.astype(float), upsampled(u, y.shape, left=left), upsampled(v, y.shape, left=left), matrix, full=full)
    return np.clip(area_average(rgb, size_hw), 0, 255)
