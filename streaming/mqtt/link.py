"""One connection to a broker, MQTT 5 or 3.1.1: the only place that knows aiomqtt (and paho below it).

aiomqtt's `publish` waits for each message, reports no reason code, and hands every write to the loop twice; so a link
publishes through the paho client of its aiomqtt client, and writes at once what the socket takes. Reconnecting is the
caller's business: a link lives once.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.client import MQTT_ERR_SUCCESS, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from streaming.errors import BrokerError
from streaming.mqtt.dial import dial
from streaming.mqtt.properties import PublishProperties
from streaming.mqtt.settings import BrokerSettings

Protocol = Literal["5", "3.1.1"]
CONNACK_V5_S: Final = 1.0
"""A broker of 3.1.1 may leave an MQTT 5 client without an answer: then ask in 3.1.1."""
REMEMBER_NS: Final = 3600 * 10**9
"""A slow broker may look like one of 3.1.1: ask again in MQTT 5 after an hour."""
MAX_INCOMING_BYTES: Final = 1 << 20
FAREWELL_S: Final = 1.0

_CONNACK_REASON: Final = {
    132: "protocol",
    1: "protocol",
    133: "client_id",
    134: "auth",
    135: "auth",
    138: "auth",
    140: "auth",
}
_DISCONNECT_REASON: Final = {142: "taken_over", 139: "unavailable", 135: "auth", 141: "timeout", 149: "too_large"}
_WORTH_OLDER_PROTOCOL: Final = frozenset({"timeout", "closed", "protocol"})


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when we vanish."""

    topic: str
    payload: bytes


@dataclass(slots=True)
class Handlers:
    """What a link calls, from the event loop. None of them may send: they may only schedule it."""

    message: Callable[[str, bytes, bool], None]
    """topic, payload, retained."""
    acknowledged: Callable[[int, int], None] = lambda _mid, _code: None
    """Packet id of a QoS 1 message, and the broker's reason code (0: fine; MQTT 3.1.1 knows no other)."""
    drained: Callable[[], None] = lambda: None
    """The socket took everything that was waiting."""


@dataclass(slots=True)
class ProtocolMemory:
    """Which brokers speak MQTT 5, and which turned out to speak 3.1.1 only, until when (CLOCK_MONOTONIC)."""

    new: set[str] = field(default_factory=set)
    old_until_ns: dict[str, int] = field(default_factory=dict)

    def is_new(self, address: str) -> bool:
        """Whether it has spoken MQTT 5 to us: then its silence has another reason."""
        return address in self.new

    def is_old(self, address: str) -> bool:
        """Whether MQTT 5 need not be tried."""
        return self.old_until_ns.get(address, 0) > time.monotonic_ns()

    def remember(self, address: str, protocol: Protocol) -> None:
        """It answered in this protocol, the newest that it would."""
        if protocol == "5":
            self.new.add(address)
        else:
            self.new.discard(address)
            self.old_until_ns[address] = time.monotonic_ns() + REMEMBER_NS


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker said in its CONNACK."""

    packet_bytes: int = 1 << 28
    receive_maximum: int = 65_535
    retain: bool = True


class _LastError(logging.Handler):
    """Keeps paho's last error line: the only place where it says why a socket failed."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


class _Client(aiomqtt.Client):
    """aiomqtt's client with reason codes, no queue for incoming messages, and no thread hop for a write."""

    def __init__(self, handlers: Handlers, errors: _LastError, settings: BrokerSettings, **options: Any) -> None:
        super().__init__(settings.host, settings.tcp_port, keepalive=settings.keepalive_s, **options)
        self._handlers = handlers
        self._errors = errors
        self.limits = Limits()
        self.unacknowledged: set[int] = set()
        self.paho = self._client
        self._gone: asyncio.Future[None] = self._loop.create_future()
        """Done when the connection has ended. aiomqtt's own future is replaced when that happens right after CONNACK."""

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        self.limits = Limits(
            packet_bytes=getattr(properties, "MaximumPacketSize", Limits().packet_bytes),
            receive_maximum=getattr(properties, "ReceiveMaximum", Limits().receive_maximum),
            retain=bool(getattr(properties, "RetainAvailable", 1)),
        )
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        if not self._connected.done():  # aiomqtt would wait for its time-out
            self._connected.set_exception(aiomqtt.MqttCodeError(reason_code, self._errors.text))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)
        self._end(aiomqtt.MqttCodeError(reason_code, self._errors.text))

    def _on_message(self, client: Any, userdata: Any, message: MQTTMessage) -> None:  # noqa: ARG002 - paho's signature
        self._handlers.message(message.topic, bytes(message.payload), message.retain)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:  # noqa: ARG002
        if mid in self.unacknowledged:
            self.unacknowledged.discard(mid)
            self._handlers.acknowledged(mid, reason_code.value)

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:
        super()._on_socket_open(client, userdata, sock)
        self._loop.call_soon_threadsafe(self._loop.add_reader, sock.fileno(), self._read)

    def _read(self) -> None:
        pending = True
        while pending:
            try:
                self.paho.loop_read()
            except Exception as exc:  # noqa: BLE001 - paho lets socket and TLS errors through, and its own on a bad packet
                self._end(exc)
                return
            # TLS may have decrypted more than was read: no socket event will tell.
            sock = self.paho._sock  # noqa: SLF001
            pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ARG002 - paho's signature
        self._loop.add_writer(sock.fileno(), self._write)

    def _write(self) -> None:
        self.flush()
        if not self.paho.want_write():
            self._handlers.drained()

    def flush(self) -> None:
        """Write what the socket takes now."""
        try:
            self.paho.loop_write()
        except Exception as exc:  # noqa: BLE001 - paho lets socket and TLS errors through: each is the end
            self._end(exc)

    def _end(self, exc: Exception) -> None:
        if not self._gone.done():
            self._gone.set_exception(exc)

    async def lost(self) -> BaseException | None:
        """Return when the connection has ended, with the reason if there is one."""
        await asyncio.wait([self._gone])
        return self._gone.exception()

    def abort(self) -> None:
        """Close the socket, whatever state it is in, and collect what nobody asked for."""
        self.paho._sock_close()  # noqa: SLF001 - paho closes only by a packet that a dead broker will not take
        for future in (self._connected, self._disconnected, self._gone):
            if future.done() and not future.cancelled():
                future.exception()


class Link:
    """An open connection. `send` never blocks; what it cannot write yet waits, and `idle` is False until it is gone."""

    def __init__(self, client: _Client, settings: BrokerSettings, protocol: Protocol) -> None:
        self._client = client
        self._settings = settings
        self.protocol: Protocol = protocol
        self.limits = client.limits
        self.opened_ns = time.monotonic_ns()

    @property
    def idle(self) -> bool:
        """Whether the socket has taken everything."""
        return not self._client.paho.want_write()

    def send(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 0,
        retain: bool = False,
        properties: PublishProperties | None = None,
    ) -> int:
        """Publish; the packet id comes back. Raises BrokerError `too_large` or `closed`."""
        if len(payload) + len(topic) + 64 > self.limits.packet_bytes:
            raise BrokerError(
                "too_large",
                f"expected at most {self.limits.packet_bytes} bytes a packet, as the broker says, got {len(payload)}",
            )
        info = self._client.paho.publish(
            topic,
            payload,
            qos,
            retain and self.limits.retain,
            cast("Properties", properties) if self.protocol == "5" else None,
        )
        if info.rc != MQTT_ERR_SUCCESS:
            raise BrokerError("closed", f"the connection to {self._settings.address} is closed")
        if qos:
            self._client.unacknowledged.add(info.mid)
        self._client.flush()
        return info.mid

    async def subscribe(self, filters: Sequence[str], *, qos: int = 0, timeout_s: float = 5.0) -> list[str]:
        """Subscribe to the filters; those that the broker refused come back. Raises BrokerError `timeout`."""
        if not filters:
            return []
        try:
            codes = await self._client.subscribe([(one, qos) for one in filters], timeout=timeout_s)
        except aiomqtt.MqttError as exc:
            raise BrokerError("timeout", f"{self._settings.address} did not confirm a subscription: {exc}") from exc
        values = [code.value if isinstance(code, ReasonCode) else int(code) for code in codes]
        return [one for one, value in zip(filters, values, strict=True) if value >= 128]

    async def unsubscribe(self, filters: Sequence[str], *, timeout_s: float = 5.0) -> None:
        """Unsubscribe from the filters. Raises BrokerError `timeout`."""
        if not filters:
            return
        try:
            await self._client.unsubscribe(list(filters), timeout=timeout_s)
        except aiomqtt.MqttError as exc:
            raise BrokerError(
                "timeout", f"{self._settings.address} did not confirm the end of a subscription: {exc}"
            ) from exc

    async def lost(self) -> BrokerError:
        """Return when the connection is gone, with why."""
        return _why_lost(await self._client.lost(), self._settings)


@asynccontextmanager
async def connect(
    settings: BrokerSettings, handlers: Handlers, *, will: Will | None = None, memory: ProtocolMemory | None = None
) -> AsyncIterator[Link]:
    """A link to the broker, said goodbye to at the end. Raises BrokerError, with its reason, if there is none."""
    memory = memory if memory is not None else ProtocolMemory()
    if settings.protocol == "auto" and memory.is_old(settings.address):
        opening = _open(settings, handlers, will, "3.1.1", settings.connect_timeout_s)
    elif settings.protocol == "auto":
        opening = _open_newest(settings, handlers, will, memory)
    else:
        opening = _open(settings, handlers, will, settings.protocol, settings.connect_timeout_s)
    client, protocol = await opening
    try:
        yield Link(client, settings, protocol)
    finally:
        try:
            client.timeout = FAREWELL_S
            await client.__aexit__(None, None, None)
        except aiomqtt.MqttError:
            pass  # it was gone, or does not take our goodbye: the socket is closed below
        except Exception as exc:  # noqa: BLE001 - what ended the connection was reported by `lost`
            logging.getLogger(__name__).debug("closing the connection to %s: %s", settings.address, exc)
        finally:
            client.abort()


async def _open_newest(
    settings: BrokerSettings, handlers: Handlers, will: Will | None, memory: ProtocolMemory
) -> tuple[_Client, Protocol]:
    known = memory.is_new(settings.address)
    try:
        opened = await _open(settings, handlers, will, "5", settings.connect_timeout_s if known else CONNACK_V5_S)
    except BrokerError as newest:
        if newest.reason != "protocol" and (known or newest.reason not in _WORTH_OLDER_PROTOCOL):
            raise
        opened = await _open(settings, handlers, will, "3.1.1", settings.connect_timeout_s)
    memory.remember(settings.address, opened[1])
    return opened


async def _open(
    settings: BrokerSettings, handlers: Handlers, will: Will | None, protocol: Protocol, timeout_s: float
) -> tuple[_Client, Protocol]:
    context = settings.tls.context() if settings.tls else None
    sock = await dial(settings, context)
    errors = _LastError()
    client = _client(settings, handlers, will, protocol, errors)
    client.timeout = timeout_s
    # paho would resolve and connect itself, in a thread of the executor that nobody can abandon.
    client.paho._create_socket = lambda: sock  # type: ignore[method-assign]  # noqa: SLF001
    try:
        await client.__aenter__()
    except BaseException as exc:
        client.abort()
        sock.close()
        if isinstance(exc, aiomqtt.MqttError):
            raise _why_refused(exc, settings, protocol, errors.text) from exc
        raise
    return client, protocol


def _client(
    settings: BrokerSettings, handlers: Handlers, will: Will | None, protocol: Protocol, errors: _LastError
) -> _Client:
    logger = logging.Logger("paho", level=logging.ERROR)  # noqa: LOG001 - ours alone, not in the tree of loggers
    logger.addHandler(errors)
    options: dict[str, Any] = {"protocol": aiomqtt.ProtocolVersion.V311, "clean_session": True}
    if protocol == "5":
        properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MAX_INCOMING_BYTES
        options = {"protocol": aiomqtt.ProtocolVersion.V5, "clean_start": True, "properties": properties}
    return _Client(
        handlers,
        errors,
        settings,
        identifier=settings.client_id,
        username=settings.username,
        password=settings.password,
        will=aiomqtt.Will(will.topic, will.payload, qos=1, retain=True) if will else None,
        logger=logger,
        max_inflight_messages=65_535,  # the publisher keeps its own, smaller window
        **options,
    )


def _why_refused(exc: aiomqtt.MqttError, settings: BrokerSettings, protocol: Protocol, said: str) -> BrokerError:
    """Why there was no connection: time-out, a refusal with a code, or a closed socket."""
    where = f"the MQTT broker at {settings.address}"
    code = exc.rc.value if isinstance(exc, aiomqtt.MqttCodeError) and isinstance(exc.rc, ReasonCode) else None
    if isinstance(exc, MqttConnectError):
        reason = _CONNACK_REASON.get(code or 0, "unavailable")
        who = f"user {settings.username!r}" if settings.username else "a client without a user name"
        hint = "; check mqtt.username and mqtt.password" if reason == "auth" else ""
        return BrokerError(reason, f"{where} refused {who}: {exc.rc}{hint}")
    if code is None:
        return BrokerError("timeout", f"expected {where} to answer in MQTT {protocol}, got silence")
    if settings.tls and any(word in said.lower() for word in ("ssl", "tls", "alert", "certificate")):
        return BrokerError(
            "tls", f"{where} refused our TLS: it wants a client certificate (mqtt.tls.cert, mqtt.tls.key)"
        )
    hint = "often a wrong password, a client id in use, or TLS on one side only"
    return BrokerError("closed", f"{where} closed the connection before it answered in MQTT {protocol}: {hint}")


def _why_lost(exc: BaseException | None, settings: BrokerSettings) -> BrokerError:
    where = f"the MQTT broker at {settings.address}"
    code = exc.rc.value if isinstance(exc, aiomqtt.MqttCodeError) and isinstance(exc.rc, ReasonCode) else 0
    reason = _DISCONNECT_REASON.get(code, "closed")
    if reason == "taken_over":
        said = f"another client with the id {settings.client_id!r} took our place at {settings.address}: give each node its own"
    elif code > 128:
        said = f"{where} ended the connection: {exc.rc if isinstance(exc, aiomqtt.MqttCodeError) else exc}"
    elif reason == "timeout":
        said = f"{where} has not answered for {settings.keepalive_s} s and more"
    else:
        said = f"{where} closed the connection"
    error = BrokerError(reason, said)
    error.__cause__ = exc
    return error
