"""What a source is: settings in, pictures with their times out. All of it blocking, for one reader thread."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import av
import numpy as np
from numpy.typing import NDArray

from streaming.frames import CaptureTime, FrameSpec
from streaming.sources.decode_gate import DecodeGateSettings


@dataclass(frozen=True)
class SourceConfig:
    """Where pictures come from and how long to wait for them. Credentials live in the URL, percent-encoded."""

    url: str = field(repr=False)
    """rtsp, rtsps, http, https, a file, /dev/videoN or webcam:N, lavfi:GRAPH, scene:NAME."""
    transport: Literal["tcp", "udp"] = "tcp"
    """How RTP travels; only read for rtsp."""
    open_timeout_s: float = 5.0
    read_timeout_s: float = 5.0
    """Longest silence of the source. Raise it for a camera that sends less than one frame in this time."""
    stall_floor_s: float = 10.0
    stall_factor: float = 20.0
    """The outer watchdog gives up after max(stall_floor_s, stall_factor x observed frame interval)."""
    realtime: bool = False
    """Files: deliver at the pace of their timestamps, the newest wins, as a camera would."""
    loop: bool = False
    """Files: start again at the end."""
    max_pixels: int = 0
    """A stream of larger pictures is refused, so that frame memory is bounded; 0: no limit."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Further FFmpeg options of the demuxer or protocol; they win over ours."""
    decode_gate: DecodeGateSettings | None = None
    """Let packets of a quiet camera wait undecoded; None: decode each as it comes. Not for lossless files."""
    strip: bool = False
    """The lowest 16 rows are a time code, as of the test scene: `captured` is read there, and it is no picture."""
    tls_ca: str | None = None
    """PEM file of the authorities to trust for rtsps and https; None: those of the system."""
    tls_verify: bool = True


@dataclass(frozen=True)
class StreamInfo:
    """What the source turned out to send."""

    codec: str
    width: int
    height: int
    fps: float
    """As announced; 0 if unknown."""
    live: bool
    """The end of the stream is a loss, not an end."""
    lossless: bool = False
    """Every frame counts: the reader waits for the consumer (files not in real time)."""
    strip_px: int = 0
    """Rows at the bottom that are not picture: the test scene's time code."""
    pix_fmt: str = ""
    transport: str = ""


@dataclass(frozen=True, slots=True)
class Converted:
    """A picture as the model wants it: (H, W, 3) uint8 RGB of `spec`, and what that took."""

    spec: FrameSpec
    pixels: NDArray[np.uint8]
    convert_us: int


@dataclass(slots=True)
class Picture:
    """One access unit: decoded, or known to be damaged. Ready to be counted either way."""

    image: av.VideoFrame | None
    """None when it is damaged or undecodable, or `blind`."""
    pts_us: int
    """Stream time, repaired to increase strictly."""
    captured: CaptureTime
    arrived_ns: int
    """CLOCK_MONOTONIC when the last packet of the access unit left the demuxer."""
    decode_us: int
    reset: bool = False
    """The first good picture after an open or a change of picture size."""
    damaged: bool = False
    keyframe: bool = False
    blind: bool = False
    """Its packet waits undecoded, or is never decoded: no image, and nothing speaks of a change since the last picture."""
    converted: Converted | None = None
    """Done already, by the reader's thread."""


class Source(Protocol):
    """One camera, file or pattern. Not thread-safe: one reader thread calls open, pictures, close; once each.

    Errors are `SourceError` alone, with a reason and a text that holds no secret. A live source that ends raises
    `SourceError("ended")`; the iteration of a file ends.
    """

    @property
    def last_packet_ns(self) -> int:
        """CLOCK_MONOTONIC of the last sign of life, 0 before the first; read by the watchdog from another thread."""
        ...

    @property
    def repaired_pts(self) -> int:
        """How many timestamps had to be repaired so far."""
        ...

    def open(self) -> StreamInfo:
        """Connect and find the video stream. Blocks up to about twice `open_timeout_s`."""
        ...

    def pictures(self) -> Iterator[Picture]:
        """Every access unit in presentation order. Blocks up to about twice `read_timeout_s` for each."""
        ...

    def close(self) -> None:
        """Free everything. Safe to call twice and after a failed open."""
        ...
