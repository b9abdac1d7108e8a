#!/usr/bin/python3
"""An RTSP server that plays one coded clip as several cameras and writes down when it pushed each frame.

    /usr/bin/python3 rtsp_feed.py '{"file": "clip.h264", "fps": [30, 1], "mounts": {"/camvec/cam0": 0}, "log": "pushes.txt"}'

Prints `ready PORT`. A mount plays from the frame of its number when its first client comes: at one frame in two seconds, so
that nobody takes it for dead. A line `PATH` on standard input lets the mounts whose path begins so play at the clip's own
rate, and no others; `restart` takes all mounts back to their first frame. The log has a line `MOUNT FRAME
CLOCK_MONOTONIC_NS` for each push. A client that reads too slowly finds its frames waiting, as in the buffers of a camera
with plenty of memory. Needs Debian's python3-gi, not the project's interpreter.
"""

import json
import re
import sys
import time
from typing import Any

import gi

for name, version in {"Gst": "1.0", "GstRtspServer": "1.0"}.items():
    gi.require_version(name, version)
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402 - versions come first

DELIMITER = re.compile(rb"\x00\x00\x00\x01\x09")
TICK_MS = 4
SLOW_NS = 2_000_000_000


class Camera(GstRtspServer.RTSPMediaFactory):
    """Plays the units over and over, timestamps as they come."""

    def __init__(self, mount: str, units: list[bytes], first: int, fps: tuple[int, int], log: Any) -> None:
        super().__init__()
        self.mount, self.units, self.first, self.fps, self.log = mount, units, first, fps, log
        self.active, self.due_ns, self.sent = False, 0, 0
        self.set_shared(True)

    def play(self, *, active: bool) -> None:
        """At the clip's rate from now on, or slowly."""
        self.active, self.due_ns = active, time.monotonic_ns()

    def do_create_element(self, _url: Any) -> Any:
        """The pipeline of a mount."""
        caps = f"video/x-h264,stream-format=byte-stream,alignment=au,framerate={self.fps[0]}/{self.fps[1]}"
        return Gst.parse_launch(
            f"( appsrc name=src is-live=true format=time block=false max-bytes=0 caps={caps}"
            " ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=1 )"
        )

    def do_configure(self, media: Any) -> None:
        """A first client has come."""
        source = media.get_element().get_by_name_recurse_up("src")
        step_ns = 1_000_000_000 * self.fps[1] // self.fps[0]
        start_ns = self.due_ns = time.monotonic_ns()

        def push() -> bool:
            while time.monotonic_ns() >= self.due_ns:
                frame = (self.first + self.sent) % len(self.units)
                pushed_ns = time.monotonic_ns()
                buffer = Gst.Buffer.new_wrapped(self.units[frame])
                buffer.pts = buffer.dts = pushed_ns - start_ns
                buffer.duration = step_ns
                if source.emit("push-buffer", buffer) != Gst.FlowReturn.OK:
                    return False
                self.log.write(f"{self.mount} {frame} {pushed_ns}\n")
                self.due_ns += step_ns if self.active else SLOW_NS
                self.sent += 1
            return True

        GLib.timeout_add(TICK_MS, push)


def main() -> None:
    settings = json.loads(sys.argv[1])
    Gst.init(None)
    with open(settings["file"], "rb") as stream:  # noqa: PTH123 - a script for a bare interpreter
        data = stream.read()
    starts = [match.start() for match in DELIMITER.finditer(data)]
    units = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    with open(settings["log"], "w", buffering=1) as log:  # noqa: PTH123 - see above
        fps = tuple(settings["fps"])
        cameras = {mount: Camera(mount, units, first, fps, log) for mount, first in settings["mounts"].items()}
        server = GstRtspServer.RTSPServer()
        server.set_address("127.0.0.1")
        server.set_service("0")
        for mount, camera in cameras.items():
            server.get_mount_points().add_factory(mount, camera)

        def command(_channel: Any, _condition: Any) -> bool:
            line = sys.stdin.readline()
            if not line:
                loop.quit()
                return False
            for mount, camera in cameras.items():
                if line == "restart\n":
                    camera.sent = 0
                else:
                    camera.play(active=mount.startswith(line.strip()))
            return True

        server.attach(None)
        loop = GLib.MainLoop()
        GLib.io_add_watch(sys.stdin, GLib.IO_IN | GLib.IO_HUP, command)
        print("ready", server.get_bound_port(), flush=True)
        loop.run()


if __name__ == "__main__":
    main()
