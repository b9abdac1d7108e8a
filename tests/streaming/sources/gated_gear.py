"""Streams as quiet cameras send them, and a way through the decode gate on a clock of their own."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from streaming.errors import SourceError
from streaming.sources.base import Picture, StreamInfo
from streaming.sources.decode_gate import DecodeGate, DecodeGateSettings
from streaming.sources.decoding import Decoder
from streaming.sources.gated import Gating
from streaming.sources.timestamps import CaptureClock, TimestampRepair

FPS = 25
FORMATS = {".mkv": "matroska", ".ts": "mpegts", ".h264": "h264", ".h265": "hevc"}
SIZE_HW = (192, 320)
Scene = Callable[[int], NDArray[np.uint8]]
Tamper = Callable[[int, Any], Any]


class StreamClock:
    """A clock and a pacer in one: it is as late as the packet at hand."""

    def __init__(self) -> None:
        self.now_us = 1_000_000

    def wait(self, stream_us: int | None) -> None:
        if stream_us is not None:
            self.now_us = max(self.now_us, stream_us + 1_000_000)

    def due_ns(self, stream_us: int | None) -> int | None:
        return None if stream_us is None else (stream_us + 1_000_000) * 1000

    def monotonic_ns(self) -> int:
        return self.now_us * 1000

    def unix_us(self) -> int:
        return self.now_us


def room(noise: float = 0.0) -> Scene:
    """A textured wall that stays as it is, (192, 320) luma, with sensor noise of so many levels."""
    texture = np.random.default_rng(1).integers(60, 180, (24, 40)).repeat(8, 0).repeat(8, 1).astype(np.float32)

    def picture(index: int) -> NDArray[np.uint8]:
        grain = np.random.default_rng(index).normal(0, noise, SIZE_HW) if noise else 0.0
        return np.clip(texture + grain, 16, 235).astype(np.uint8)

    return picture


def encoded(path: Path, scene: Scene, frames: int, *, codec: str = "libx264", gop: int = 50, **options: str) -> Path:
    """A clip of `scene`, without B-frames unless `options` ask for them; the container is that of the suffix."""
    with av.open(str(path), "w", format=FORMATS[path.suffix]) as output:
        stream: Any = output.add_stream(codec, rate=FPS)
        stream.height, stream.width = SIZE_HW
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", gop
        plain = {f"{codec[3:]}-params": "scenecut=0:aud=1" + (":log-level=none" if codec == "libx265" else "")}
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "bf": "0"} | plain | options
        for index in range(frames):
            planes = np.full((SIZE_HW[0] * 3 // 2, SIZE_HW[1]), 128, np.uint8)
            planes[: SIZE_HW[0]] = scene(index)
            image = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            image.pts, image.time_base = index, Fraction(1, FPS)
            output.mux(stream.encode(image))
        output.mux(stream.encode(None))
    return path


class Tampered:
    """A container whose packets `tamper` may change on their way."""

    def __init__(self, container: Any, tamper: Tamper) -> None:
        self._container, self._tamper = container, tamper

    def demux(self, stream: Any) -> Iterator[Any]:
        for index, packet in enumerate(self._container.demux(stream)):
            yield self._tamper(index, packet) if packet.size else packet


def gating(**settings: Any) -> Gating:
    return Gating(DecodeGate(DecodeGateSettings(**settings)), "test")


def play(path: Path, gate: Gating | None = None, tamper: Tamper | None = None) -> list[Picture]:
    """Every access unit of a clip, with or without a gate, as if a live camera had sent it."""
    clock = StreamClock()

    def fail(exc: BaseException, _lines: object) -> SourceError:
        return SourceError("codec", str(exc))

    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        stream.thread_type = "NONE"
        decoder = Decoder(
            clock=clock,
            repair=TimestampRepair(live=True),
            capture=CaptureClock("rtsp"),
            pacer=clock,  # type: ignore[arg-type]
            translate=fail,
            alive=lambda _ns: None,
            run=None if gate is None else gate.run,
        )
        return list(decoder.pictures(Tampered(container, tamper) if tamper else container, stream))


def live_info(codec: str = "h264") -> StreamInfo:
    return StreamInfo(codec, SIZE_HW[1], SIZE_HW[0], FPS, live=True)


def pixels(picture: Picture) -> bytes:
    return b"" if picture.image is None else picture.image.to_ndarray().tobytes()


def blind_share(pictures: list[Picture]) -> float:
    return sum(picture.blind for picture in pictures) / len(pictures)


def longest_blind_s(pictures: list[Picture]) -> float:
    """The longest time between two pictures that are shown."""
    shown_ns = [picture.arrived_ns for picture in pictures if picture.image is not None]
    return max(after - before for before, after in pairwise(shown_ns)) / 1e9
