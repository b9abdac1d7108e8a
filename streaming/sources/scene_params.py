"""What a test scene shows and how it is sent, read from a URL such as `scene:street?seed=7&fps=10`."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Self
from urllib.parse import parse_qsl

from streaming.errors import ConfigError


@dataclass(frozen=True)
class SceneParams:
    """What the scene shows and how it is sent. Times in seconds, `size` is width and height of the picture."""

    name: str = "street"
    seed: int = 1
    fps: Fraction = Fraction(10)
    size: tuple[int, int] = (640, 360)
    activity: float = 0.5
    """How many enter: 0 nobody, 1 a busy street."""
    active_s: float = 30.0
    """Length of the periods in which somebody may move..."""
    quiet_s: float = 15.0
    """...and of those between them in which nobody does."""
    cut_every_s: float = 30.0
    """Switch to the next view; 0: never."""
    views: int = 4
    lamp_every_s: float = 40.0
    """A street lamp goes on or off; 0: never."""
    drift: float = 0.05
    """Amplitude of the slow change of light, as a share of the brightness; its period is two minutes."""
    noise: float = 1.5
    """Standard deviation of the sensor noise in levels of 255."""
    clock: bool = True
    crf: int = 23
    """x264's quality, 0 (lossless) to 51."""
    gop_s: float = 2.0
    realtime: bool = True
    """False: rendered as fast as it is read, and every frame arrives: a file with `frames` frames."""
    frames: int = 0
    """End after this many frame times; 0: never."""
    log: str = ""
    """File to append one JSON line per emitted frame to: the source's own list."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """`scene:NAME?key=value&...` -> SceneParams. Raises ConfigError, which names what is valid."""
        scheme, _, rest = url.partition(":")
        name, _, query = rest.partition("?")
        if scheme != "scene":
            raise ConfigError(f"expected a URL like scene:street?seed=1, got {url!r}")
        preset = _PRESETS.get(name)
        if preset is None:
            raise ConfigError(
                f"unknown scene {name!r}: expected one of {', '.join(_PRESETS)}{_suggest(name, _PRESETS)}"
            )
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        except ValueError as exc:
            raise ConfigError(f"scene:{name}: expected key=value&key=value after the '?', got {query!r}") from exc
        given = {key: _value(name, key, text) for key, text in pairs}
        return cls(**{"name": name, **preset, **given})

    def __post_init__(self) -> None:
        if not self.realtime and not self.frames:
            raise ConfigError(f"scene:{self.name}: realtime=0 needs frames=N, a file has an end")
        if self.quiet_s and self.active_s < 5:
            raise ConfigError(
                f"scene:{self.name}: active_s: expected at least 5, time to cross the picture, got {self.active_s}"
            )

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the picture, without the time code."""
        return self.size[1], self.size[0]

    def pts_us(self, index: int) -> int:
        """Stream time of a frame in microseconds."""
        return round(index * 1_000_000 / self.fps)


_PRESETS: Final[dict[str, dict[str, Any]]] = {
    "street": {},
    "busy": {"activity": 1.0, "quiet_s": 0.0, "cut_every_s": 0.0},
    "quiet": {"activity": 0.0, "cut_every_s": 0.0, "lamp_every_s": 0.0, "drift": 0.0},
}


def _suggest(word: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _value(scene: str, key: str, text: str) -> Any:
    if key not in _PARSERS:
        raise ConfigError(
            f"scene:{scene}: unknown parameter {key!r}: expected one of {', '.join(_PARSERS)}{_suggest(key, _PARSERS)}"
        )
    expected, parse = _PARSERS[key]
    try:
        return parse(text)
    except (ValueError, KeyError, ZeroDivisionError) as exc:
        raise ConfigError(f"scene:{scene}: {key}: expected {expected}, got {text!r}") from exc


def _number(low: float, high: float) -> tuple[str, Callable[[str], float]]:
    def parse(text: str) -> float:
        number = float(text)
        if not low <= number <= high:
            raise ValueError
        return number

    return f"a number from {low:g} to {high:g}", parse


def _whole(low: int, high: int) -> tuple[str, Callable[[str], int]]:
    def parse(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError
        return number

    return f"a whole number from {low} to {high}", parse


def _rate(text: str) -> Fraction:
    rate = Fraction(text)
    if not Fraction(1, 10) <= rate <= 120:
        raise ValueError
    return rate.limit_denominator(1001)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    size = int(width), int(height)
    if not (256 <= size[0] <= 3840 and 64 <= size[1] <= 2160 and size[0] % 2 == size[1] % 2 == 0):
        raise ValueError
    return size


def _switch(text: str) -> bool:
    return {"0": False, "1": True}[text]


_PARSERS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "seed": _whole(0, 2**31),
    "fps": ("frames per second from 0.1 to 120, such as 10 or 30000/1001", _rate),
    "size": ("WIDTHxHEIGHT, both even, from 256x64 to 3840x2160", _size),
    "activity": _number(0, 4),
    "active_s": _number(1, 3600),
    "quiet_s": _number(0, 3600),
    "cut_every_s": _number(0, 86400),
    "views": _whole(1, 64),
    "lamp_every_s": _number(0, 86400),
    "drift": _number(0, 0.5),
    "noise": _number(0, 40),
    "clock": ("0 or 1", _switch),
    "crf": _whole(0, 51),
    "gop_s": _number(0.1, 60),
    "realtime": ("0 or 1", _switch),
    "frames": _whole(0, 2**31),
    "log": ("a path", str),
}
