"""From a decoded picture to what a model wants: uint8 RGB of its size, straight from YUV, in one scaling pass.

swscale scales the planes (4:2:0 to 4:4:4 at the small size, which is where antialiasing happens); the colour matrix runs
over the small picture alone. Measured against OpenCV and against swscale's own way to RGB in benchmarks/bench_convert.py.

Both libraries release the GIL. Nothing here sets thread counts for the process: swscale is asked for one thread per call,
and the process that calls `convert` runs `cv2.setNumThreads(1)` once at its start (OpenCV's pool costs more than it gives
at these sizes).
"""

import threading
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar

import av
import cv2
import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from streaming.frames import FrameSpec
from streaming.sources.planes import plane_view

T = TypeVar("T")
Plane = NDArray[np.uint8]

LETTERBOX_LEVEL: Final = 0
# swscale's flags by number: PyAV before 18 names only some of them.
_SCALERS: Final = {"area": 0x20, "bilinear": 0x2, "bicubic": 0x4}
# ACCURATE_RND, BITEXACT: a flat picture stays flat, and every processor gives the same, for 0.02 ms.
_EXACT: Final = 0x40000 | 0x80000
# FULL_CHR_H_INT, FULL_CHR_H_INP: without them RGB goes through subsampled YUV (9 levels off) and takes twice as long.
_KEEP_RGB: Final = 0x2000 | 0x4000
_FULL_RANGE: Final = 2  # AVCOL_RANGE_JPEG
# Red and blue weights of luma, by AVColorSpace.
_WEIGHTS: Final[dict[int, tuple[float, float]]] = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.470BG, BT.601 with 625 lines
    6: (0.299, 0.114),  # SMPTE 170M, BT.601 with 525 lines
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
    10: (0.2627, 0.0593),
}
_BT709, _BT601 = 1, 6
_THREADS: Final[dict[str, int]] = (
    {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
)  # before: always one
_MAX_KEPT: Final = 64
_contexts = threading.local()


class _Window(NamedTuple):
    """A part of the picture in pixels."""

    x: int
    y: int
    width: int
    height: int


def convert(image: av.VideoFrame, spec: FrameSpec, *, strip_px: int = 0) -> NDArray[np.uint8]:
    """Any decoded picture -> (H, W, 3) uint8 RGB, contiguous, of `spec.size_hw`; the lowest `strip_px` rows are left out.

    squash fills the size, crop takes the largest centred part of its shape, letterbox keeps all and adds black bars.
    Raises ValueError for a picture without rows.
    """
    picture = _Window(0, 0, image.width, image.height - strip_px)
    if picture.height <= 0 or picture.width <= 0:
        raise ValueError(f"expected a picture with more than {strip_px} rows, got {image.width}x{image.height}")
    weights = _weights_of(image, spec, picture.height)
    window = _centre_crop(picture, spec.size_hw) if spec.fit == "crop" else picture
    part = image if window == (0, 0, image.width, image.height) else _cropped(image, window)
    if spec.fit != "letterbox":
        rgb = np.empty((*spec.size_hw, 3), np.uint8)
        _draw(part, rgb, spec, weights)
        return rgb
    rgb = np.full((*spec.size_hw, 3), LETTERBOX_LEVEL, np.uint8)
    _draw(part, _between_bars(rgb, picture), spec, weights)
    return rgb


def _centre_crop(picture: _Window, size_hw: tuple[int, int]) -> _Window:
    """The largest centred part with the shape of `size_hw`, on even pixels, where chroma samples are."""
    height, width = size_hw
    across = min(picture.width, max(2, 2 * round(picture.height * width / height / 2)))
    down = min(picture.height, max(2, 2 * round(picture.width * height / width / 2)))
    return _Window((picture.width - across) // 4 * 2, (picture.height - down) // 4 * 2, across, down)


def _between_bars(rgb: Plane, picture: _Window) -> Plane:
    """The centred part of `rgb` with the shape of the picture, as a view."""
    height, width = rgb.shape[:2]
    scale = min(height / picture.height, width / picture.width)
    down, across = max(1, round(picture.height * scale)), max(1, round(picture.width * scale))
    y, x = (height - down) // 2, (width - across) // 2
    return rgb[y : y + down, x : x + across]


def _draw(image: av.VideoFrame, rgb: Plane, spec: FrameSpec, weights: tuple[float, float]) -> None:
    """Fill `rgb`, (h, w, 3), with all of the picture."""
    size_hw, scaler = (rgb.shape[0], rgb.shape[1]), _SCALERS[spec.scaler] | _EXACT
    if image.format.is_rgb or image.format.has_palette:
        green, blue, red = _scaled(image, size_hw, "gbrp", scaler | _KEEP_RGB)
        cv2.merge((red, green, blue), dst=rgb)
    else:
        name = "yuvj444p" if _is_full_by_name(image) else "yuv444p"
        yuv = cv2.merge(_scaled(image, size_hw, name, scaler))
        cv2.transform(yuv, _matrix(weights, full_range=_is_full_range(image, spec)), dst=rgb)


# --- scaling ----------------------------------------------------------------------------------------------------------


def _scaled(image: av.VideoFrame, size_hw: tuple[int, int], name: str, how: int) -> list[Plane]:
    """The three planes of `size_hw`, unpadded; matrix and range stay: source and destination are given the same."""
    key = (image.format.name, image.width, image.height, size_hw, how)
    # A reformatter that has seen this kind of picture: its tables cost more than the scaling.
    small = _kept("reformatters", key, VideoReformatter).reformat(
        image,
        size_hw[1],
        size_hw[0],
        name,
        src_colorspace=_BT709,
        dst_colorspace=_BT709,
        interpolation=how,
        src_color_range="JPEG",
        dst_color_range="JPEG",
        **_THREADS,
    )
    return [plane_view(plane, size_hw) for plane in small.planes]


def _cropped(image: av.VideoFrame, window: _Window) -> av.VideoFrame:
    """A part of the picture, on even pixels, without a copy (5 us): FFmpeg's filter moves the plane pointers."""
    key = (image.format.name, image.width, image.height, int(image.colorspace), int(image.color_range), window)
    graph = _kept("croppers", key, lambda: _crop_graph(image, window))
    graph.vpush(image)
    return graph.vpull()


def _crop_graph(image: av.VideoFrame, window: _Window) -> Graph:
    graph = Graph()
    if hasattr(graph, "threads"):  # since PyAV 15; before, each graph brings idle threads along
        graph.threads = 1
    # The tags must be said here: a filter that learns them from the frames warns about each new one.
    source = graph.add(
        "buffer",
        f"width={image.width}:height={image.height}:pix_fmt={image.format.name}:time_base=1/1000000"
        f":colorspace={int(image.colorspace)}:range={int(image.color_range)}",
    )
    crop = graph.add("crop", f"{window.width}:{window.height}:{window.x}:{window.y}")
    sink = graph.add("buffersink")
    source.link_to(crop)
    crop.link_to(sink)
    graph.configure()
    return graph


def _kept(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """What `make` made for this key earlier in this thread: FFmpeg's contexts are not thread-safe and run without the GIL."""
    known: dict[Hashable, T] = _contexts.__dict__.setdefault(kind, {})
    if key not in known:
        if len(known) >= _MAX_KEPT:  # cameras of ever new sizes: start again rather than grow
            known.clear()
        known[key] = make()
    return known[key]


# --- colour -----------------------------------------------------------------------------------------------------------


def _is_full_by_name(image: av.VideoFrame) -> bool:
    """The "j" formats by definition, grey by FFmpeg's convention: swscale changes the range on the way to others."""
    return image.format.name.startswith(("yuvj", "gray"))


def _is_full_range(image: av.VideoFrame, spec: FrameSpec) -> bool:
    if spec.range != "auto":
        return spec.range == "full"
    return image.color_range == _FULL_RANGE or (_is_full_by_name(image) and not image.color_range)


def _weights_of(image: av.VideoFrame, spec: FrameSpec, lines: int) -> tuple[float, float]:
    if spec.matrix != "auto":
        return _WEIGHTS[_BT709 if spec.matrix == "bt709" else _BT601]
    untagged = _BT709 if lines >= 720 else _BT601
    return _WEIGHTS.get(int(image.colorspace), _WEIGHTS[untagged])


@lru_cache(maxsize=32)
def _matrix(weights: tuple[float, float], *, full_range: bool) -> NDArray[np.float32]:
    """(3, 4) from (Y, U, V, 1) in levels of 255 to (R, G, B); ITU-R BT.601-7 and BT.709-6, section 3."""
    red, blue = weights
    green = 1.0 - red - blue
    luma, chroma, black = (1.0, 1.0, 0.0) if full_range else (255 / 219, 255 / 224, 16.0)
    rows = np.array(
        [
            [luma, 0.0, 2 * (1 - red) * chroma],
            [luma, -2 * (1 - blue) * blue / green * chroma, -2 * (1 - red) * red / green * chroma],
            [luma, 2 * (1 - blue) * chroma, 0.0],
        ]
    )
    offset = -rows @ np.array([black, 128.0, 128.0])
    return np.hstack([rows, offset[:, None]]).astype(np.float32)
