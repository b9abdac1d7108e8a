"""From a source's settings to what FFmpeg is asked: target, demuxer, options. Pure, so that every default can be read here."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

import av

from streaming.errors import SourceError
from streaming.redaction import redact
from streaming.sources.base import SourceConfig

Kind = Literal["rtsp", "http", "file", "device", "pattern"]

SMALL_PROBE: Final = {"analyzeduration": "0", "probesize": "32"}
"""Opens RTSP in 0.07 s instead of 1.15 s; enough where the session description names the codec."""

VERIFIES_RTSPS: Final = (62, 0, 0)  # libavformat of FFmpeg 8.0

CA_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # Alpine, macOS
)
EXPECTED: Final = (
    "expected rtsp://, rtsps://, http://, https://, a file, /dev/videoN or webcam:N, lavfi:GRAPH, or scene:NAME"
)


def comes_back(url: str) -> bool:
    """Whether it is worth trying again: a camera comes back, a file or a pattern does not."""
    network = url.partition("://")[0].lower() in ("rtsp", "rtsps", "http", "https")
    return network or _is_device(url) or url.startswith("scene:")


@dataclass(frozen=True)
class Request:
    """What is handed to `av.open`. `probes` are option sets to try in turn until one shows a video stream."""

    kind: Kind
    target: str
    format: str | None
    options: dict[str, str]
    probes: tuple[dict[str, str], ...] = ({},)


def request_for(config: SourceConfig) -> Request:
    """The request behind `config`. Raises SourceError("not_found") for a URL of no known kind."""
    url = config.url
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    if scheme in ("rtsp", "rtsps"):
        options = _rtsp_options(config) | (_rtsps_options(config) if scheme == "rtsps" else {})
        return Request("rtsp", url, None, options | dict(config.options), (SMALL_PROBE, {}))
    if scheme in ("http", "https"):
        options = _http_options(config) | (_tls_options(config) if scheme == "https" else {})
        return Request("http", url, None, options | dict(config.options))
    if scheme == "lavfi":
        return Request("pattern", url.partition(":")[2], "lavfi", dict(config.options))
    if _is_device(url):
        return _device_request(config)
    return _file_request(config, scheme)


def _is_device(url: str) -> bool:
    return url.isdigit() or url.startswith(("webcam:", "/dev/video"))


def _rtsp_options(config: SourceConfig) -> dict[str, str]:
    timeout_us = str(int(config.read_timeout_s * 1e6))
    common = {"rtsp_transport": config.transport, "timeout": timeout_us, "allowed_media_types": "video"}
    if config.transport == "udp":
        # A packet that is 100 ms late in a local network is lost; FFmpeg's default waits 500 ms for it.
        return common | {"max_delay": "100000", "buffer_size": "1048576"}
    # TCP does not reorder, but servers drop packets when the link is slow. With the default of 0 FFmpeg joins what is
    # left without a word; with 2 it logs "RTP: missed N packets".
    return common | {"reorder_queue_size": "2"}


def _http_options(config: SourceConfig) -> dict[str, str]:
    return {"rw_timeout": str(int(config.read_timeout_s * 1e6)), "analyzeduration": "1000000"}


def _rtsps_options(config: SourceConfig) -> dict[str, str]:
    """FFmpeg before 8.0 takes the TLS options for rtsps and ignores them (measured with PyAV 14 and 15): refuse."""
    if config.tls_verify and av.library_versions["libavformat"] < VERIFIES_RTSPS:
        raise SourceError(
            "tls",
            f"{redact(config.url)}: PyAV {av.__version__} cannot verify the certificate of rtsps; expected av>=16, "
            "or tls_verify: false if the network is trusted",
        )
    return _tls_options(config)


def _tls_options(config: SourceConfig) -> dict[str, str]:
    """FFmpeg verifies nothing unless told to (and then the name too)."""
    if not config.tls_verify:
        return {"tls_verify": "0"}
    if config.tls_ca and not Path(config.tls_ca).is_file():
        raise SourceError("tls", f"tls_ca: no such file: {config.tls_ca}; expected the PEM file of an authority")
    bundle = config.tls_ca or system_ca_bundle()
    return {"tls_verify": "1"} | ({"ca_file": bundle} if bundle else {})


def system_ca_bundle() -> str | None:
    """The PEM file of the machine's trusted authorities: SSL_CERT_FILE, what Python uses, or where distributions put it."""
    candidates = (os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, *CA_BUNDLES)
    return next((path for path in candidates if path and Path(path).is_file()), None)


def _device_request(config: SourceConfig) -> Request:
    url = config.url
    path = url if url.startswith("/") else f"/dev/video{url.rpartition(':')[2]}"
    if not path.removeprefix("/dev/video").isdigit():
        raise SourceError("no_device", f"{url}: expected webcam:N or /dev/videoN with a number N, such as webcam:0")
    # ts=abs: the driver's time of each picture on the wall clock
    return Request("device", path, "v4l2", {"ts": "abs"} | dict(config.options))


def _file_request(config: SourceConfig, scheme: str) -> Request:
    path = unquote(urlsplit(config.url).path) if scheme == "file" else config.url
    if scheme != "file" and "://" in path:
        raise SourceError("not_found", f"{redact(config.url)}: {EXPECTED}")
    if not Path(path).exists():
        raise SourceError("not_found", f"{redact(path)}: no such file; {EXPECTED}")
    return Request("file", f"file:{path}", None, dict(config.options))
