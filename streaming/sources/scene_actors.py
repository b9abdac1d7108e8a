"""Who is where, when, in the test scene: camera views, the paths through them, and those who walk and drive there.

Everything is a pure function of seeds. Lengths are in picture heights, x from the left edge, y from the top.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np

Kind = Literal["car", "van", "walker", "child"]
ViewKind = Literal["street", "avenue"]

# Height of each kind relative to a grown person, and its length (seen from the side) and width (seen from the front).
HEIGHT: Final[dict[Kind, float]] = {"car": 0.84, "van": 1.25, "walker": 1.0, "child": 0.66}
LENGTH: Final[dict[Kind, float]] = {"car": 2.5, "van": 3.0, "walker": 0.52, "child": 0.36}
WIDTH: Final[dict[Kind, float]] = {"car": 1.05, "van": 1.15, "walker": 0.52, "child": 0.36}

PERSON_PER_DEPTH: Final = 0.40  # height of a person per distance of their feet below the horizon: camera 4.4 m up
METRES_PER_PERSON: Final = 1.75
CARS_PER_S: Final = 0.30  # per lane at activity 1
WALKERS_PER_S: Final = 0.22  # per pavement at activity 1
HEADWAY_S: Final = 2.5

CAR_COLOURS: Final = (
    (178, 34, 34),
    (36, 64, 120),
    (225, 225, 222),
    (48, 50, 54),
    (120, 126, 130),
    (196, 150, 40),
    (40, 98, 70),
)
COAT_COLOURS: Final = (
    (150, 40, 45),
    (40, 60, 110),
    (70, 80, 60),
    (205, 190, 160),
    (50, 50, 52),
    (215, 160, 60),
    (120, 70, 130),
)


@dataclass(frozen=True)
class Path:
    """A straight way over the ground, from where it enters the picture to where it leaves it."""

    start: tuple[float, float]
    end: tuple[float, float]
    cars: bool

    def at(self, progress: float, horizon: float) -> tuple[float, float]:
        """(x, y) on the picture after `progress` (0..1) of the way at constant speed over the ground."""
        (x0, y0), (x1, y1) = self.start, self.end
        if y0 == y1:
            return x0 + (x1 - x0) * progress, y0
        # On the ground the distance from the camera goes as 1 / (y - horizon).
        far, near = 1 / (y0 - horizon), 1 / (y1 - horizon)
        y = horizon + 1 / (far + (near - far) * progress)
        return x0 + (x1 - x0) * (y - y0) / (y1 - y0), y

    def length_m(self, horizon: float) -> float:
        """How far it is over the ground, for a camera PERSON_PER_DEPTH high."""
        (x0, y0), (x1, y1) = self.start, self.end
        metres = METRES_PER_PERSON / PERSON_PER_DEPTH
        if y0 == y1:
            return abs(x1 - x0) * metres / (y0 - horizon)
        return abs(1 / (y0 - horizon) - 1 / (y1 - horizon)) * metres


@dataclass(frozen=True)
class View:
    """One position of the camera: where the horizon is and which ways cross the picture."""

    number: int
    kind: ViewKind
    horizon: float
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Actor:
    """One that enters at `start_s`, follows its path, and is gone after `duration_s`."""

    id: str
    kind: Kind
    path: Path
    start_s: float
    duration_s: float
    scale: float
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Pose:
    """An actor at one moment: feet or wheels at (x, y), `height` tall, `width` wide, lengths in picture heights."""

    actor: Actor
    x: float
    y: float
    height: float
    width: float
    heading: int
    """1 to the right, -1 to the left, 0 towards the camera, 2 away from it."""
    travelled_m: float


@lru_cache(maxsize=64)
def make_view(seed: int, number: int, aspect: float) -> View:
    """The view `number` of a scene: streets seen from the side and avenues seen along, in turn."""
    rng = np.random.default_rng([seed, 1, number])
    horizon = float(rng.uniform(0.28, 0.36))
    kind: ViewKind = "street" if number % 2 == 0 else "avenue"
    paths = _street(horizon, aspect) if kind == "street" else _avenue(horizon, aspect, float(rng.uniform(0.4, 0.6)))
    return View(number, kind, horizon, paths)


def _street(horizon: float, aspect: float) -> tuple[Path, ...]:
    depth = 1.0 - horizon
    walks = (horizon + 0.30 * depth, horizon + 0.88 * depth)
    lanes = (horizon + 0.44 * depth, horizon + 0.64 * depth)
    left, right = -0.3, aspect + 0.3
    return (
        Path((left, walks[0]), (right, walks[0]), cars=False),
        Path((right, lanes[0]), (left, lanes[0]), cars=True),
        Path((left, lanes[1]), (right, lanes[1]), cars=True),
        Path((right, walks[1]), (left, walks[1]), cars=False),
    )


def _avenue(horizon: float, aspect: float, vanish: float) -> tuple[Path, ...]:
    far_y, near_y = horizon + 0.08, 1.45

    def line(offset_m: float, *, away: bool, cars: bool) -> Path:
        # `offset_m` beside the camera: a parallel to the road runs into the vanishing point.
        near, far = (
            (vanish * aspect + offset_m * PERSON_PER_DEPTH / METRES_PER_PERSON * (y - horizon), y)
            for y in (near_y, far_y)
        )
        return Path(near, far, cars) if away else Path(far, near, cars)

    return (
        line(-5.2, away=False, cars=False),
        line(-1.9, away=False, cars=True),
        line(1.9, away=True, cars=True),
        line(5.2, away=True, cars=False),
    )


@dataclass(frozen=True)
class Traffic:
    """How much is going on, and when: periods of `active_s` in which some come, then `quiet_s` in which nobody is there."""

    seed: int
    activity: float
    active_s: float
    quiet_s: float

    def cycles(self, at_s: float) -> range:
        """The cycles whose actors may be there at `at_s`: nobody stays longer than one."""
        now = int(at_s // (self.active_s + self.quiet_s))
        return range(max(0, now - 1), now + 1)


@lru_cache(maxsize=64)
def make_actors(traffic: Traffic, view: View, cycle: int) -> tuple[Actor, ...]:
    """All who enter `view` in cycle number `cycle`; they are gone before it gets quiet."""
    cycle_s = traffic.active_s + traffic.quiet_s
    actors: list[Actor] = []
    for number, path in enumerate(view.paths):
        rng = np.random.default_rng([traffic.seed, 2, view.number, cycle, number])
        lane_speed = float(rng.uniform(7.0, 13.0))  # of all cars of one lane: nobody drives into another
        for enter_s in _entries(rng, path, traffic):
            name = f"{view.number}.{cycle}.{number}.{len(actors)}"
            actor = _actor(rng, name, view, path, start_s=cycle * cycle_s + enter_s, lane_speed=lane_speed)
            leave_by_s = traffic.active_s if traffic.quiet_s else enter_s + cycle_s
            if enter_s + actor.duration_s <= leave_by_s:
                actors.append(actor)
    return tuple(actors)


def _entries(rng: np.random.Generator, path: Path, traffic: Traffic) -> Iterator[float]:
    expected = traffic.activity * traffic.active_s * (CARS_PER_S if path.cars else WALKERS_PER_S)
    free_s = 0.0
    for enter_s in np.sort(rng.uniform(0.0, traffic.active_s, rng.poisson(expected))).tolist():
        if not path.cars or enter_s >= free_s:
            free_s = enter_s + HEADWAY_S
            yield enter_s


def _actor(rng: np.random.Generator, name: str, view: View, path: Path, *, start_s: float, lane_speed: float) -> Actor:
    if path.cars:
        kind: Kind = "van" if rng.random() < 0.2 else "car"
        speed, scale, colours = lane_speed, float(rng.uniform(0.95, 1.08)), CAR_COLOURS
    else:
        kind = "child" if rng.random() < 0.2 else "walker"
        # Brisker than life, so that a pavement is crossed within one active period.
        speed, scale, colours = float(rng.uniform(1.4, 3.2)), float(rng.uniform(0.9, 1.1)), COAT_COLOURS
    colour = colours[int(rng.integers(len(colours)))]
    return Actor(f"{kind}-{name}", kind, path, start_s, path.length_m(view.horizon) / speed, scale, colour)


def pose(actor: Actor, view: View, at_s: float) -> Pose | None:
    """Where the actor is at `at_s`, or None before it enters and after it has left."""
    progress = (at_s - actor.start_s) / actor.duration_s
    if not 0.0 <= progress < 1.0:
        return None
    x, y = actor.path.at(progress, view.horizon)
    person = PERSON_PER_DEPTH * (y - view.horizon) * actor.scale
    if view.kind == "street":
        heading, breadth = (1 if actor.path.end[0] > actor.path.start[0] else -1), LENGTH[actor.kind]
    else:
        heading, breadth = (0 if actor.path.end[1] > actor.path.start[1] else 2), WIDTH[actor.kind]
    travelled_m = progress * actor.path.length_m(view.horizon)
    return Pose(actor, x, y, person * HEIGHT[actor.kind], person * breadth, heading, travelled_m)
