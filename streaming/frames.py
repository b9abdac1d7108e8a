"""What travels between the stages before a vector exists: the picture format, a frame, and the count of what is missing."""

from dataclasses import dataclass
from typing import Final, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

ClockSource = Literal["rtcp", "driver", "arrival", "scene"]
"""Where `captured_at` comes from: the camera's RTCP reports, the capture driver, the packet's arrival, the test scene."""

DropCause = Literal[
    "superseded",  # a newer frame took its place in a newest-wins slot
    "paced",  # the encoder asked for fewer frames than the camera sends
    "blind",  # its packet waited undecoded as it showed nothing new (decode gate): the last vector stands for it
    "corrupt",  # damaged in transit or undecodable; also everything up to the next keyframe
    "late",  # its deadline could not be met any more
    "encoder_away",  # no encoder was connected
    "bad_message",  # it arrived as something that is not a frame
    "failed",  # the encoder raised on it
    "stopped",  # still waiting when the pipeline was told to stop
    "worker_lost",  # in the hands of a process that died
    "publisher_behind",  # encoded, but the publisher did not take it in time
    "broker_away",  # encoded, but the broker was out of reach
    "expired",  # encoded, but older than its expiry when it could have been sent
]
DROP_CAUSES: Final[tuple[DropCause, ...]] = DropCause.__args__  # type: ignore[attr-defined]


class FrameSpec(msgspec.Struct, frozen=True):
    """The picture a model wants: uint8 RGB of `size_hw`, and how a camera's YUV becomes it.

    `matrix` and `range` "auto": as tagged; an untagged picture of 720 lines or more is BT.709, below that BT.601.
    """

    size_hw: tuple[int, int]
    fit: Literal["squash", "crop", "letterbox"] = "squash"
    scaler: Literal["area", "bilinear", "bicubic"] = "area"
    matrix: Literal["auto", "bt601", "bt709"] = "auto"
    range: Literal["auto", "limited", "full"] = "auto"


class Since(msgspec.Struct):
    """What became of the frames between two that follow each other: `frame_seq` gap = 1 + held + sum of dropped.

    Every stage hands its own count on with the next frame, so the sum holds at every stage, up to the subscriber.
    A process that dies takes its count with it; the publisher sees the hole and books it as `worker_lost`.
    """

    held: int = 0
    dropped: dict[str, int] = msgspec.field(default_factory=dict)

    def drop(self, cause: DropCause, count: int = 1) -> None:
        """Add `count` frames dropped by `cause`."""
        if count:
            self.dropped[cause] = self.dropped.get(cause, 0) + count

    def add(self, other: "Since") -> Self:
        """Add the counts of `other` to these; returns self."""
        self.held += other.held
        for cause, count in other.dropped.items():
            self.dropped[cause] = self.dropped.get(cause, 0) + count
        return self

    @property
    def frames(self) -> int:
        """How many frames this accounts for."""
        return self.held + sum(self.dropped.values())


@dataclass(frozen=True, slots=True)
class CaptureTime:
    """When the light fell on the sensor, as well as anyone knows: Unix microseconds, who says so, and the error bound."""

    at_us: int
    clock: ClockSource
    error_us: int


@dataclass(slots=True)
class Frame:
    """One picture ready for the model, with its time and its ledger. `pixels` is (H, W, 3) uint8 RGB, contiguous."""

    camera: str
    frame_seq: int
    pixels: NDArray[np.uint8]
    pts_us: int
    """Stream time in microseconds, repaired to increase strictly."""
    captured: CaptureTime
    arrived_ns: int
    """CLOCK_MONOTONIC when the last packet of the access unit left the demuxer: the budget starts here."""
    decode_us: int
    convert_us: int
    wait_us: int
    """Time in the newest-frame slot and waiting for a credit."""
    since: Since
    reset: bool = False
    """First frame after an open, a reconnection or a change of picture size: caches of the camera start anew."""
    lossless: bool = False
    """From a file read at the encoder's pace: may be held, never superseded or late."""
