"""Where the broker is, how to reach it, and what is sent to it: frozen data, no secret in any `repr`."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import unquote, urlsplit

from streaming.errors import ConfigError
from streaming.message import Dtype, Format

T = TypeVar("T")
ProtocolChoice = Literal["auto", "5", "3.1.1"]


@dataclass(frozen=True, kw_only=True)
class TlsSettings:
    """TLS towards the broker: verified against the system's authorities, unless it says otherwise."""

    verify: bool = True
    ca: Path | None = None
    """PEM file of the authorities to trust instead of the system's."""
    cert: Path | None = None
    """PEM file of the client certificate, and of its private key."""
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """The TLS context. Raises ConfigError, naming the file, if a file cannot be used."""
        ca, cert, key = self.ca, self.cert, self.key
        context = _using(ca, lambda: ssl.create_default_context(cafile=ca)) if ca else ssl.create_default_context()
        if cert is not None:
            _using(cert, lambda: context.load_cert_chain(cert, key))
        if not self.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """One broker and how to talk to it."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None: 1883, with TLS 8883."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: TlsSettings | None = None
    client_id: str = ""
    """Empty: the user of these settings makes one."""
    protocol: ProtocolChoice = "auto"
    keepalive_s: int = 15
    connect_timeout_s: float = 4.0
    """Each for the TCP connection, the TLS handshake, and the broker's answer."""

    @property
    def address(self) -> str:
        """`host:port`, for messages."""
        return f"{self.host}:{self.tcp_port}"

    @property
    def tcp_port(self) -> int:
        """The port to connect to."""
        return self.port or (8883 if self.tls else 1883)


@dataclass(frozen=True, kw_only=True)
class MqttSettings(BrokerSettings):
    """The broker, and how the publisher uses it."""

    root: str = "camvec"
    format: Format = "msgpack"
    dtype: Dtype = "f2"
    embedding_qos: Literal[0, 1] = 0
    expiry_s: int = 2
    """An older embedding is not sent any more, and expires at a broker of MQTT 5."""
    heartbeat_s: float = 1.0
    state_s: float = 4.0
    """Camera states are published this often, and at once when a state changes."""
    ack_timeout_s: float = 5.0
    """A broker that does not acknowledge for this long is taken for dead."""
    event_expiry_s: int = 3600
    max_events: int = 1000
    """Events that wait for the broker; then the oldest goes, counted."""
    offline: Literal["newest", "spool"] = "newest"
    spool_dir: Path | None = None
    spool_max_mb: int = 256
    spool_max_items: int = 1_000_000
    spool_max_age_s: float = 86_400.0

    def __post_init__(self) -> None:
        if self.offline == "spool" and self.spool_dir is None:
            raise ConfigError("expected a folder for the spool (spool_dir) with offline 'spool', got none")


def parse_url(url: str, *, tls: TlsSettings | None = None, protocol: ProtocolChoice = "auto") -> BrokerSettings:
    """`mqtt[s]://[user[:password]@]host[:port]` -> settings. Raises ConfigError, which never shows the password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ConfigError("expected a broker URL like mqtt://user:password@host:1883, got one that is no URL") from exc
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
        raise ConfigError(
            "expected a broker URL like mqtt://host:1883 or mqtts://user:password@host:8883, "
            f"got scheme {parts.scheme!r} and host {parts.hostname!r}"
        )
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(
            "expected nothing behind host and port in a broker URL, got a path: pass the topic root as root="
        )
    if parts.scheme == "mqtt" and tls is not None:
        raise ConfigError("expected mqtts:// with TLS settings, got mqtt://")
    return BrokerSettings(
        host=parts.hostname,
        port=port,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls=(tls or TlsSettings()) if parts.scheme == "mqtts" else None,
        protocol=protocol,
    )


def _using(path: Path, load: Callable[[], T]) -> T:
    try:
        return load()
    except FileNotFoundError as exc:
        raise ConfigError(f"expected a readable PEM file, got nothing at {path}") from exc
    except (ssl.SSLError, OSError) as exc:
        # The key file belongs to the certificate: OpenSSL does not say which of the two it dislikes.
        raise ConfigError(
            f"expected a PEM file (a certificate and its key must belong together): {exc}", path=str(path)
        ) from exc
