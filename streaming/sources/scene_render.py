"""Draws the test scene: backdrops, actors, the lamp, light, sensor noise and the burnt-in clock. RGB uint8 throughout."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from streaming.sources.scene_actors import Pose, View

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
Point = tuple[float, float]

_SHIFT: Final = 4  # OpenCV draws at 1/16 pixel
_NOISE_MARGIN: Final = 64
_MARGIN_PX: Final = 2  # antialiasing reaches this far around a shape

SKIN: Final = (205, 160, 130)
DARK: Final = (38, 38, 42)
GLASS: Final = (92, 112, 128)


class Canvas:
    """Shapes in picture heights on an (H, W, 3) uint8 RGB image; antialiased, so that slow motion is smooth."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.height, self.width = image.shape[:2]
        self.aspect = self.width / self.height

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        fixed = np.rint(np.asarray(points) * self.height * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(self.image, [fixed], colour, cv2.LINE_AA, _SHIFT)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """A filled upright rectangle."""
        self.polygon(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """A filled upright ellipse."""
        unit = self.height * (1 << _SHIFT)
        centre, axes = (round(x * unit), round(y * unit)), (max(1, round(rx * unit)), max(1, round(ry * unit)))
        cv2.ellipse(self.image, centre, axes, 0, 0, 360, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, lighter or darker by `factor`."""
    red, green, blue = (int(min(255.0, channel * factor)) for channel in colour)
    return red, green, blue


# --- actors -----------------------------------------------------------------------------------------------------------


def pose_box(pose: Pose, height: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) in pixels around everything that `draw_actor` draws, its shadow too; may lie outside."""
    half, below = pose.width * 0.58, pose.height * 0.07
    return (
        math.floor((pose.x - half) * height) - _MARGIN_PX,
        math.floor((pose.y - pose.height) * height) - _MARGIN_PX,
        math.ceil((pose.x + half) * height) + _MARGIN_PX,
        math.ceil((pose.y + below) * height) + _MARGIN_PX,
    )


def draw_actor(canvas: Canvas, pose: Pose) -> None:
    """One car, van, walker or child with its shadow."""
    canvas.ellipse(pose.x, pose.y, pose.width * 0.54, pose.height * 0.06, (58, 58, 60))
    if pose.actor.kind in {"walker", "child"}:
        _walker(canvas, pose)
    elif pose.heading in {1, -1}:
        _car_side(canvas, pose)
    else:
        _car_front(canvas, pose)


def _walker(canvas: Canvas, pose: Pose) -> None:
    x, y, tall, coat = pose.x, pose.y, pose.height, pose.actor.colour
    stride = math.sin(pose.travelled_m * 2 * math.pi / 1.5) * tall * (0.16 if pose.heading in {1, -1} else 0.03)
    hip, leg = y - 0.47 * tall, 0.055 * tall
    for side, foot in ((-1, stride), (1, -stride)):
        lift = 0.03 * tall if foot > 0 else 0.0
        at = x + side * 0.035 * tall
        canvas.polygon(
            ((at - leg, hip), (at + leg, hip), (at + foot + leg, y - lift), (at + foot - leg, y - lift)),
            shade(DARK, 0.9),
        )
    canvas.polygon(
        (
            (x - 0.10 * tall, y - 0.82 * tall),
            (x + 0.10 * tall, y - 0.82 * tall),
            (x + 0.12 * tall, hip + 0.05 * tall),
            (x - 0.12 * tall, hip + 0.05 * tall),
        ),
        coat,
    )
    hand = -stride * 0.8
    canvas.polygon(
        (
            (x - 0.035 * tall, y - 0.80 * tall),
            (x + 0.035 * tall, y - 0.80 * tall),
            (x + hand + 0.03 * tall, y - 0.45 * tall),
            (x + hand - 0.03 * tall, y - 0.45 * tall),
        ),
        shade(coat, 0.75),
    )
    canvas.ellipse(x, y - 0.91 * tall, 0.065 * tall, 0.085 * tall, SKIN)
    canvas.ellipse(x, y - 0.945 * tall, 0.065 * tall, 0.05 * tall, (60, 44, 34))


def _car_side(canvas: Canvas, pose: Pose) -> None:
    long, tall, colour, van = pose.width, pose.height, pose.actor.colour, pose.actor.kind == "van"

    def at(forward: float, up: float) -> Point:
        return pose.x + pose.heading * forward * long, pose.y - up * tall

    roof = (
        ((-0.48, 0.98), (0.22, 0.98), (0.36, 0.55), (-0.48, 0.55))
        if van
        else ((-0.30, 0.98), (0.12, 0.98), (0.28, 0.58), (-0.42, 0.58))
    )
    window = (
        ((0.02, 0.90), (0.19, 0.90), (0.30, 0.60), (0.02, 0.60))
        if van
        else ((-0.27, 0.92), (0.10, 0.92), (0.23, 0.62), (-0.36, 0.62))
    )
    body = ((-0.49, 0.60), (0.30, 0.60), (0.47, 0.50), (0.49, 0.18), (-0.49, 0.18))
    canvas.polygon([at(*point) for point in roof], shade(colour, 0.85 if not van else 1.0))
    canvas.polygon([at(*point) for point in window], GLASS)
    canvas.polygon([at(*point) for point in body], colour)
    canvas.polygon(
        [at(*point) for point in ((-0.49, 0.30), (0.49, 0.30), (0.49, 0.18), (-0.49, 0.18))], shade(colour, 0.6)
    )
    canvas.ellipse(*at(0.47, 0.42), 0.015 * long, 0.05 * tall, (250, 240, 190))
    radius = 0.17 * tall / (1.4 if van else 1.0)
    for forward in (-0.30, 0.31):
        x, y = at(forward, 0.0)
        canvas.ellipse(x, y - radius, radius, radius, DARK)
        canvas.ellipse(x, y - radius, radius * 0.5, radius * 0.5, (150, 150, 152))


def _car_front(canvas: Canvas, pose: Pose) -> None:
    wide, tall, colour = pose.width, pose.height, pose.actor.colour

    def at(right: float, up: float) -> Point:
        return pose.x + right * wide, pose.y - up * tall

    for side in (-0.38, 0.38):
        canvas.polygon([at(side + dx, up) for dx, up in ((-0.09, 0.25), (0.09, 0.25), (0.09, 0.0), (-0.09, 0.0))], DARK)
    canvas.polygon(
        [at(*point) for point in ((-0.36, 0.98), (0.36, 0.98), (0.47, 0.55), (-0.47, 0.55))], shade(colour, 0.85)
    )
    canvas.polygon([at(*point) for point in ((-0.31, 0.92), (0.31, 0.92), (0.39, 0.60), (-0.39, 0.60))], GLASS)
    canvas.polygon([at(*point) for point in ((-0.49, 0.58), (0.49, 0.58), (0.49, 0.15), (-0.49, 0.15))], colour)
    lights = (255, 246, 205) if pose.heading == 0 else (200, 24, 20)
    for side in (-0.37, 0.37):
        canvas.ellipse(*at(side, 0.42), 0.08 * wide, 0.06 * tall, lights)
    canvas.polygon(
        [at(*point) for point in ((-0.16, 0.30), (0.16, 0.30), (0.16, 0.20), (-0.16, 0.20))], (235, 235, 225)
    )


# --- backdrops --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
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
    walk_left, lane_left, lane_right, walk_right = (
        max((path.start, path.end), key=lambda end: end[1]) for path in view.paths
    )
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
        _terrace(canvas, view, vanish, side, 7.2 / reach, rng)
    for depth in (0.12, 0.2, 0.36):
        for side in (-1, 1):
            _tree(canvas, vanish + side * 6.5 / reach * depth, horizon + depth, 1.7 * depth, rng)


def _terrace(canvas: Canvas, view: View, vanish: float, side: int, slope: float, rng: np.random.Generator) -> None:
    """Houses along one side of an avenue, from far to near: walls that run into the vanishing point."""
    depths = [0.03, 0.05, 0.08, 0.13, 0.21, 0.34, 0.6, 1.1]
    for far, near in zip(depths, depths[1:], strict=False):
        tall, colour = float(rng.uniform(1.3, 1.9)), _wall_colour(rng)

        def at(depth: float, up: float) -> Point:
            return vanish + side * slope * depth, view.horizon + depth - up * depth  # noqa: B023 - called within the turn

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


# --- what the camera adds ---------------------------------------------------------------------------------------------


def add_glow(image: Image, view: View) -> Image:
    """The light of the street lamp of this view."""
    return cv2.add(image, _lamp_glow(view, (image.shape[0], image.shape[1])), dst=image)


@lru_cache(maxsize=8)
def _lamp_glow(view: View, size_hw: tuple[int, int]) -> Image:
    height, width = size_hw
    x, y = width * (0.3 if view.kind == "street" else 0.62), height * view.horizon
    rows, columns = np.ogrid[:height, :width]
    distance = np.hypot((columns - x) / height, (rows - y) / height)
    glow = np.exp(-((distance / 0.45) ** 2))[:, :, None] * np.array([62.0, 50.0, 26.0])
    return np.rint(glow).astype(np.uint8)


@lru_cache(maxsize=4)
def _noise_field(seed: int, sigma: float, size_hw: tuple[int, int]) -> tuple[Image, Image]:
    """Brighter and darker halves of a noise field larger than the picture: mostly luma, some colour."""
    rng = np.random.default_rng([seed, 4])
    shape = (size_hw[0] + _NOISE_MARGIN, size_hw[1] + _NOISE_MARGIN)
    luma = rng.normal(0, sigma, (*shape, 1)).astype(np.float32)
    colour = rng.normal(0, sigma * 0.4, (*shape, 3)).astype(np.float32)
    noise = np.rint(luma + colour)
    return np.maximum(noise, 0).astype(np.uint8), np.maximum(-noise, 0).astype(np.uint8)


def add_noise(image: Image, seed: int, sigma: float, index: int) -> Image:
    """Sensor noise of `sigma` levels: a window of a fixed field at an offset drawn per frame, which costs 0.2 ms."""
    if sigma <= 0:
        return image
    height, width = image.shape[:2]
    brighter, darker = _noise_field(seed, sigma, (height, width))
    dy, dx = np.random.default_rng([seed, 5, index]).integers(0, _NOISE_MARGIN, 2).tolist()
    window = (slice(dy, dy + height), slice(dx, dx + width))
    cv2.add(image, brighter[window], dst=image)
    return cv2.subtract(image, darker[window], dst=image)


def apply_light(image: Image, gain: float) -> Image:
    """Exposure: every pixel times `gain`, rounded and clipped."""
    return image if gain == 1.0 else cv2.convertScaleAbs(image, dst=image, alpha=gain)


def clock_box(size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the burnt-in clock in pixels."""
    height, width = size_hw
    unit = height / 360
    return 0, 0, min(width, round(212 * unit)), round(26 * unit)


def draw_clock(image: Image, text: str) -> Image:
    """The clock as cameras burn it in: white on a dark bar, top left, after the sensor and so without noise."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = clock_box((height, width))
    unit = height / 360
    cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), (24, 24, 24), cv2.FILLED)
    at = (round(6 * unit), round(18 * unit))
    cv2.putText(
        image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * unit, (240, 240, 240), max(1, round(unit)), cv2.LINE_AA
    )
    return image
