"""What cameras do to caches, one disturbance each, deterministic: a picture (H, W, 3) uint8 -> the frames of a short clip.

Made on a real frame or on `texture`; which defence each is to provoke is in the line under its name.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Values = NDArray[np.floating[Any]]


def texture(size_px: int = 224, seed: int = 0) -> Frame:
    """A picture with structure at all scales, like a photograph: (size_px, size_px, 3) uint8."""
    random = np.random.default_rng(seed)
    size = (size_px, size_px)
    layers = [cv2.resize(random.random((n, n, 3)), size, interpolation=cv2.INTER_CUBIC) for n in (4, 8, 16, 32)]
    return _pixels(60 + 170 * np.mean(layers, axis=0))


def drift(picture: Frame, count: int = 600, *, end: float = 0.5) -> Iterator[Frame]:
    """Dusk: brightness goes from 1 to `end`. A gate that compares neighbours in time never sees it."""
    for gain in np.linspace(1.0, end, count):
        yield _pixels(picture * gain)


def gain_step(picture: Frame, count: int = 40, *, gain: float = 1.3) -> Iterator[Frame]:
    """Exposure or a lamp: half-way everything is brighter at once, and stays so."""
    for index in range(count):
        yield _pixels(picture * (gain if index >= count // 2 else 1.0))


def flicker(picture: Frame, count: int = 60, *, period: int = 2, levels: int = 60) -> Iterator[Frame]:
    """A neon sign: a tenth of the area goes on and off for ever."""
    height, width = picture.shape[:2]
    sign = (slice(height // 4, height // 4 + height // 3), slice(width // 4, width // 4 + round(width * 0.3)))
    for index in range(count):
        frame = picture.astype(np.float64)
        if index // max(1, period // 2) % 2:
            frame[sign] += levels
        yield _pixels(frame)


def noise(picture: Frame, count: int = 60, *, sigma: float = 4.0, seed: int = 0) -> Iterator[Frame]:
    """A sensor at night: nothing happens, and no pixel stays what it was."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        yield _pixels(picture + random.normal(0, sigma, picture.shape))


def pulsing(picture: Frame, count: int = 60, *, group: int = 12, levels: float = 3.0, seed: int = 0) -> Iterator[Frame]:
    """A codec's keyframes: every `group` frames all blocks of 8 pixels are drawn a little differently."""
    random = np.random.default_rng(seed)
    height, width = picture.shape[:2]
    offsets: Any = 0.0
    for index in range(count):
        if index % group == 0:
            blocks = random.normal(0, levels, (height // 8, width // 8, 3))
            offsets = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
        yield _pixels(picture + offsets)


def counter(picture: Frame, count: int = 60) -> Iterator[Frame]:
    """A clock burned into the picture: a few cells change in every frame, and nothing else does."""
    for index in range(count):
        frame = picture.copy()
        cv2.rectangle(frame, (0, 0), (63, 15), (0, 0, 0), -1)
        cv2.putText(frame, f"{index:06d}", (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1)
        yield frame


def jitter(picture: Frame, count: int = 60, *, px: int = 3, seed: int = 0) -> Iterator[Frame]:
    """A pole in the wind: the whole picture shifts by up to `px` pixels."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        down, across = random.integers(-px, px + 1, 2)
        yield _shifted(picture, float(across), float(down))


def pan(picture: Frame, count: int = 60, *, px: int = 5) -> Iterator[Frame]:
    """A camera that turns: the scene moves on by `px` pixels a frame (it comes round again)."""
    for index in range(count):
        yield np.ascontiguousarray(np.roll(picture, -px * index, axis=1))


def cut(picture: Frame, count: int = 40, *, seed: int = 1) -> Iterator[Frame]:
    """A stream that is switched: half-way it is another scene."""
    other = texture(picture.shape[0], seed)
    if other.shape != picture.shape:
        other = np.asarray(cv2.resize(other, picture.shape[1::-1]), np.uint8)
    for index in range(count):
        yield (other if index >= count // 2 else picture).copy()


def small_object(picture: Frame, count: int = 200, *, px: int = 3, speed: float = 0.2) -> Iterator[Frame]:
    """Something of `px` pixels that creeps: less a frame than any threshold, much in the end."""
    for index in range(count):
        spot = np.zeros(picture.shape, np.uint8)
        top, left = picture.shape[0] // 2, picture.shape[1] // 4
        spot[top : top + px, left : left + px] = 255
        cover = _shifted(spot, speed * index, 0.0).astype(np.float64) / 255
        yield _pixels(picture * (1 - cover) + 240 * cover)


def ghosts(picture: Frame, count: int = 100, *, every: int = 2) -> Iterator[Frame]:
    """Somebody comes and goes: what was uncovered must look as if nobody had been there."""
    height, width = picture.shape[:2]
    for index in range(count):
        frame = picture.copy()
        if index // every % 2:
            frame[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = (200, 40, 40)
        yield frame


DISTURBANCES: Final[dict[str, Callable[[Frame], Iterator[Frame]]]] = {
    "drift": drift,
    "gain_step": gain_step,
    "flicker": flicker,
    "noise": noise,
    "pulsing": pulsing,
    "counter": counter,
    "jitter": jitter,
    "pan": pan,
    "cut": cut,
    "small_object": small_object,
    "ghosts": ghosts,
}
"""All of them by name, as they are by default."""


def _shifted(picture: Frame, across: float, down: float) -> Frame:
    matrix = np.array([[1.0, 0.0, across], [0.0, 1.0, down]])
    size = picture.shape[1::-1]
    return np.asarray(cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REFLECT_101), np.uint8)


def _pixels(values: Values) -> Frame:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
