"""Draws what changes in the test scene: those who move, the lamp, the light, the sensor's noise and the burnt-in clock.

Every function draws on an (H, W, 3) uint8 RGB image in place.
"""

import math
from functools import lru_cache
from typing import Final

import cv2
import numpy as np

from streaming.sources.scene_actors import Pose, View
from streaming.sources.scene_backdrop import CACHED_VIEWS
from streaming.sources.scene_canvas import Canvas, Image, Point, shade

_NOISE_MARGIN: Final = 64
_MARGIN_PX: Final = 2  # antialiasing reaches this far around a shape

SKIN: Final = (205, 160, 130)
DARK: Final = (38, 38, 42)
GLASS: Final = (92, 112, 128)


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


# --- what the camera adds ---------------------------------------------------------------------------------------------


def add_glow(image: Image, view: View) -> None:
    """Add the light of the street lamp of this view."""
    cv2.add(image, _lamp_glow(view, (image.shape[0], image.shape[1])), dst=image)


@lru_cache(maxsize=CACHED_VIEWS)
def _lamp_glow(view: View, size_hw: tuple[int, int]) -> Image:
    height, width = size_hw
    x, y = width * (0.3 if view.kind == "street" else 0.62), height * view.horizon
    down = np.exp(-(((np.arange(height, dtype=np.float32) - y) / (0.45 * height)) ** 2))
    across = np.exp(-(((np.arange(width, dtype=np.float32) - x) / (0.45 * height)) ** 2))
    glow = np.multiply.outer(down, across)[:, :, None] * np.array([62.0, 50.0, 26.0], np.float32)
    image: Image = np.rint(glow).astype(np.uint8)
    return image


@lru_cache(maxsize=4)
def _noise_field(seed: int, sigma: float, size_hw: tuple[int, int]) -> tuple[Image, Image]:
    """Brighter and darker halves of a noise field larger than the picture: mostly luma, some colour."""
    rng = np.random.default_rng([seed, 4])
    shape = (size_hw[0] + _NOISE_MARGIN, size_hw[1] + _NOISE_MARGIN)
    luma = sigma * rng.standard_normal((*shape, 1), np.float32)
    colour = 0.4 * sigma * rng.standard_normal((*shape, 3), np.float32)
    noise = np.rint(luma + colour)
    return np.maximum(noise, 0).astype(np.uint8), np.maximum(-noise, 0).astype(np.uint8)


def add_noise(image: Image, seed: int, sigma: float, index: int) -> None:
    """Add sensor noise of `sigma` levels: a window of a fixed field at an offset drawn per frame, which costs 0.2 ms."""
    if sigma <= 0:
        return
    height, width = image.shape[:2]
    brighter, darker = _noise_field(seed, sigma, (height, width))
    dy, dx = np.random.default_rng([seed, 5, index]).integers(0, _NOISE_MARGIN, 2).tolist()
    window = (slice(dy, dy + height), slice(dx, dx + width))
    cv2.add(image, brighter[window], dst=image)
    cv2.subtract(image, darker[window], dst=image)


def apply_light(image: Image, gain: float) -> None:
    """Exposure: every pixel times `gain`, rounded and clipped."""
    cv2.convertScaleAbs(image, dst=image, alpha=gain)


def clock_box(size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the burnt-in clock in pixels."""
    height, width = size_hw
    unit = height / 360
    return 0, 0, min(width, round(212 * unit)), round(26 * unit)


def draw_clock(image: Image, text: str) -> None:
    """Burn in the clock as cameras do: white on a dark bar, top left, after the sensor and so without noise."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = clock_box((height, width))
    unit = height / 360
    cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), (24, 24, 24), cv2.FILLED)
    at = (round(6 * unit), round(18 * unit))
    cv2.putText(
        image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * unit, (240, 240, 240), max(1, round(unit)), cv2.LINE_AA
    )
