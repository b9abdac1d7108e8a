"""How long a silence may last, learnt per camera: a slow camera is not a dead one. Pure: the caller brings the time."""

from dataclasses import dataclass
from typing import Final

from streaming.sources.base import SourceConfig

READ_FACTOR: Final = 3.0
"""The inner read time-out lets this many usual frame intervals pass, the outer watchdog `stall_factor` of them."""
DECAY: Final = 0.9
MAX_PATIENCE: Final = 8.0
UNDECODABLE_FACTOR: Final = 3.0


@dataclass
class Watchdog:
    """The limits of one camera, over all its connections.

    The observed interval is the longest of the last dozen or so, since cameras come in bursts and slow down at night. A camera
    that was cut off before it could send two pictures gets twice the time at the next try, up to eight times.
    """

    config: SourceConfig
    interval_s: float = 0.0
    _patience: float = 1.0
    _pictures: int = 0
    _opened_ns: int = 0
    _last_picture_ns: int = 0

    @property
    def open_limit_s(self) -> float:
        """Of opening: FFmpeg's own time-out fires first, sometimes after twice its value, and there are two probes."""
        return 2.0 * self.config.open_timeout_s + 2.0

    @property
    def read_timeout_s(self) -> float:
        """For FFmpeg to wait for the next packet; used at the next open."""
        return max(self.config.read_timeout_s * self._patience, READ_FACTOR * self.interval_s)

    @property
    def stall_limit_s(self) -> float:
        """Of silence while streaming: max(floor, k x observed interval), and never before FFmpeg's own time-out."""
        floor_s = max(self.config.stall_floor_s, 2.0 * self.read_timeout_s)
        return max(floor_s, self.config.stall_factor * self.interval_s)

    @property
    def notice_s(self) -> float:
        """Of silence that is worth telling, though the connection still stands."""
        return 0.5 * self.read_timeout_s

    def opened(self, now_ns: int) -> None:
        """A connection stands; its first packets are awaited."""
        self._opened_ns, self._last_picture_ns, self._pictures = now_ns, 0, 0

    def picture(self, arrived_ns: int) -> None:
        """A good picture arrived. Called from the reader thread."""
        if self._last_picture_ns:
            gap_s = max(0, arrived_ns - self._last_picture_ns) / 1e9
            self.interval_s = max(gap_s, DECAY * self.interval_s)
        self._last_picture_ns = arrived_ns
        self._pictures += 1

    def closed(self, *, silent: bool) -> None:
        """The connection is gone; `silent`: because nothing came in time."""
        if self._pictures > 1:
            self._patience = 1.0
        elif silent and self._opened_ns:
            self._patience = min(MAX_PATIENCE, 2.0 * self._patience)
        self._opened_ns = 0

    def silent_s(self, now_ns: int, last_packet_ns: int) -> float:
        """Seconds since the last sign of life."""
        return (now_ns - max(self._opened_ns, last_packet_ns)) / 1e9

    def undecodable_left_s(self, now_ns: int) -> float:
        """Seconds until it is too long that packets come of which no picture can be made."""
        return UNDECODABLE_FACTOR * self.stall_limit_s - (now_ns - max(self._opened_ns, self._last_picture_ns)) / 1e9
