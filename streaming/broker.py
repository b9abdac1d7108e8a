"""The built-in broker of the demo and of small set-ups: rumqttd, from PyPI's `iotcore`, on 127.0.0.1 in a process of its own.

It has two listeners, as rumqttd cannot tell the versions apart on one port: MQTT 3.1.1 at `port`, MQTT 5 at `port_v5`.
A message that was published with MQTT 5 properties makes rumqttd 0.20 end the connection of each 3.1.1 client that
subscribes to it; so our publisher speaks 3.1.1 to it (`for_publisher`), and subscribers of both versions are served.
"""

import asyncio
import contextlib
import dataclasses
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from streaming.errors import BrokerError
from streaming.mqtt.settings import MqttSettings

HOST: Final = "127.0.0.1"
PACKET_BYTES: Final = 256 << 10
"""rumqttd's own default of 20 KiB is less than a vector in JSON, and it drops the connection."""
START_S: Final = 10.0
ATTEMPTS: Final = 5

_CONFIG: Final = """\
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 10
"""
_LISTENER: Final = """
[{version}.1]
name = "{version}"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[{version}.1.connections]
connection_timeout_ms = 5000
max_payload_size = {packet_bytes}
max_inflight_count = 100
"""


class EmbeddedBroker:
    """An MQTT broker without users and passwords, for this host alone. It dies with the process that started it.

    `port` and `port_v5` None: free ports. Raises BrokerError `missing` without the wheel, `refused` if a port is taken.
    """

    def __init__(self, port: int | None = None, *, port_v5: int | None = None) -> None:
        self._wanted = (port, port_v5)
        self.port = port or 0
        """MQTT 3.1.1, what every client speaks."""
        self.port_v5 = port_v5 or 0
        self._broker: Any = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """For clients of MQTT 3.1.1."""
        return f"mqtt://{HOST}:{self.port}"

    @property
    def url_v5(self) -> str:
        """For clients of MQTT 5."""
        return f"mqtt://{HOST}:{self.port_v5}"

    def for_publisher(self, settings: MqttSettings) -> MqttSettings:
        """The settings, but towards this broker."""
        return dataclasses.replace(
            settings, host=HOST, port=self.port, protocol="3.1.1", tls=None, username=None, password=None
        )

    async def __aenter__(self) -> Self:
        """Start it; returns when it listens."""
        await asyncio.to_thread(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._stop)

    def _start(self) -> None:
        try:
            from iotcore import Broker  # noqa: PLC0415 - only here: other hosts need no broker wheel
        except ImportError as exc:
            said = "the built-in broker needs the package iotcore (pip install 'camvec[edge]'); or set mqtt.host to a broker"
            raise BrokerError("missing", said) from exc
        self._directory = tempfile.TemporaryDirectory(prefix="camvec-broker-")
        try:
            self._start_on_free_ports(Broker, Path(self._directory.name) / "broker.toml")
        except BaseException:
            self._stop()
            raise

    def _start_on_free_ports(self, make: Any, config: Path) -> None:
        """A free port may be taken before the broker gets it: then take another."""
        port, port_v5 = self._wanted
        for attempt in range(ATTEMPTS):
            self.port, self.port_v5 = port or _free_port(), port_v5 or _free_port()
            config.write_text(_config(self.port, self.port_v5))
            self._broker = make(config_path=str(config))
            try:
                self._broker.start(timeout=START_S)
            except OSError as exc:
                if attempt == ATTEMPTS - 1 or (port and port_v5) or _is_taken(port) or _is_taken(port_v5):
                    said = f"the built-in broker cannot listen on {HOST}:{port or self.port}: {exc}; is a broker running there?"
                    raise BrokerError("refused", said) from exc
            except RuntimeError as exc:
                raise BrokerError("internal", f"the built-in broker did not start: {exc}") from exc
            else:
                return

    def _stop(self) -> None:
        if self._broker is not None:
            self._broker.stop()
            self._broker = None
        if self._directory is not None:
            with contextlib.suppress(OSError):
                self._directory.cleanup()
            self._directory = None


def _config(port: int, port_v5: int) -> str:
    listeners = (("v4", port), ("v5", port_v5))
    return _CONFIG + "".join(
        _LISTENER.format(version=version, host=HOST, port=at, packet_bytes=PACKET_BYTES) for version, at in listeners
    )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def _is_taken(port: int | None) -> bool:
    if port is None:
        return False
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError:
            return True
    return False
