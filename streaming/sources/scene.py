"""The built-in test scene: a street with cars, walkers, changing light, noise, cuts and a clock, and the truth about it.

`Scene(params).render(index)` is a pure function of the parameters and the frame index: any frame, in any order, in any
process, is the same picture. `Scene(params).truth(index)` says what moved without looking at pixels.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streaming.sources import scene_render as draw
from streaming.sources.scene_actors import Kind, Pose, Traffic, View, make_actors, make_view, pose
from streaming.sources.scene_backdrop import CACHED_VIEWS, backdrop
from streaming.sources.scene_canvas import Canvas
from streaming.sources.scene_params import SceneParams
from streaming.sources.scene_source import SceneSource

__all__ = ["ObjectTruth", "Scene", "SceneParams", "SceneSource", "Truth"]

_CLOCK_START: Final = datetime(2026, 1, 1, 8, 0, 0, tzinfo=UTC)
_DRIFT_PERIOD_S: Final = 120.0


@dataclass(frozen=True)
class ObjectTruth:
    """One moving object in the picture. `box` is (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, shadow included."""

    id: str
    kind: Kind
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Truth:
    """What a frame shows. Pixels also change by sensor noise and in the clock, `Scene.clock_box`."""

    objects: tuple[ObjectTruth, ...]
    moved: bool
    """Some object moved, came or went since the previous frame."""
    light: float
    """Exposure, 1 on average, plus 0.2 while the lamp is on: equal values are equal light."""
    cut: bool
    """Another view than in the previous frame."""
    view: int


class Scene:
    """The pictures of one camera and what is true of them, for any frame index from 0."""

    def __init__(self, params: SceneParams) -> None:
        self.params = params
        self._traffic = Traffic(params.seed, params.activity, params.active_s, params.quiet_s)
        self.clock_box = draw.clock_box(params.size_hw) if params.clock else None

    def warm(self) -> None:
        """Draw once what is cached, so that no frame is late because its view is new."""
        params = self.params
        for number in range(min(params.views, CACHED_VIEWS) if params.cut_every_s else 1):
            view = make_view(params.seed, number, params.size[0] / params.size[1])
            draw.add_glow(backdrop(params.seed, view, params.size_hw).copy(), view)
        self.render(0)

    def render(self, index: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of frame `index`."""
        params, view = self.params, self._view(index)
        image = backdrop(params.seed, view, params.size_hw).copy()
        canvas = Canvas(image)
        for each in self._poses(index):
            draw.draw_actor(canvas, each)
        if self._lamp(index):
            draw.add_glow(image, view)
        draw.apply_light(image, self._exposure(index))
        draw.add_noise(image, params.seed, params.noise, index)
        if params.clock:
            draw.draw_clock(image, self._clock_text(index))
        return image

    def truth(self, index: int, previous: int | None = None) -> Truth:
        """What frame `index` shows, and what changed since frame `previous` (default: the one before it)."""
        previous = max(0, index - 1) if previous is None else previous
        view, objects = self._view(index), self._objects(index)
        light = round(self._exposure(index) + 0.2 * self._lamp(index), 6)
        cut = view != self._view(previous)
        # Nobody ever stands still: whoever is in the picture has moved.
        moved = index != previous and bool(objects or self._objects(previous))
        return Truth(objects, moved=moved, light=light, cut=cut, view=view.number)

    def _seconds(self, index: int) -> float:
        return float(index / self.params.fps)

    def _view(self, index: int) -> View:
        params = self.params
        segment = int(self._seconds(index) // params.cut_every_s) if params.cut_every_s else 0
        return make_view(params.seed, segment % params.views, params.size[0] / params.size[1])

    def _lamp(self, index: int) -> bool:
        every_s = self.params.lamp_every_s
        return every_s > 0 and int(self._seconds(index) // every_s) % 2 == 1

    def _exposure(self, index: int) -> float:
        return 1.0 + self.params.drift * math.sin(2 * math.pi * self._seconds(index) / _DRIFT_PERIOD_S)

    def _clock_text(self, index: int) -> str:
        return (_CLOCK_START + timedelta(seconds=self._seconds(index))).strftime("%Y-%m-%d %H:%M:%S")

    def _poses(self, index: int) -> list[Pose]:
        """Everybody on their way, the farthest first."""
        view, at_s = self._view(index), self._seconds(index)
        actors = chain.from_iterable(make_actors(self._traffic, view, cycle) for cycle in self._traffic.cycles(at_s))
        poses = (pose(actor, view, at_s) for actor in actors)
        return sorted((each for each in poses if each), key=lambda each: (each.y, each.actor.id))

    def _objects(self, index: int) -> tuple[ObjectTruth, ...]:
        height, width = self.params.size_hw
        found = []
        for each in self._poses(index):
            x0, y0, x1, y1 = draw.pose_box(each, height)
            box = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
            if box[0] < box[2] and box[1] < box[3]:
                found.append(ObjectTruth(each.actor.id, each.actor.kind, box))
        return tuple(found)
