"""Stream time that only goes forward, the pace of a file, and when the light fell on the sensor."""

import time
from dataclasses import dataclass
from typing import Final

from streaming.frames import CaptureTime, ClockSource

SMALL_STEP_BACK_US: Final = 1_000_000
JUMP_US: Final = 10_000_000
PLAUSIBLE_AGE_US: Final = 10_000_000
RTCP_ERROR_US: Final = 10_000
ARRIVAL_ERROR_US: Final[dict[str, int]] = {"rtsp": 500_000, "http": 2_000_000, "device": 100_000}
"""How long before its arrival a picture may have been taken. Assumed: nothing in the stream says it."""


@dataclass
class TimestampRepair:
    """Raw pts -> stream time in microseconds that increases strictly; `repaired` counts what was not right.

    None continues at the usual step; a small step back is held just above the last time; a jump (back by more than a
    second, or forward by more than ten seconds that did not pass, for live sources) is taken out for good.
    """

    live: bool
    step_us: int = 40_000
    repaired: int = 0
    _last_us: int | None = None
    _last_arrived_ns: int = 0
    _offset_us: int = 0

    def feed(self, raw_us: int | None, arrived_ns: int) -> int:
        """The repaired time of the next picture in presentation order."""
        out_us = self._place(raw_us, (arrived_ns - self._last_arrived_ns) // 1000)
        self._last_us, self._last_arrived_ns = out_us, arrived_ns
        return out_us

    def damaged(self) -> int:
        """A time for a picture that could not be decoded: just above the last one."""
        self._last_us = 0 if self._last_us is None else self._last_us + 1
        return self._last_us

    def _place(self, raw_us: int | None, elapsed_us: int) -> int:
        last_us = self._last_us
        if last_us is None:  # without a pts: usual for the first packet of RTSP, nothing to repair yet
            return raw_us or 0
        if raw_us is None:
            self.repaired += 1
            return last_us + self.step_us
        out_us = raw_us + self._offset_us
        step_us = out_us - last_us
        if step_us < -SMALL_STEP_BACK_US or (self.live and step_us - elapsed_us > JUMP_US):
            self.repaired += 1
            out_us = last_us + (max(1, min(elapsed_us, JUMP_US)) if self.live else self.step_us)
            self._offset_us = out_us - raw_us
        elif step_us <= 0:
            self.repaired += 1
            out_us = last_us + 1
        else:
            self.step_us = step_us
        return out_us


@dataclass
class Pacer:
    """Holds a file back to the pace of its timestamps."""

    _start_ns: int = 0
    _start_us: int | None = None

    def due_ns(self, stream_us: int | None) -> int | None:
        """When `stream_us` is due, CLOCK_MONOTONIC; None as long as nothing has been waited for."""
        if stream_us is None or self._start_us is None:
            return None
        return self._start_ns + (stream_us - self._start_us) * 1000

    def wait(self, stream_us: int | None) -> None:
        """Sleep until `stream_us` is due; a jump of more than ten seconds starts a new count."""
        if stream_us is None:
            return
        now_ns, due_ns = time.monotonic_ns(), self.due_ns(stream_us)
        if due_ns is None or abs(due_ns - now_ns) > JUMP_US * 1000:
            self._start_ns, self._start_us = now_ns, stream_us
        elif due_ns > now_ns:
            time.sleep((due_ns - now_ns) / 1e9)


@dataclass
class CaptureClock:
    """Who knows best when a picture was taken: the camera's RTCP reports, the driver, or only its arrival.

    A camera's clock may be wrong. A picture cannot have been taken after it arrived, nor, on a live link, ten seconds
    before: outside of this the camera is not believed until the next open. Its error is bounded by the age it claims.
    """

    kind: str
    _believed: bool = True

    def capture_time(self, raw_us: int | None, arrived_us: int, start_realtime_us: int | None) -> CaptureTime:
        """Of a picture with this raw pts that arrived at `arrived_us` (Unix)."""
        claim = self._claim(raw_us, start_realtime_us) if self._believed else None
        if claim is not None:
            at_us, clock = claim
            if 0 <= arrived_us - at_us <= PLAUSIBLE_AGE_US:
                return CaptureTime(at_us, clock, max(RTCP_ERROR_US, arrived_us - at_us))
            self._believed = False
        return CaptureTime(arrived_us, "arrival", ARRIVAL_ERROR_US.get(self.kind, 0))

    def _claim(self, raw_us: int | None, start_realtime_us: int | None) -> tuple[int, ClockSource] | None:
        if raw_us is None:
            return None
        if self.kind == "device":
            return raw_us, "driver"
        if self.kind == "rtsp" and start_realtime_us:
            return start_realtime_us + raw_us, "rtcp"
        return None
