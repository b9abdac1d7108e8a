"""What goes into the scheduler and what comes out: frames to encode, and what became of the others."""

from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from encoders_core.config import Priority
from encoders_core.realtime.load import Level

FrameT = TypeVar("FrameT")
DropCause = Literal["superseded", "late", "failed", "stopped"]

WEIGHTS: Final[dict[Priority, float]] = {"low": 1.0, "normal": 2.0, "high": 4.0}
"""Share of the processor under overload; a low camera keeps a quarter of what a high one gets."""
_NO_LEVEL: Final = Level(0, 0)


@dataclass(slots=True)
class Job(Generic[FrameT]):
    """A frame and when it is due.

    `cold`, `lossless`: it runs however late it is. `background`: the last vector stands for it anyway, and it runs in slack
    time only. `whole`: its rows are not cut. `wants`: the level that the encoder would choose. `level`: that with which it
    was let in.
    """

    camera: str
    frame: FrameT
    arrived_ns: int
    deadline_ns: int
    wants: Level
    cold: bool
    lossless: bool
    background: bool
    whole: bool
    order: int
    level: Level = _NO_LEVEL
    started_ns: int = 0
    probe: bool = False
    """Started although it was predicted to be late, to see whether that still holds."""

    @property
    def must_run(self) -> bool:
        """Whether lateness does not matter."""
        return self.cold or self.lossless or self.background

    @property
    def gives_way(self) -> bool:
        """Whether other jobs should be let through between its blocks."""
        return self.cold or self.background


@dataclass(frozen=True, slots=True)
class Held(Generic[FrameT]):
    """The last vector stands for this frame."""

    camera: str
    frame: FrameT


@dataclass(frozen=True, slots=True)
class Dropped(Generic[FrameT]):
    """This frame will not be encoded."""

    camera: str
    frame: FrameT
    cause: DropCause


Outcome = Held[FrameT] | Dropped[FrameT]


@dataclass(frozen=True, slots=True)
class CameraCounts:
    """What became of a camera's frames: `offered = encoded + held + sum(dropped) + waiting + running`, always."""

    offered: int
    encoded: int
    held: int
    dropped: dict[str, int]
    waiting: int
    running: int
    capped: int = 0
    """Of the encoded ones: with fewer rows or a smaller picture than they wanted, to be in time."""
