"""Which arrival belongs to which decoded picture: decoders hold pictures back, reorder and swallow them."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a packet left the demuxer: its number, CLOCK_MONOTONIC, and Unix microseconds."""

    number: int
    pts: int | None
    arrived_ns: int
    arrived_us: int
    keyframe: bool
    told: bool = False
    """Its frame has been accounted for already: the packet had to wait."""


@dataclass
class Arrivals:
    """Packets whose pictures the decoder still holds. Bounded: the oldest is forgotten."""

    waiting: deque[Arrival] = field(default_factory=lambda: deque(maxlen=64))

    def add(self, arrival: Arrival) -> None:
        """A packet goes into the decoder."""
        self.waiting.append(arrival)

    def fail(self) -> Arrival:
        """Take back the packet that was added last: the decoder raised on it."""
        return self.waiting.pop()

    def match(self, pts: int | None) -> tuple[Arrival | None, int]:
        """The arrival of the picture with this pts, and how many earlier ones the decoder swallowed without a word.

        Frames that have been accounted for already do not count. Without a usable pts the oldest is taken: exact as long as the stream has no B-frames.
        """
        found = next((waiting for waiting in self.waiting if waiting.pts == pts), None) if pts is not None else None
        if found is None or pts is None:
            return (self.waiting.popleft() if self.waiting else None), 0
        kept = [waiting for waiting in self.waiting if waiting.pts is None or waiting.pts > pts]
        gone = [waiting for waiting in self.waiting if waiting.pts is not None and waiting.pts <= pts]
        swallowed = sum(not waiting.told for waiting in gone if waiting is not found)
        self.waiting = deque(kept, maxlen=self.waiting.maxlen)
        return found, swallowed
