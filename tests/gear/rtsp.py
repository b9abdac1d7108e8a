"""Cameras for tests: an RTSP server in a process that can be killed, frozen and restarted, and clips to serve."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import av
import pytest

DEBIAN_PYTHON = "/usr/bin/python3"
SERVER = Path(__file__).with_name("rtsp_server.py")
PACKAGES = (
    "apt-get install -y --no-install-recommends python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base "
    "gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly"
)
START_TIMEOUT_S = 20.0


@cache
def missing_for_rtsp() -> str:
    """Which package an RTSP test needs and does not find, as a sentence; empty if all is there."""
    if not Path(DEBIAN_PYTHON).exists():
        return f"needs {DEBIAN_PYTHON} with gi and GStreamer's rtsp-server: {PACKAGES}"
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    done = subprocess.run([DEBIAN_PYTHON, "-c", check], capture_output=True, check=False)
    return "" if done.returncode == 0 else f"needs GStreamer's RTSP server: {PACKAGES}"


class RtspServer:
    """A running server. `url("/cam")` is where its mount can be read."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.port = int(settings.get("port", 0))
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, or start again on the same port."""
        settings = json.dumps(self.settings | {"port": self.port})
        self._process = subprocess.Popen(
            [DEBIAN_PYTHON, str(SERVER), settings], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        giving_up = threading.Timer(START_TIMEOUT_S, self._process.kill)
        giving_up.start()
        line = self._process.stdout.readline() if self._process.stdout else ""
        giving_up.cancel()
        if not line.startswith("ready"):
            raise RuntimeError(f"expected `ready PORT` from the RTSP server, got {line!r}")
        self.port = int(line.split()[1])

    def url(self, path: str, *, login: str = "", host: str = "127.0.0.1") -> str:
        """The address of a mount; `login` is user:password as it stands in a URL."""
        scheme = "rtsps" if "cert" in self.settings else "rtsp"
        return f"{scheme}://{login + '@' if login else ''}{host}:{self.port}{path}"

    def freeze(self) -> None:
        """Sockets stay open and say nothing: a pulled cable."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End at once; the kernel closes the sockets."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            if self._process.stdout:
                self._process.stdout.close()
            self._process = None

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


@contextmanager
def rtsp_server(mounts: dict[str, dict[str, Any]], **settings: Any) -> Iterator[RtspServer]:
    """A running RTSP server (settings: see rtsp_server.py); skips the test where GStreamer is missing."""
    if missing := missing_for_rtsp():
        pytest.skip(missing)
    server = RtspServer({"mounts": mounts} | settings)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@cache
def elementary_stream(codec: str = "h264", *, fps: int = 25, seconds: int = 2, size: str = "320x240") -> str:
    """Path of a moving test picture, a raw stream with access unit delimiters, a keyframe a second and no B-frames.

    `codec` is h264 or h265.
    """
    folder = Path(tempfile.gettempdir()) / f"camvec-test-clips-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{size}-{fps}-{seconds}.{codec}"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        _encode(f"testsrc2=size={size}:rate={fps}:duration={seconds}", part, codec, fps)
        part.rename(path)
    return str(path)


def _encode(pattern: str, path: Path, codec: str, fps: int) -> None:
    parameters = "aud=1:repeat-headers=1" + (":log-level=none" if codec == "h265" else "")
    with (
        av.open(pattern, format="lavfi") as source,
        av.open(str(path), "w", format={"h264": "h264", "h265": "hevc"}[codec]) as output,
    ):
        pattern_stream = source.streams.video[0]
        stream: Any = output.add_stream(f"libx{codec[1:]}", rate=fps)
        stream.width, stream.height, stream.pix_fmt = pattern_stream.width, pattern_stream.height, "yuv420p"
        stream.codec_context.gop_size = fps
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "bf": "0", f"x{codec[1:]}-params": parameters}
        for image in source.decode(pattern_stream):
            picture = image.reformat(format="yuv420p")
            picture.pts, picture.pict_type = None, 0  # else every picture stays the keyframe that the pattern sent
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))


@contextmanager
def tcp_server(answer: Any) -> Iterator[int]:
    """A port on which `answer(connection, stop)` runs in a thread for each connection; `stop` is set at the end."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)

    def serve() -> None:
        while not stop.is_set():
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            answer(connection, stop)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        thread.join()
        listener.close()
