"""What came from a camera: numbers every frame, hands the good ones on, and accounts for the others."""

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from streaming.clock import Clock
from streaming.frames import ClockSource, DropCause, Since
from streaming.slot import NewestSlot
from streaming.sources.base import Picture, StreamInfo


class Taken(NamedTuple):
    """What the slot hands out. `since` accounts for the frames between the one taken before and this one."""

    frame_seq: int
    picture: Picture
    since: Since
    info: StreamInfo


class FrameAccount:
    """Over all connections of one camera: frame_seq has no hole, and stream time goes on.

    `deliver` belongs to the reader thread of the present connection, the rest is safe from any thread.
    """

    def __init__(
        self,
        slot: NewestSlot[Taken],
        first_seq: int,
        clock: Clock,
        on_count: Callable[[int], None],
        supersede_cause: Callable[[], DropCause],
    ) -> None:
        self.captured = first_seq
        self.last_frame_at_us: int | None = None
        self.last_clock: ClockSource | None = None
        self._slot, self._clock, self._on_count, self._supersede_cause = slot, clock, on_count, supersede_cause
        self._lock = threading.Lock()
        self._since = Since()
        self._arrivals_ns: deque[int] = deque(maxlen=50)
        self._pts_us, self._shift_us, self._fresh = 0, 0, False

    def connect(self) -> None:
        """Another connection delivers from now on; its stream time is joined to what was before."""
        with self._lock:
            self._fresh = True

    def deliver(self, picture: Picture, info: StreamInfo, abandoned: threading.Event) -> bool:
        """Count the picture and put it into the slot; blocks for lossless sources. False once abandoned."""
        with self._lock:
            if abandoned.is_set():
                return False
            taken = self._book(picture, info)
        self._on_count(self.captured)
        if taken is None:
            return True
        if info.lossless:
            return self._slot.put_wait(taken, abandoned)
        self._slot.wake()
        return True

    def wake(self) -> None:
        """Let a blocked `deliver` see that it has been abandoned."""
        self._slot.wake_writer()

    def fps(self) -> float:
        """Frames a second over the last 50; sinks when nothing comes."""
        with self._lock:
            arrivals_ns = list(self._arrivals_ns)
        if len(arrivals_ns) < 2:
            return 0.0
        intervals, first_ns, last_ns = len(arrivals_ns) - 1, arrivals_ns[0], arrivals_ns[-1]
        usual_ns = (last_ns - first_ns) / intervals
        silence_ns = max(0.0, self._clock.monotonic_ns() - last_ns - usual_ns)
        return round(intervals * 1e9 / max(1.0, last_ns - first_ns + silence_ns), 2)

    def tail(self) -> tuple[int, Since]:
        """The last frame_seq, and what became of the frames after the last one taken; they are accounted for with this."""
        with self._lock:
            since = Since()
            for taken in self._slot.drain():
                since.add(taken.since).drop("stopped")
            since.add(self._since)
            self._since = Since()
            return self.captured - 1, since

    def _book(self, picture: Picture, info: StreamInfo) -> Taken | None:
        self._join_times(picture)
        frame_seq, self.captured = self.captured, self.captured + 1
        if picture.damaged:
            self._since.drop("corrupt")
            return None
        self.last_frame_at_us, self.last_clock = picture.captured.at_us, picture.captured.clock
        if picture.blind:
            self._since.drop("blind")
            return None
        if info.lossless:
            since, self._since = self._since, Since()
            return Taken(frame_seq, picture, since, info)
        superseded = self._slot.take()
        since, self._since = self._since, Since()
        if superseded is not None:
            since.add(superseded.since).drop(self._supersede_cause())
            picture.reset |= superseded.picture.reset
        taken = Taken(frame_seq, picture, since, info)
        self._slot.place(taken)
        return taken

    def _join_times(self, picture: Picture) -> None:
        if self._fresh:
            elapsed_us = (picture.arrived_ns - self._arrivals_ns[-1]) // 1000 if self._arrivals_ns else 0
            if self._arrivals_ns:
                self._shift_us = self._pts_us + max(1, elapsed_us) - picture.pts_us
            self._fresh = False
            self._arrivals_ns.clear()
        picture.pts_us += self._shift_us
        self._pts_us = picture.pts_us
        self._arrivals_ns.append(picture.arrived_ns)
