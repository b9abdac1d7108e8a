"""The test scene as a `Source`: starts the scene's process, decodes what it sends, reads the time code of each picture."""

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import av

from streaming.clock import SYSTEM_CLOCK, Clock
from streaming.errors import ConfigError, SourceError
from streaming.frames import CaptureTime
from streaming.sources.base import Picture, SourceConfig, StreamInfo
from streaming.sources.scene_params import SceneParams
from streaming.sources.strip import STRIP_ERROR_US, read_time_code
from streaming.sources.timecode import STRIP_PX

ARRIVAL_ERROR_US: Final = 100_000  # rendering, encoding and a full pipe
# NUT's header says all that a decoder needs: look no further, or the first second of pictures waits in the probe.
_PROBE: Final = {"probesize": "32", "analyzeduration": "0", "fpsprobesize": "0"}


class SceneSource:
    """A camera that does not exist: a live source, or with `realtime=0` a lossless file; see `Source` and docs/scene.md.

    The process ends when the thread that called `open` ends, at `close`, and with this process.
    """

    def __init__(self, config: SourceConfig, clock: Clock = SYSTEM_CLOCK) -> None:
        self.last_packet_ns = 0
        self.repaired_pts = 0
        """Always 0: the index in the time code is the only clock of the stream."""
        self.damaged_strips = 0
        """Pictures whose time code could not be read: their `captured` is their arrival."""
        self._config, self._clock = config, clock
        self._process: _SceneProcess | None = None
        self._container: Any = None
        self._params: SceneParams | None = None

    def open(self) -> StreamInfo:
        """Start the scene. Raises SourceError("not_found") for a URL that names none."""
        try:
            params = self._params = SceneParams.parse(self._config.url)
        except ConfigError as exc:
            raise SourceError("not_found", str(exc)) from exc
        self._process = _SceneProcess(self._config.url, self._config.open_timeout_s)
        try:
            self._container = av.open(self._process, format="nut", options=_PROBE)
        except (OSError, ValueError) as exc:  # av's errors are subclasses of these
            raise self._lost() from exc
        stream = self._container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        self._process.timeout_s = self._config.read_timeout_s
        width, height = params.size
        return StreamInfo(
            codec=stream.codec_context.name,
            width=width,
            height=height + STRIP_PX,
            fps=float(params.fps),
            live=params.realtime,
            lossless=not params.realtime,
            strip_px=STRIP_PX,
            pix_fmt=stream.codec_context.pix_fmt or "",
        )

    def pictures(self) -> Iterator[Picture]:
        """Every picture of the scene; see `Source`."""
        if self._container is None or self._params is None:
            raise SourceError("internal", "pictures() of a scene that is not open; call open() first")
        first = True
        for packet in self._packets():
            arrived_ns = self.last_packet_ns = self._clock.monotonic_ns()
            arrived_us = self._clock.unix_us()
            started_ns = time.perf_counter_ns()
            try:
                images = packet.decode()
            except (OSError, ValueError) as exc:
                raise SourceError(
                    "codec", f"{self._config.url}: a packet of the scene cannot be decoded: {exc}"
                ) from exc
            decode_us = (time.perf_counter_ns() - started_ns) // 1000
            for image in images:
                captured = self._captured(image, arrived_us)
                yield Picture(
                    image, _pts_us(image), captured, arrived_ns, decode_us, reset=first, keyframe=packet.is_keyframe
                )
                first = False
        if self._params.realtime or self._process is None or self._process.failed():
            raise self._lost()

    def close(self) -> None:
        """End the scene's process at once. Safe to call twice and after a failed open."""
        if self._process is not None:
            self._process.close()
        if self._container is not None:
            self._container.close()
        self._process = self._container = None

    def _packets(self) -> Iterator[Any]:
        try:
            for packet in self._container.demux(video=0):
                if packet.size:
                    yield packet
        except (OSError, ValueError) as exc:
            raise self._lost() from exc

    def _captured(self, image: av.VideoFrame, arrived_us: int) -> CaptureTime:
        code = read_time_code(image)
        if code is None:
            self.damaged_strips += 1
            return CaptureTime(arrived_us, "arrival", ARRIVAL_ERROR_US)
        return CaptureTime(code.captured_at_us, "scene", STRIP_ERROR_US)

    def _lost(self) -> SourceError:
        """Why nothing comes any more, in the words of the process if it left some."""
        url, process = self._config.url, self._process
        if process is not None and process.timed_out:
            return SourceError("timeout", f"{url}: the scene's process sends nothing within {process.timeout_s:g} s")
        said = process.last_words() if process is not None else ""
        if said:
            return SourceError("internal", f"{url}: the scene's process failed: {said}")
        return SourceError("ended", f"{url}: the scene has ended")


def _pts_us(image: av.VideoFrame) -> int:
    return round((image.pts or 0) * (image.time_base or 0) * 1_000_000)


class _SceneProcess:
    """The child and its pipe, as the file that PyAV reads: returns what is there, waits `timeout_s` at most."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.timed_out = False
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe could fill and stop the child
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
        self._child = subprocess.Popen(
            [sys.executable, "-m", "streaming.sources.scene_process", url],
            stdin=subprocess.PIPE,  # its end of file tells the child that we are gone
            stdout=subprocess.PIPE,
            stderr=self._words,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path},
        )

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end, and after a time-out for ever: some demuxers try again on an error."""
        assert self._child.stdout is not None  # noqa: S101 - we asked for a pipe
        poller = select.poll()
        poller.register(self._child.stdout, select.POLLIN)
        self.timed_out = self.timed_out or not poller.poll(self.timeout_s * 1000)
        if self.timed_out:
            return b""
        return self._child.stdout.read(size) or b""

    def failed(self) -> bool:
        """It was silent for too long, or has ended in failure."""
        return self.timed_out or bool(self.last_words())

    def last_words(self) -> str:
        """The last line on its standard error, if it ended in failure."""
        try:
            code = self._child.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return ""
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return "" if code == 0 else lines[-1] if lines else f"exit code {code}"

    def close(self) -> None:
        """Kill it, wait for it, close the pipes."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._words):
            if pipe is not None:
                pipe.close()
