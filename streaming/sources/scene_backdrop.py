"""The empty views of the test scene: sky, houses, trees, pavements and the road, all drawn from the seed."""

from functools import lru_cache
from itertools import pairwise
from typing import Final

import cv2
import numpy as np

from streaming.sources.scene_actors import View
from streaming.sources.scene_canvas import Canvas, Colour, Image, Point, shade

CACHED_VIEWS: Final = 8


@lru_cache(maxsize=CACHED_VIEWS)
def backdrop(seed: int, view: View, size_hw: tuple[int, int]) -> Image:
    """(H, W, 3) the empty view: sky, houses, trees, pavements, road. Cached: copy before drawing on it."""
    rng = np.random.default_rng([seed, 3, view.number])
    canvas = Canvas(np.zeros((*size_hw, 3), np.uint8))
    _sky(canvas, rng)
    if view.kind == "street":
        _street(canvas, view, rng)
    else:
        _avenue(canvas, view, rng)
    return _texture(canvas.image, rng)


def _sky(canvas: Canvas, rng: np.random.Generator) -> None:
    top, low = np.array([118, 150, 190.0]) * rng.uniform(0.85, 1.1), np.array([205, 214, 222.0])
    mix = np.linspace(0.0, 1.0, canvas.height)[:, None, None]
    canvas.image[:] = np.clip(top * (1 - mix) + low * mix, 0, 255).astype(np.uint8)
    for _ in range(6):
        x, y, size = rng.uniform(0, canvas.aspect), rng.uniform(0.02, 0.2), rng.uniform(0.03, 0.09)
        for _ in range(4):
            canvas.ellipse(x + rng.normal(0, size), y + rng.normal(0, size / 5), size, size / 3, (224, 228, 232))


def _wall_colour(rng: np.random.Generator) -> Colour:
    walls = ((176, 120, 92), (206, 190, 160), (160, 156, 150), (190, 150, 120), (140, 92, 80), (214, 208, 198))
    return shade(walls[int(rng.integers(len(walls)))], float(rng.uniform(0.85, 1.1)))


def _street(canvas: Canvas, view: View, rng: np.random.Generator) -> None:
    walk_far, lane_far, lane_near, walk_near = (path.start[1] for path in view.paths)
    base, wide = walk_far - 0.05, canvas.aspect
    x = -float(rng.uniform(0, 0.2))
    while x < wide:
        span, top = float(rng.uniform(0.28, 0.5)), float(rng.uniform(0.04, view.horizon - 0.06))
        _house(canvas, (x, top, x + span, base), rng)
        x += span + (0.0 if rng.random() < 0.6 else float(rng.uniform(0.04, 0.12)))
    kerb_far, kerb_near = (walk_far + lane_far) / 2 + 0.01, (lane_near + walk_near) / 2 + 0.035
    canvas.box(0, base, wide, kerb_far, (168, 164, 158))
    canvas.box(0, kerb_far - 0.008, wide, kerb_far, (120, 118, 116))
    canvas.box(0, kerb_far, wide, kerb_near, (88, 89, 92))
    middle = (lane_far + lane_near) / 2 + 0.02
    for dash in np.arange(-0.1, wide + 0.2, 0.24).tolist():
        canvas.polygon(
            ((dash, middle), (dash + 0.12, middle), (dash + 0.118, middle + 0.011), (dash - 0.003, middle + 0.011)),
            (214, 212, 200),
        )
    canvas.box(0, kerb_near, wide, kerb_near + 0.014, (140, 138, 134))
    canvas.box(0, kerb_near + 0.014, wide, 1.0, (176, 172, 166))
    for _ in range(int(rng.integers(2, 4))):
        _tree(canvas, float(rng.uniform(0.1, wide - 0.1)), base + 0.025, 0.30, rng)


def _avenue(canvas: Canvas, view: View, rng: np.random.Generator) -> None:
    horizon, wide = view.horizon, canvas.aspect
    lane_left, lane_right = (max((path.start, path.end), key=lambda end: end[1]) for path in view.paths if path.cars)
    vanish = (lane_left[0] + lane_right[0]) / 2
    canvas.box(0, horizon, wide, 1.0, (126, 138, 104))
    canvas.box(vanish - 0.25, horizon - 0.05, vanish + 0.25, horizon + 0.01, (108, 124, 118))
    per_m = (lane_right[0] - lane_left[0]) / 3.8

    def strip(from_m: float, to_m: float, colour: Colour, near: float = 1.45, far: float = 0.004) -> None:
        scale = (near - horizon) / (lane_left[1] - horizon)
        canvas.polygon(
            (
                (vanish + from_m * per_m * scale, near),
                (vanish + to_m * per_m * scale, near),
                (vanish + to_m * per_m * far, horizon + far),
                (vanish + from_m * per_m * far, horizon + far),
            ),
            colour,
        )

    strip(-7.0, 7.0, (170, 166, 160))
    strip(-3.9, 3.9, (140, 138, 134))
    strip(-3.8, 3.8, (86, 87, 90))
    for near in 1.0 / np.arange(0.75, 14.0, 0.9):
        far = 1.0 / (1.0 / near + 0.4)
        strip(-0.08, 0.08, (216, 214, 202), near=horizon + float(near), far=float(far))
    reach = (lane_left[1] - horizon) / per_m
    for side in (-1, 1):
        _terrace(canvas, horizon, vanish, side * 7.2 / reach, rng)
    for depth in (0.12, 0.2, 0.36):
        for side in (-1, 1):
            _tree(canvas, vanish + side * 6.5 / reach * depth, horizon + depth, 1.7 * depth, rng)


def _terrace(canvas: Canvas, horizon: float, vanish: float, slope: float, rng: np.random.Generator) -> None:
    """Houses along one side of an avenue, from far to near: walls that run into the vanishing point."""
    depths = [0.03, 0.05, 0.08, 0.13, 0.21, 0.34, 0.6, 1.1]
    for far, near in pairwise(depths):
        tall, colour = float(rng.uniform(1.3, 1.9)), _wall_colour(rng)

        def at(depth: float, up: float) -> Point:
            return vanish + slope * depth, horizon + depth - up * depth

        canvas.polygon((at(far, 0), at(near, 0), at(near, tall), at(far, tall)), colour)
        for step in (0.15, 0.42, 0.69):
            a, b = far + (near - far) * step, far + (near - far) * (step + 0.16)
            for low, high in ((0.25, 0.6), (0.8, 1.1)):
                canvas.polygon((at(a, low), at(b, low), at(b, high), at(a, high)), (70, 84, 98))


def _house(canvas: Canvas, box: tuple[float, float, float, float], rng: np.random.Generator) -> None:
    x0, y0, x1, y1 = box
    wall = _wall_colour(rng)
    canvas.box(x0, y0, x1, y1, wall)
    canvas.box(x0, y0, x1, y0 + 0.018, shade(wall, 0.7))
    storeys, bays = max(2, round((y1 - y0) / 0.12)), max(2, round((x1 - x0) / 0.11))
    for storey in range(storeys):
        for bay in range(bays):
            cx, cy = x0 + (bay + 0.5) * (x1 - x0) / bays, y0 + (storey + 0.55) * (y1 - y0) / storeys
            glass = shade((78, 92, 108), float(rng.uniform(0.8, 1.2)))
            canvas.box(cx - 0.027, cy - 0.036, cx + 0.027, cy + 0.036, shade(wall, 1.2))
            canvas.box(cx - 0.022, cy - 0.031, cx + 0.022, cy + 0.031, glass)
    door = x0 + (x1 - x0) * float(rng.uniform(0.2, 0.8))
    canvas.box(door - 0.024, y1 - 0.1, door + 0.024, y1, (84, 58, 42))


def _tree(canvas: Canvas, x: float, y: float, tall: float, rng: np.random.Generator) -> None:
    canvas.box(x - 0.03 * tall, y - 0.5 * tall, x + 0.03 * tall, y, (84, 66, 50))
    green = shade((70, 104, 58), float(rng.uniform(0.85, 1.15)))
    for _ in range(16):
        dx, dy = rng.normal(0, 0.13 * tall, 2).tolist()
        radius = float(rng.uniform(0.07, 0.14)) * tall
        canvas.ellipse(x + dx, y - 0.68 * tall + dy, radius, radius, shade(green, float(rng.uniform(0.75, 1.2))))


def _texture(image: Image, rng: np.random.Generator) -> Image:
    """Stains and grain: flat areas of one value would make every codec and every gate look better than it is."""
    height, width = image.shape[:2]
    coarse = cv2.resize(
        rng.normal(0, 5, (height // 24 + 2, width // 24 + 2)), (width, height), interpolation=cv2.INTER_CUBIC
    )
    grain = cv2.GaussianBlur(rng.normal(0, 6, (height, width)), (3, 3), 0)
    return np.clip(np.rint(image + (coarse + grain)[:, :, None]), 0, 255).astype(np.uint8)
