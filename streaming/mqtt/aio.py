"""aiomqtt's client, as a link needs it: the only place that knows aiomqtt and paho below it.

aiomqtt's own `publish` waits for each message, reports no reason code, and lets the loop turn twice for every write.
This client publishes through the paho client that aiomqtt holds, and writes at once what the socket takes.
"""

import asyncio
import logging
import math
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Final, cast

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.client import MQTT_ERR_SUCCESS, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from streaming.errors import BrokerError
from streaming.mqtt import refusals
from streaming.mqtt.ends import Handlers, Limits, Protocol, Will
from streaming.mqtt.properties import PublishProperties, publish_packet
from streaming.mqtt.settings import BrokerSettings

log = logging.getLogger("camvec.mqtt")

QUICK_ACK: Final = getattr(socket, "TCP_QUICKACK", None)
"""mosquitto leaves Nagle's algorithm on: it would hold a vector back for up to 40 ms, until the last one is acknowledged."""
MAX_INCOMING_BYTES: Final = 1 << 20
FAREWELL_S: Final = 1.0
_NO_PROPERTIES: Final = PublishProperties()
_REST: Final = 0
"""As paho's "command" of bytes that are the end of a packet: no callback is bound to it."""


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
        self._writes_itself = False
        """While `publish_now` queues a packet that it will write at once: the loop need not watch the socket for it."""
        self._watching = False
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
            sock = self.paho._sock  # noqa: SLF001
            if QUICK_ACK is not None and isinstance(sock, socket.socket):
                sock.setsockopt(socket.IPPROTO_TCP, QUICK_ACK, 1)
            # TLS may have decrypted more than was read: no socket event will tell.
            pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def publish_now(
        self, topic: str, payload: bytes, qos: int, properties: PublishProperties | None, *, retain: bool
    ) -> int | None:
        """Publish and write what the socket takes; the packet id, or None if the connection is closed."""
        sock = self.paho._sock  # noqa: SLF001
        if not qos and type(sock) is socket.socket and not self.paho.want_write():
            self._write_at_once(sock, publish_packet(topic, payload, properties, retain=retain))
            return 0
        self._writes_itself = True
        try:
            info = self.paho.publish(topic, payload, qos, retain, cast("Properties", properties))
        finally:
            self._writes_itself = False
        if info.rc != MQTT_ERR_SUCCESS:
            return None
        if qos:
            self.unacknowledged.add(info.mid)
        self._flush()
        self._watch_what_waits()
        return info.mid

    def _write_at_once(self, sock: socket.socket, packet: bytes) -> None:
        """Write a packet of QoS 0 without paho, whose way costs as much as all the rest of a message; paho writes the end."""
        try:
            sent = sock.send(packet)
        except OSError:  # full, or broken: paho will find the same and knows what to do
            sent = 0
        if sent < len(packet):
            self._writes_itself = True
            try:
                self.paho._packet_queue(_REST, packet[sent:], 0, 0)  # noqa: SLF001
            finally:
                self._writes_itself = False
            self._flush()
            self._watch_what_waits()

    def _watch_what_waits(self) -> None:
        if self.paho.want_write() and (sock := self.paho.socket()) is not None:
            self._watch_writable(sock)

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ARG002 - paho's signature
        if self._writes_itself:
            return
        if self._connected.done():
            self._watch_writable(sock)
        else:  # CONNECT is queued by a thread of aiomqtt
            self._loop.call_soon_threadsafe(self._watch_writable, sock)

    def _on_socket_unregister_write(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ARG002 - paho's signature
        if self._watching:
            self._watching = False
            self._loop.remove_writer(sock.fileno())

    def _watch_writable(self, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._watching = True
            self._loop.add_writer(sock.fileno(), self._write)

    def _write(self) -> None:
        self._flush()
        if not self.paho.want_write():
            self._handlers.drained()

    def _flush(self) -> None:
        # For each QoS 0 packet that is written paho would build a reason code and properties for a callback that we do
        # not need: a quarter of the cost of a message. Acknowledgements of QoS 1 come when reading.
        self.paho.on_publish = None
        try:
            self.paho.loop_write()
        except Exception as exc:  # noqa: BLE001 - paho lets socket and TLS errors through: each is the end
            self._end(exc)
        finally:
            self.paho.on_publish = self._on_publish

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


# aiomqtt waits with asyncio.wait_for, which before Python 3.12 swallows a cancellation that comes together with the
# result; its task would then wait for ever. So the time-outs are ours, and aiomqtt is asked to wait without one.


class Link:
    """One open connection. `send` never blocks; what it cannot write yet waits, and `idle` is False until it is gone."""

    def __init__(self, settings: BrokerSettings, handlers: Handlers, will: Will | None, protocol: Protocol) -> None:
        self._settings = settings
        self._errors = _LastError()
        self._client = _client(settings, handlers, will, protocol, self._errors)
        self.protocol: Protocol = protocol

    async def open(self, sock: socket.socket, timeout_s: float) -> None:
        """CONNECT over a connected socket, which is closed if that fails. Raises BrokerError with its reason."""
        client, settings = self._client, self._settings
        client.timeout = timeout_s
        # paho would resolve and connect itself, in a thread of the executor that nobody can abandon.
        client.paho._create_socket = lambda: sock  # type: ignore[method-assign]  # noqa: SLF001
        try:
            await client.__aenter__()
        except BaseException as exc:
            client.abort()
            sock.close()
            if isinstance(exc, MqttConnectError):
                raise refusals.refused(settings, _code(exc), str(exc.rc)) from exc
            if isinstance(exc, aiomqtt.MqttError):
                closed, said = isinstance(exc, aiomqtt.MqttCodeError), self._errors.text
                raise refusals.unanswered(settings, self.protocol, closed=closed, socket_error=said) from exc
            raise

    async def close(self) -> None:
        """Say goodbye, for at most `FAREWELL_S`, and close the socket."""
        self._client.timeout = FAREWELL_S
        try:
            await self._client.__aexit__(None, None, None)
        except Exception as exc:  # noqa: BLE001 - it was gone, which `lost` has said, or does not take our goodbye
            log.debug("closing the connection to %s: %s", self._settings.address, exc)
        finally:
            self._client.abort()

    def abort(self) -> None:
        """Close the socket without a word: the broker publishes our last will."""
        self._client.abort()

    @property
    def limits(self) -> Limits:
        """What the broker accepts."""
        return self._client.limits

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
        limit = self.limits.packet_bytes
        if len(payload) + len(topic) + 64 > limit:
            raise BrokerError(
                "too_large", f"expected at most {limit} bytes a packet, as the broker says, got {len(payload)}"
            )
        known = (properties or _NO_PROPERTIES) if self.protocol == "5" else None
        mid = self._client.publish_now(topic, payload, qos, known, retain=retain and self.limits.retain)
        if mid is None:
            raise BrokerError("closed", f"the connection to {self._settings.address} is closed")
        return mid

    async def subscribe(self, filters: Sequence[str], *, qos: int = 0, timeout_s: float = 5.0) -> list[str]:
        """Subscribe to the filters; those that the broker refused come back. Raises BrokerError `timeout`."""
        if not filters:
            return []
        try:
            async with asyncio.timeout(timeout_s):
                codes = await self._client.subscribe([(one, qos) for one in filters], timeout=math.inf)
        except (aiomqtt.MqttError, TimeoutError) as exc:
            raise BrokerError("timeout", f"{self._settings.address} did not confirm a subscription: {exc}") from exc
        values = [code.value if isinstance(code, ReasonCode) else int(code) for code in codes]
        return [one for one, value in zip(filters, values, strict=True) if value >= 128]

    async def unsubscribe(self, filters: Sequence[str], *, timeout_s: float = 5.0) -> None:
        """Unsubscribe from the filters. Raises BrokerError `timeout`."""
        if not filters:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.unsubscribe(list(filters), timeout=math.inf)
        except (aiomqtt.MqttError, TimeoutError) as exc:
            said = f"{self._settings.address} did not confirm the end of a subscription: {exc}"
            raise BrokerError("timeout", said) from exc

    async def lost(self) -> BrokerError:
        """Return when the connection is gone, with why."""
        exc = await self._client.lost()
        error = refusals.lost(self._settings, _code(exc), str(exc.rc) if isinstance(exc, aiomqtt.MqttCodeError) else "")
        error.__cause__ = exc
        return error


def _code(exc: BaseException | None) -> int:
    rc = exc.rc if isinstance(exc, aiomqtt.MqttCodeError) else None
    return rc.value if isinstance(rc, ReasonCode) else 0


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
