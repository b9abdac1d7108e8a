"""What `EncoderInbox.poll` returns, in the order in which it happened."""

from dataclasses import dataclass
from typing import Literal

from streaming.frames import Frame
from streaming.records import StateRecord, WorkerStats
from streaming.wire import Tail


@dataclass(frozen=True, slots=True)
class FrameArrived:
    """A frame of ours to acknowledge. `frame.arrived_ns` is in the clock of this host; pixels are writable and our own."""

    frame: Frame
    worker: str
    transfer_us: int
    """From the capture worker's send to now. Between hosts an estimate that errs on the long side."""


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """A capture worker said its first Hello: a new one, a new incarnation, or one that comes back after a silence."""

    worker: str
    incarnation: int
    cameras: tuple[str, ...]
    version: str
    same_host: bool


@dataclass(frozen=True, slots=True)
class CamerasChanged:
    """A living worker declares cameras anew."""

    worker: str
    added: tuple[str, ...]
    removed: tuple[str, ...]


WhyVanished = Literal["bye", "silent", "replaced"]


@dataclass(frozen=True, slots=True)
class WorkerVanished:
    """A capture worker is gone: it said so, was silent for 3 s, or another incarnation took its place."""

    worker: str
    incarnation: int
    cameras: tuple[str, ...]
    why: WhyVanished


@dataclass(frozen=True, slots=True)
class Readable:
    """A watched file descriptor has something to read, or its other end is closed."""

    descriptor: int


Event = FrameArrived | Tail | StateRecord | WorkerStats | WorkerStarted | CamerasChanged | WorkerVanished | Readable
