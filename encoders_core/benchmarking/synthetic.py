"""Data sets made on the spot, the same every time: textures, motions, and features with a common cause. All labelled."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

_SIDE: Final = 96
_FRAMES: Final = 4
_STEP_PX: Final = 7


def _stripes(u: Floats, v: Floats) -> Floats:
    return np.sin(u + 0.0 * v)


def _checks(u: Floats, v: Floats) -> Floats:
    return np.sign(np.sin(u)) * np.sign(np.sin(v))


def _dots(u: Floats, v: Floats) -> Floats:
    return np.where(np.cos(u) + np.cos(v) > 0.9, 1.0, -1.0)


def _rings(u: Floats, v: Floats) -> Floats:
    radius: Floats = np.hypot(u - u.mean(), v - v.mean())
    return np.sin(radius)


def _waves(u: Floats, v: Floats) -> Floats:
    return np.sin(u + 2.0 * np.sin(v / 2.0))


def _bricks(u: Floats, v: Floats) -> Floats:
    shifted = u + np.pi * (np.floor(v / np.pi) % 2)
    return np.where((np.cos(shifted) > 0.9) | (np.cos(2.0 * v) > 0.8), -1.0, 1.0)


def _grid(u: Floats, v: Floats) -> Floats:
    return np.where((np.cos(u) > 0.8) | (np.cos(v) > 0.8), 1.0, -1.0)


def _crosses(u: Floats, v: Floats) -> Floats:
    a, b = np.cos(u), np.cos(v)
    return np.where((np.minimum(a, b) > -0.3) & (np.maximum(a, b) > 0.7), 1.0, -1.0)


TEXTURES: Final[dict[str, Callable[[Floats, Floats], Floats]]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "waves": _waves,
    "bricks": _bricks,
    "grid": _grid,
    "crosses": _crosses,
}
_MOVING: Final = ("stripes", "dots", "bricks", "crosses")


def textures(rounds: int = 16, seed: int = 0) -> tuple[list[Pixels], list[int], tuple[str, ...]]:
    """Pictures (96, 96, 3) uint8 of eight textures in random scale, turn, position, colours and noise, with labels.

    They come by twos of a class, so that a part from the beginning has every class in equal numbers.
    """
    rng, items, labels = np.random.default_rng(seed), list[Pixels](), list[int]()
    for _ in range(rounds // 2):
        for label, kind in enumerate(TEXTURES):
            for _ in range(2):
                items.append(_Surface(rng, kind).at(rng, 0.0, 0.0))
                labels.append(label)
    return items, labels, tuple(TEXTURES)


def motions(rounds: int = 8, seed: int = 0) -> tuple[list[Pixels], list[int], tuple[str, ...]]:
    """Clips (4, 96, 96, 3) uint8 of four textures that slide right or down, seven pixels a frame, with labels.

    Texture and direction make eight classes: from single frames alone no more than the texture can be known.
    """
    rng, items, labels = np.random.default_rng(seed), list[Pixels](), list[int]()
    names = tuple(f"{kind} {way}" for kind in _MOVING for way in ("right", "down"))
    for _ in range(rounds // 2):
        for label, name in enumerate(names):
            kind, way = name.split()
            right, down = (float(_STEP_PX), 0.0) if way == "right" else (0.0, float(_STEP_PX))
            for _ in range(2):
                surface = _Surface(rng, kind)
                items.append(np.stack([surface.at(rng, right * t, down * t) for t in range(_FRAMES)]))
                labels.append(label)
    return items, labels, names


def latents(
    dimensions: Mapping[str, int], rounds: int = 32, seed: int = 0
) -> tuple[dict[str, NDArray[np.float32]], list[int], tuple[str, ...]]:
    """Features by modality, (N, dim) float32, each a linear view of the same hidden 16 numbers and some noise; labels.

    The hidden numbers lie around four centres, the classes.
    """
    rng, classes, hidden = np.random.default_rng(seed), 4, 16
    labels = [label for _ in range(rounds // 2) for label in range(classes) for _ in range(2)]
    cause = rng.normal(size=(classes, hidden))[labels] + 0.7 * rng.normal(size=(len(labels), hidden))
    views = {}
    for name, dim in dimensions.items():
        view = cause @ rng.normal(size=(hidden, dim)) / np.sqrt(hidden)
        views[name] = (view + 0.1 * rng.normal(size=view.shape)).astype(np.float32)
    return views, labels, tuple(f"centre {label + 1}" for label in range(classes))


class _Surface:
    """One texture with its accidents; `at` shows it moved to the right and down, in pixels."""

    def __init__(self, rng: np.random.Generator, kind: str) -> None:
        self._kind, self._turn, self._pitch = kind, rng.uniform(0.0, np.pi / 6), rng.uniform(0.35, 0.6)
        self._phase = rng.uniform(0.0, 2.0 * np.pi, size=2)
        dark, light = rng.uniform(0.0, 110.0, size=3), rng.uniform(140.0, 255.0, size=3)
        self._colours: Any = (dark, light)

    def at(self, rng: np.random.Generator, right: float, down: float) -> Pixels:
        """(96, 96, 3) uint8."""
        y, x = np.mgrid[0:_SIDE, 0:_SIDE].astype(np.float64)
        x, y, cos, sin = x - right, y - down, np.cos(self._turn), np.sin(self._turn)
        u = self._pitch * (cos * x + sin * y) + self._phase[0]
        v = self._pitch * (cos * y - sin * x) + self._phase[1]
        shade = (TEXTURES[self._kind](u, v)[..., None] + 1.0) / 2.0
        dark, light = self._colours
        picture = dark + shade * (light - dark) + rng.normal(scale=8.0, size=(_SIDE, _SIDE, 3))
        pixels: Pixels = np.clip(picture, 0.0, 255.0).astype(np.uint8)
        return pixels
