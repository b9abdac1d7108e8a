"""Cameras, files and patterns through PyAV: opens fast, with time-outs that fire, and translates every error."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final

import av
import av.container

from streaming.clock import SYSTEM_CLOCK, Clock
from streaming.errors import SourceError
from streaming.redaction import redact
from streaming.sources.base import Picture, SourceConfig, StreamInfo
from streaming.sources.decoding import Decoder
from streaming.sources.ffmpeg_log import LogLine, captured_log
from streaming.sources.gated import gating_for
from streaming.sources.options import Request, request_for
from streaming.sources.reasons import AV_ERRORS, source_error
from streaming.sources.timecode import STRIP_PX
from streaming.sources.timestamps import CaptureClock, Pacer, TimestampRepair

ATTACHED_PICTURE: Final = 0x400  # AV_DISPOSITION_ATTACHED_PIC


class AvSource:
    """The `Source` of everything that FFmpeg opens.

    Decodes without threads of its own: frame threads would add a frame of latency, and slice threads would log where
    nobody can tell the camera (see ffmpeg_log).
    """

    def __init__(self, config: SourceConfig, clock: Clock = SYSTEM_CLOCK) -> None:
        self.last_packet_ns = 0
        self._config, self._clock = config, clock
        self._url = redact(config.url)
        self._request: Request | None = None
        self._info: StreamInfo | None = None
        self._decoder: Decoder | None = None
        self._container: av.container.InputContainer | None = None
        self._stream: Any = None

    @property
    def repaired_pts(self) -> int:
        """How many timestamps had to be repaired so far."""
        return self._decoder.repair.repaired if self._decoder is not None else 0

    def open(self) -> StreamInfo:
        """Connect and find the video stream. Raises SourceError with its reason."""
        request = self._request = request_for(self._config)
        stream = self._stream = self._open_stream(request)
        info = self._info = self._describe(request, stream)
        strip_px = STRIP_PX if self._config.strip else 0
        gating = gating_for(self._config.decode_gate, info, self._url, strip_px=strip_px)
        self._decoder = Decoder(
            clock=self._clock,
            repair=TimestampRepair(live=info.live, step_us=round(1e6 / info.fps) if info.fps else 40_000),
            capture=CaptureClock(request.kind),
            pacer=Pacer() if self._paced(request) else None,
            translate=self._translated,
            alive=self._alive,
            run=gating.run if gating is not None else None,
        )
        return info

    def pictures(self) -> Iterator[Picture]:
        """Every access unit of the open stream; see `Source`."""
        if self._request is None or self._info is None or self._decoder is None:
            raise SourceError("internal", "pictures() of a source that is not open; call open() first")
        while True:
            count = 0
            for picture in self._decoder.pictures(self._container, self._stream):
                count += 1
                yield picture
            if self._info.live:
                raise SourceError("ended", f"{self._url}: the camera ended the stream")
            if not count:
                raise SourceError("codec", f"{self._url}: not one picture could be decoded")
            if not self._config.loop:
                return
            self.close()
            self._stream = self._open_stream(self._request)

    def close(self) -> None:
        """Free everything. Safe to call twice and after a failed open."""
        container, self._container = self._container, None
        if container is not None:
            with captured_log(), contextlib.suppress(Exception):
                container.close()

    def _alive(self, arrived_ns: int) -> None:
        self.last_packet_ns = arrived_ns

    def _describe(self, request: Request, stream: Any) -> StreamInfo:
        live = request.kind in ("rtsp", "device")
        if request.kind == "http":  # a file has a duration, a camera's stream has none
            live = self._container is None or self._container.duration is None
        return StreamInfo(
            codec=stream.codec_context.name,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            fps=float(stream.average_rate or 0),
            live=live,
            lossless=not live and not self._paced(request),
            pix_fmt=stream.codec_context.pix_fmt or "",
            transport=self._config.transport if request.kind == "rtsp" else request.kind,
        )

    def _paced(self, request: Request) -> bool:
        """A file that plays as a camera, or a test pattern, which is one."""
        return request.kind == "pattern" or (request.kind in ("file", "http") and self._config.realtime)

    def _open_stream(self, request: Request) -> Any:
        """The video stream after the first probe that shows one."""
        found = ""
        for probe in request.probes:
            container = self._container = self._connect(request, probe)
            for stream in container.streams.video:
                if stream.codec_context is not None and not _is_cover_art(stream):
                    stream.thread_type = "NONE"
                    return stream
            found = ", ".join(f"{stream.type} ({_codec_name(stream)})" for stream in container.streams)
            self.close()
        raise SourceError(
            "codec", f"{self._url}: expected a video stream, found {found or 'no stream that can be decoded'}"
        )

    def _connect(self, request: Request, probe: dict[str, str]) -> av.container.InputContainer:
        timeout = None if request.kind == "file" else (self._config.open_timeout_s, self._config.read_timeout_s)
        options = probe | request.options
        started_s = time.monotonic()
        with captured_log() as lines:
            try:
                return av.open(
                    request.target, format=request.format, options=options, timeout=timeout, metadata_errors="replace"
                )
            except AV_ERRORS as exc:
                # from None: av's error holds the URL with its password, and a traceback would print it
                raise self._translated(exc, lines, waited_s=time.monotonic() - started_s) from None

    def _translated(self, exc: BaseException, lines: list[LogLine], waited_s: float | None = None) -> SourceError:
        """`waited_s`: how long the opening took that failed; None while reading."""
        kind = self._request.kind if self._request is not None else "file"
        # A server that accepts and then says nothing ends as "invalid data" once the time is up.
        shortest_s = min(self._config.open_timeout_s, self._config.read_timeout_s)
        waited_out = waited_s is not None and kind in ("rtsp", "http") and waited_s >= 0.9 * shortest_s
        return source_error(
            exc, lines, self._config.url, device=kind == "device", waited_out=waited_out, reading=waited_s is None
        )


def _is_cover_art(stream: Any) -> bool:
    """A picture that belongs to an audio file is not a video."""
    disposition = getattr(stream, "disposition", None)  # since PyAV 15
    return disposition is not None and bool(disposition.value & ATTACHED_PICTURE)


def _codec_name(stream: Any) -> str:
    return stream.codec_context.name if stream.codec_context is not None else "unknown codec"
