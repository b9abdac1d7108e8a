"""What a valid configuration may still get wrong on this machine: files that are not there, choices that are not safe."""

import os
from collections.abc import Iterator
from pathlib import Path

from streaming.config.fields import is_loopback
from streaming.config.models import Config
from streaming.config.urls import source_kind
from streaming.errors import ConfigError


def require_files(config: Config) -> None:
    """Check every certificate, key and weights file that `config` names. Raises ConfigError, one line for each fault."""
    faults = [fault for where, path, is_folder in _named(config) if (fault := _fault(where, path, is_folder=is_folder))]
    if faults:
        raise ConfigError("\n".join(faults))


def missing_sources(config: Config) -> list[str]:
    """One sentence for each enabled camera whose video file or device is not there. A running daemon would retry it."""
    return [
        f"cameras.{name}.url: expected a file or device at {url}, found none"
        for name, url in ((name, config.cameras[name].url) for name in config.enabled_cameras())
        if source_kind(url) in {"file", "device"} and not url.startswith("webcam:") and not Path(url).exists()
    ]


def warnings(config: Config) -> list[str]:
    """One sentence for each choice that is valid but not safe."""
    mqtt, found = config.mqtt, []
    if mqtt.password is not None and mqtt.tls is None and not is_loopback(mqtt.host):
        found.append(f"mqtt: the password travels to {mqtt.host} in clear text; set tls")
    if mqtt.tls is not None and not mqtt.tls.verify:
        found.append("mqtt.tls.verify: false: anybody in the network can pose as the broker")
    for name in config.enabled_cameras():
        camera = config.cameras[name]
        if not camera.tls.verify and camera.url.startswith(("rtsps:", "https:")):
            found.append(f"cameras.{name}.tls.verify: false: anybody in the network can pose as this camera")
    return found


def _named(config: Config) -> Iterator[tuple[str, Path | None, bool]]:
    """Every path that must exist: (key, path, whether it is a folder)."""
    yield "model.weights", config.model.weights, False
    if (tls := config.mqtt.tls) is not None:
        yield from (
            ("mqtt.tls.ca", tls.ca, False),
            ("mqtt.tls.cert", tls.cert, False),
            ("mqtt.tls.key", tls.key, False),
        )
    if (keys := config.transport.keys) is not None:
        yield from (("transport.keys.secret", keys.secret, False), ("transport.keys.server", keys.server, False))
        yield "transport.keys.clients", keys.clients, True
    for name in config.enabled_cameras():
        yield f"cameras.{name}.tls.ca", config.cameras[name].tls.ca, False


def _fault(where: str, path: Path | None, *, is_folder: bool) -> str | None:
    if path is None:
        return None
    kind = "folder" if is_folder else "file"
    if not (path.is_dir() if is_folder else path.is_file()):
        return f"{where}: expected a {kind} at {path}, found none"
    return (
        None
        if os.access(path, os.R_OK)
        else f"{where}: expected a {kind} that user {os.geteuid()} can read, got {path}"
    )
