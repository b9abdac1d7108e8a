"""`python -m streaming.sources.scene_process scene:street?...`: the test scene as a camera, a process of its own.

Renders in real time, encodes H.264 and writes NUT to standard output, which may be any reader (`| ffplay -f nut -`).
Like a camera it keeps its own pace: a frame that cannot be made or handed over in time is never made, and the next
index says so. Ends with its parent: at end of file on a piped standard input, when the reader has gone, by signal.
"""

import ctypes
import json
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TextIO

import av
import numpy as np
from numpy.typing import NDArray

from streaming.clock import SYSTEM_CLOCK, Clock
from streaming.errors import ConfigError
from streaming.sources.scene import Scene, SceneParams
from streaming.sources.timecode import STRIP_PX, write_strip

_PR_SET_PDEATHSIG: Final = 1
_BT709, _BT601, _LIMITED = 1, 6, 1


class ReaderGoneError(Exception):
    """Raised when nobody reads any more, or the parent has died: time to leave, quietly."""


class Outlet:
    """A pipe that never blocks for ever: bytes wait here until the reader takes them or goes away."""

    def __init__(self, out_fd: int, parent_fd: int | None) -> None:
        self._out_fd, self._parent_fd = out_fd, parent_fd
        self._waiting = memoryview(b"")
        os.set_blocking(out_fd, False)

    def offer(self, data: bytes) -> None:
        """Take one frame's bytes; nothing may be waiting."""
        self._waiting = memoryview(data)

    def drain_until(self, deadline_ns: int | None) -> bool:
        """Hand over what waits and sleep till the deadline (None: return when drained); True if nothing waits."""
        while True:
            left_ms = None if deadline_ns is None else max(0, (deadline_ns - time.monotonic_ns()) / 1e6)
            if not self._waiting and (left_ms is None or left_ms == 0):
                return True
            self._wait(left_ms)
            if deadline_ns is not None and time.monotonic_ns() >= deadline_ns:
                return not self._waiting

    def _wait(self, timeout_ms: float | None) -> None:
        poller = select.poll()
        # A pipe without a reader reports POLLERR whatever is asked for.
        poller.register(self._out_fd, select.POLLOUT if self._waiting else 0)
        if self._parent_fd is not None:
            poller.register(self._parent_fd, select.POLLIN)
        for fd, event in poller.poll(timeout_ms):
            if fd == self._parent_fd and (event & ~select.POLLIN or not os.read(fd, 4096)):
                raise ReaderGoneError
            if fd == self._out_fd and event & select.POLLERR:
                raise ReaderGoneError
            if fd == self._out_fd and event & select.POLLOUT:
                self._write()

    def _write(self) -> None:
        try:
            self._waiting = self._waiting[os.write(self._out_fd, self._waiting) :]
        except BlockingIOError:
            return
        except BrokenPipeError as exc:
            raise ReaderGoneError from exc


class SceneEncoder:
    """Rendered pictures in, NUT bytes out, one packet per picture and no picture kept back."""

    def __init__(self, params: SceneParams) -> None:
        self._sink = _Sink()
        self._container = av.open(self._sink, "w", format="nut", options={"fflags": "+flush_packets"})
        height, width = params.size_hw
        high = height >= 720
        self._colorspace = "itu709" if high else "itu601"
        stream = self._container.add_stream("libx264", rate=params.fps)
        stream.width, stream.height, stream.pix_fmt = width, height + STRIP_PX, "yuv420p"
        self._tick = stream.time_base = 1 / params.fps
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": str(params.crf)}
        stream.codec_context.thread_count = 1
        stream.codec_context.max_b_frames = 0
        stream.codec_context.gop_size = max(1, round(params.gop_s * params.fps))
        stream.codec_context.colorspace = _BT709 if high else _BT601
        stream.codec_context.color_range = _LIMITED
        self._stream = stream
        self._container.start_encoding()

    def encode(self, coded: NDArray[np.uint8], index: int) -> bytes:
        """(H + 16, W, 3) uint8 RGB of frame `index` -> the bytes that carry it."""
        frame = av.VideoFrame.from_ndarray(coded, "rgb24").reformat(
            format="yuv420p", dst_colorspace=self._colorspace, dst_color_range="MPEG"
        )
        frame.pts, frame.time_base = index, self._tick  # the stream's own becomes the muxer's choice
        return self._mux(self._stream.encode(frame))

    def finish(self) -> bytes:
        """The bytes that end the stream."""
        data = self._mux(self._stream.encode(None))
        self.close()
        return data + self._sink.take()

    def close(self) -> None:
        """Free everything; may be repeated. PyAV before 18 aborts the process when this is left to the interpreter."""
        self._container.close()

    def _mux(self, packets: list[Any]) -> bytes:
        self._container.mux(packets)
        return self._sink.take()


class _Sink:
    """A file that can only be written to: what cannot seek, no muxer seeks in."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def due_indexes(params: SceneParams, outlet: Outlet, clock: Clock) -> Iterator[int]:
    """Frame indexes at their moments on CLOCK_MONOTONIC; those that nobody was there for are left out."""
    start_ns, index = clock.monotonic_ns(), 0
    while not params.frames or index < params.frames:
        free = outlet.drain_until(start_ns + params.pts_us(index) * 1000 if params.realtime else None)
        if free:
            yield index
        # The newest one that is due, or the next: what was missed stays missed.
        due = int((clock.monotonic_ns() - start_ns) * params.fps / 1_000_000_000) if params.realtime else 0
        index = max(index + 1, due)


def run(params: SceneParams, outlet: Outlet, log: TextIO | None, clock: Clock = SYSTEM_CLOCK) -> None:
    """Send the scene until its end, or until ReaderGoneError."""
    scene = Scene(params)
    scene.warm()
    with closing(SceneEncoder(params)) as encoder:
        _send(scene, encoder, outlet, log, clock)


def _send(scene: Scene, encoder: SceneEncoder, outlet: Outlet, log: TextIO | None, clock: Clock) -> None:
    params = scene.params
    coded = np.empty((params.size_hw[0] + STRIP_PX, params.size_hw[1], 3), np.uint8)
    previous: int | None = None
    for index in due_indexes(params, outlet, clock):
        captured_at_us = clock.unix_us()
        coded[:-STRIP_PX] = scene.render(index)
        write_strip(coded[-STRIP_PX:], index, captured_at_us)
        data = encoder.encode(coded, index)
        if log:
            _write_log(log, scene, index, previous, captured_at_us)
        outlet.offer(data)
        previous = index
    outlet.drain_until(None)
    outlet.offer(encoder.finish())
    outlet.drain_until(None)


def _write_log(log: TextIO, scene: Scene, index: int, previous: int | None, captured_at_us: int) -> None:
    truth = scene.truth(index, index if previous is None else previous)
    line = {
        "index": index,
        "pts_us": scene.params.pts_us(index),
        "captured_at_us": captured_at_us,
        "cut": truth.cut,
        "moved": truth.moved,
    }
    log.write(json.dumps(line) + "\n")
    log.flush()


def _die_with_parent() -> None:
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        sys.exit(0)


def _parent_fd() -> int | None:
    """Standard input, if it is a pipe: its end of file means that the parent has gone."""
    try:
        return 0 if stat.S_ISFIFO(os.fstat(0).st_mode) else None
    except OSError:
        return None


def main(arguments: list[str]) -> int:
    """Exit code: 0 done or reader gone, 2 wrong usage."""
    _die_with_parent()
    if len(arguments) != 1:
        print("usage: python -m streaming.sources.scene_process 'scene:street?fps=10' > video.nut", file=sys.stderr)  # noqa: T201 - a command
        return 2
    try:
        params = SceneParams.parse(arguments[0])
        log = Path(params.log).open("a", encoding="utf-8") if params.log else None  # noqa: SIM115 - open until the process ends
    except (ConfigError, OSError) as exc:
        print(exc, file=sys.stderr)  # noqa: T201 - the parent reads it
        return 2
    try:
        run(params, Outlet(sys.stdout.fileno(), _parent_fd()), log)
    except ReaderGoneError:
        pass
    finally:
        if log:
            log.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
