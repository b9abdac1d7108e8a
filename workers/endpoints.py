"""Where the workers meet: ipc sockets in the private runtime folder, tcp where the configuration says so."""

import os
from pathlib import Path

import zmq

from streaming.config import Config


class Endpoints:
    """The ZeroMQ endpoints of one configuration. `inproc` is for workers that are threads of one process."""

    def __init__(self, config: Config, runtime: Path, *, inproc: bool = False) -> None:
        self._base = "inproc://" if inproc else f"ipc://{runtime}/"
        here = "encode" in config.roles
        remote = config.transport.listen if here else config.transport.connect
        self._encoders = tuple(remote) or tuple(f"{self._base}encode-{i}" for i in range(_encoder_count(config)))

    @property
    def encoders(self) -> int:
        """How many encoder processes there are, here or on the other host."""
        return len(self._encoders)

    def encoder(self, index: int) -> str:
        """Where capture workers reach encoder `index`."""
        return self._encoders[index].replace("//0.0.0.0:", "//127.0.0.1:").replace("//*:", "//127.0.0.1:")

    @property
    def publisher(self) -> str:
        """Where records are collected."""
        return f"{self._base}records"

    def bound(self, index: int) -> str:
        """Where encoder `index` binds."""
        return self._encoders[index]


def shared_context(endpoint: str) -> "zmq.SyncContext | None":
    """The context that threads of one process must share; None: each end makes its own."""
    return zmq.Context.instance() if endpoint.startswith("inproc:") else None


def _encoder_count(config: Config) -> int:
    cameras = max(1, len(config.enabled_cameras()))
    if config.encoder.processes != "auto":
        return min(config.encoder.processes, cameras)
    return min(max(1, len(os.sched_getaffinity(0)) - 1), cameras)
