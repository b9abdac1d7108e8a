#!/usr/bin/python3
"""An RTSP server for tests on GStreamer's rtsp-server; needs Debian's python3-gi, not the project's interpreter.

    /usr/bin/python3 rtsp_server.py '{"mounts": {"/cam": {"file": "loop.h264", "fps": 25}}}'

prints `ready PORT` and serves until it is killed. Settings, all but `mounts` optional:

    port      0 lets the system choose
    mounts    path -> {"file": H.264 or H.265 with access unit delimiters, "fps": n, "loss": share of RTP packets to lose}
              or {"launch": a GStreamer pipeline with a payloader pay0}
    user, password, auth ("basic" or "digest")
    cert      PEM with certificate and key: serves rtsps
"""

import json
import re
import sys
from typing import Any

import gi

for name, version in {"Gst": "1.0", "GstApp": "1.0", "GstRtsp": "1.0", "GstRtspServer": "1.0"}.items():
    gi.require_version(name, version)
from gi.repository import Gio, GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 - versions come first

AUD = {"h264": b"\x00\x00\x00\x01\x09", "h265": b"\x00\x00\x00\x01\x46\x01"}


def access_units(data: bytes, codec: str) -> list[bytes]:
    """An elementary stream cut at its access unit delimiters."""
    starts = [match.start() for match in re.finditer(re.escape(AUD[codec]), data)]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


class LoopFactory(GstRtspServer.RTSPMediaFactory):
    """Plays a file over and over at its rate, with timestamps that run on."""

    def __init__(self, file: str, fps: int, loss: float = 0.0) -> None:
        super().__init__()
        self.codec = "h265" if file.endswith("5") else "h264"
        with open(file, "rb") as stream:  # noqa: PTH123 - the server is a script for a bare interpreter
            self.units = access_units(stream.read(), self.codec)
        self.fps, self.loss = fps, loss
        self.set_shared(True)

    def do_create_element(self, _url: Any) -> Any:
        payloader = f"rtp{self.codec}pay name={'pay' if self.loss else 'pay0'} pt=96 config-interval=1"
        lossy = f" ! identity name=pay0 drop-probability={self.loss}" if self.loss else ""
        caps = f"video/x-{self.codec},stream-format=byte-stream,alignment=au,framerate={self.fps}/1"
        return Gst.parse_launch(
            f"( appsrc name=src is-live=true format=time block=true max-bytes=2000000 caps={caps}"
            f" ! {self.codec}parse ! {payloader}{lossy} )"
        )

    def do_configure(self, media: Any) -> None:
        source = media.get_element().get_by_name_recurse_up("src")
        start, sent, step = GLib.get_monotonic_time(), 0, Gst.SECOND // self.fps

        def push() -> bool:
            nonlocal sent
            due = (GLib.get_monotonic_time() - start) * self.fps // 1_000_000 + 1
            while sent < due:
                buffer = Gst.Buffer.new_wrapped(self.units[sent % len(self.units)])
                buffer.pts = buffer.dts = sent * step
                buffer.duration = step
                sent += 1
                if source.emit("push-buffer", buffer) != Gst.FlowReturn.OK:
                    return False
            return True

        GLib.timeout_add(max(5, 500 // self.fps), push)


def factory(mount: dict[str, Any]) -> Any:
    if "file" in mount:
        return LoopFactory(mount["file"], mount["fps"], mount.get("loss", 0.0))
    made = GstRtspServer.RTSPMediaFactory()
    made.set_launch(mount["launch"])
    made.set_shared(True)
    return made


def protect(server: Any, factories: list[Any], settings: dict[str, Any]) -> None:
    """Ask for a password, TLS, or both."""
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    if "cert" in settings:
        auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(settings["cert"]))
    if "user" not in settings:
        auth.set_default_token(token)
    elif settings.get("auth") == "digest":
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(settings["user"], settings["password"], token)
    else:
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(settings["user"], settings["password"]), token)
    permissions = GstRtspServer.RTSPPermissions()
    for right in ("access", "construct"):
        permissions.add_permission_for_role("user", f"media.factory.{right}", True)
    for made in factories:
        made.set_permissions(permissions)
    server.set_auth(auth)


def main() -> None:
    settings = json.loads(sys.argv[1])
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(settings.get("port", 0)))
    factories = {path: factory(mount) for path, mount in settings["mounts"].items()}
    for path, made in factories.items():
        server.get_mount_points().add_factory(path, made)
    if "user" in settings or "cert" in settings:
        protect(server, list(factories.values()), settings)
    server.attach(None)
    print("ready", server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
