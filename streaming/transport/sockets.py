"""ZeroMQ sockets as this project uses them: bounded, never lingering by surprise, and private by default.

Traps that this honours: CONFLATE breaks messages of several parts; a bind to ipc:// silently takes the path from a
living process, so a lock file beside it guards it; CURVE with no gatekeeper lets everybody in; a socket stays on one
thread; an asyncio reader must look again after each send, because a send can consume the wake-up of a received message.
"""

import asyncio
import fcntl
import ipaddress
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import zmq

from streaming.curve import Gatekeeper, Keys, ServerKeys, secure
from streaming.errors import TransportError
from streaming.transport.host import check_ipc_path
from streaming.wire import MAX_MESSAGE_BYTES

RECONNECT_MS: Final = 50
RECONNECT_MAX_MS: Final = 1000
MAX_PORT: Final = 65535
TCP_HEARTBEAT_MS: Final = 1000
TCP_SILENCE_MS: Final = 3000
DRAIN_AT_ONCE: Final = 64
"""Messages that a reader takes before other tasks of the loop get their turn."""
_EVENTS: Final = int(zmq.EVENTS)  # enums would cost as much as the question
_POLLIN: Final = int(zmq.POLLIN)
_NOW: Final = int(zmq.DONTWAIT)
_NOW_AND_MORE: Final = int(zmq.DONTWAIT | zmq.SNDMORE)
MAX_NAMES: Final = 64
MAX_NAME_CHARS: Final = 64

_HANDSHAKE_FAILED: Final = (
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_AUTH
)
_LOG = logging.getLogger(__name__)


class BadMessages:
    """How many messages were not ours, in all and by peer; the first of each peer is logged."""

    def __init__(self) -> None:
        self.total = 0
        self.by_peer: Counter[str] = Counter()

    def count(self, peer: bytes, why: Exception) -> None:
        """One more from `peer`. Names are bounded in number and length: a peer chooses its own."""
        name = peer[:MAX_NAME_CHARS].decode(errors="backslashreplace")
        name = name if name in self.by_peer or len(self.by_peer) < MAX_NAMES else "others"
        if name not in self.by_peer:
            _LOG.warning("bad message from %r: %s; further ones are counted, not logged", name, why)
        self.total += 1
        self.by_peer[name] += 1


def check_endpoint(endpoint: str, keys: Keys | None) -> None:
    """Raise TransportError unless `endpoint` is one of ours, and safe with these keys or without."""
    scheme, _, address = endpoint.partition("://")
    if scheme not in {"ipc", "tcp", "inproc"} or not address:
        raise TransportError(f"expected an endpoint of ipc://, tcp:// or inproc://, got {endpoint!r}")
    if scheme == "ipc":
        check_ipc_path(endpoint)
    if scheme == "inproc" and keys is not None:
        raise TransportError(f"expected no keys for {endpoint}: inproc:// does not leave the process")
    if scheme == "tcp":
        _check_tcp(endpoint, address, keys)


def _check_tcp(endpoint: str, address: str, keys: Keys | None) -> None:
    host, _, port = address.rpartition(":")
    # ZeroMQ takes 99999 as 34463.
    if not host or not (port == "*" or (port.isdecimal() and int(port) <= MAX_PORT)):
        raise TransportError(f"expected tcp://HOST:PORT with a port up to {MAX_PORT}, got {endpoint!r}")
    if keys is None and not _is_loopback(host.strip("[]")):
        raise TransportError(
            f"expected CURVE keys for {endpoint}, got none: it leaves this host; make them with `camvec keys`, "
            "or use 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class End:
    """One bound or connected socket with what belongs to it: context, keys, gatekeeper, lock and handshake monitor.

    `keys` ServerKeys binds with CURVE, ClientKeys connects with CURVE. A `context` that is handed in is shared (inproc://
    needs that) and left open. Raises TransportError or ConfigError from `open`.
    """

    def __init__(
        self, kind: int, endpoint: str, *, bind: bool, keys: Keys | None, context: zmq.SyncContext | None, hwm: int
    ) -> None:
        check_endpoint(endpoint, keys)
        if keys is not None and bind is not isinstance(keys, ServerKeys):
            raise TransportError(f"expected {'server' if bind else 'client'} keys for {endpoint}, got the other kind")
        self.endpoint = endpoint
        self._kind, self._bind, self._keys, self._shared, self._hwm = kind, bind, keys, context, hwm
        self._stack = ExitStack()
        self._linger_ms = 0
        self._was_refused, self._reconnect_at_s = False, 0.0
        self.socket: zmq.SyncSocket
        self.monitor: zmq.SyncSocket
        self.gatekeeper: Gatekeeper | None = None
        self.refused_handshakes = 0
        """Connections that ended before they were admitted: wrong or unknown key, no CURVE, not ZeroMQ at all."""
        self.lost_connections = 0
        """Of a connected DEALER: how often the other end has gone."""

    def open(self, options: dict[int, int | bytes]) -> None:
        """Create the socket with `options` and bind or connect it."""
        with ExitStack() as stack:
            if self._bind and self.endpoint.startswith("ipc://"):
                # Held until the context has ended: only then has the old socket given up its path.
                self._lock(check_ipc_path(self.endpoint), stack)
            context = self._shared or stack.enter_context(zmq.Context())
            self.socket = context.socket(self._kind)
            stack.callback(self._close)
            self._set_options(options)
            if self._keys is not None:
                secure(self.socket, self._keys)
            if isinstance(self._keys, ServerKeys):
                self.gatekeeper = stack.enter_context(Gatekeeper(context, self._keys.clients))
            self._attach(stack)
            self._stack = stack.pop_all()

    def _set_options(self, options: dict[int, int | bytes]) -> None:
        common: dict[int, int | bytes] = {
            zmq.LINGER: 0,
            zmq.SNDHWM: self._hwm,
            zmq.RCVHWM: self._hwm,
            zmq.MAXMSGSIZE: MAX_MESSAGE_BYTES,
            zmq.RECONNECT_IVL: RECONNECT_MS,
            zmq.RECONNECT_IVL_MAX: RECONNECT_MAX_MS,
        }
        if self.endpoint.startswith("tcp://"):
            common |= {zmq.HEARTBEAT_IVL: TCP_HEARTBEAT_MS, zmq.HEARTBEAT_TIMEOUT: TCP_SILENCE_MS}
            common[zmq.IPV6] = int("[" in self.endpoint)
        for option, value in (common | options).items():
            self.socket.setsockopt(option, value)

    def _attach(self, stack: ExitStack) -> None:
        lost = zmq.Event.DISCONNECTED if self._kind == zmq.DEALER else 0
        self.monitor = self.socket.get_monitor_socket(_HANDSHAKE_FAILED | lost)
        stack.callback(self._stop_monitor)
        try:
            if not self._bind:
                self.socket.connect(self.endpoint)
                return
            self.socket.bind(self.endpoint)
            self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
            if self.endpoint.startswith("ipc://"):
                check_ipc_path(self.endpoint).chmod(0o600)
        except (zmq.ZMQError, OSError) as exc:
            verb = "bind" if self._bind else "connect"
            raise TransportError(f"cannot {verb} {self.endpoint}: {exc.strerror}") from exc

    def _lock(self, path: Path, stack: ExitStack) -> None:
        try:
            descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise TransportError(f"cannot bind {self.endpoint}: a running process has it; stop that one first") from exc
        except OSError as exc:
            raise TransportError(f"cannot bind {self.endpoint}: {exc.strerror}") from exc

    def reconnect_if_refused(self) -> None:
        """To be called now and then on a connected end: libzmq itself never tries again after it was refused."""
        self.read_monitor()
        if self._was_refused and time.monotonic() >= self._reconnect_at_s:
            self._was_refused, self._reconnect_at_s = False, time.monotonic() + RECONNECT_MAX_MS / 1000
            with suppress(zmq.ZMQError):  # the refused connection may be gone already
                self.socket.disconnect(self.endpoint)
            self.socket.connect(self.endpoint)

    def read_monitor(self) -> None:
        """Count what the monitor has to say; call it when `monitor` is readable."""
        for _ in range(DRAIN_AT_ONCE):
            if not has_message(self.monitor):
                return
            event, *_ = receive_now(self.monitor)
            if int.from_bytes(event[:2], "little") == zmq.Event.DISCONNECTED:
                self.lost_connections += 1
            else:
                self.count_refusal()

    def count_refusal(self) -> None:
        """One more handshake that failed; the first is logged."""
        if not self.refused_handshakes:
            why = (
                "wrong or unknown key, or one end without CURVE"
                if self._keys
                else "the other end has keys, or just stopped"
            )
            _LOG.warning("a connection at %s ended before it was admitted: %s", self.endpoint, why)
        self.refused_handshakes += 1
        self._was_refused = True

    def close(self, linger_ms: int = 0) -> None:
        """Close everything; what was sent has `linger_ms` to leave. Waits that long at most when the context is ours."""
        self._linger_ms = linger_ms
        self._stack.close()

    def _stop_monitor(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)

    def _close(self) -> None:
        self.socket.close(self._linger_ms)


def has_message(socket: zmq.SyncSocket) -> bool:
    """Whether a message can be received at once. Asking also clears the socket's file descriptor."""
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)


def send_now(socket: zmq.SyncSocket, *parts: bytes | memoryview) -> None:
    """Send a message, copied. Raises zmq.Again when nothing of it can go (pyzmq's `send_multipart` with dear flags)."""
    for part in parts[:-1]:
        socket.send(part, _NOW_AND_MORE)
    socket.send(parts[-1], _NOW)


def receive_part(socket: zmq.SyncSocket) -> zmq.Frame:
    """The next part that is here; `more` says whether another belongs to it. Raises zmq.Again when nothing is."""
    return socket.recv(_NOW, copy=False)


def receive_now(socket: zmq.SyncSocket) -> list[bytes]:
    """The message that is here. Raises zmq.Again when none is."""
    part = receive_part(socket)
    parts = [part.bytes]
    while part.more:
        part = receive_part(socket)
        parts.append(part.bytes)
    return parts


class LoopReader:
    """Calls `on_message(parts)` on the running loop for each message of a socket, some at a time.

    Plain sockets on the loop's own file watching: no future per message, and a send answers at once.
    """

    def __init__(self, socket: zmq.SyncSocket, on_message: Callable[[list[bytes]], None]) -> None:
        self._socket, self._on_message = socket, on_message
        self._loop = asyncio.get_running_loop()
        self._descriptor = socket.fileno()
        self._open = True
        self._loop.add_reader(self._descriptor, self._drain)
        self.look_again()

    def look_again(self) -> None:
        """To be called after each send on this socket."""
        if has_message(self._socket):
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        for taken in range(DRAIN_AT_ONCE):
            # At first there is one as a rule; from then on asking is cheaper than zmq.Again.
            if not self._open or (taken and not has_message(self._socket)):
                return
            try:
                parts = receive_now(self._socket)
            except zmq.Again:
                return
            try:
                self._on_message(parts)
            except Exception:
                self._loop.call_soon(self._drain)  # the loop reports it; the messages behind it are not stuck
                raise
        self._loop.call_soon(self._drain)

    def close(self) -> None:
        """Stop reading; the socket stays open."""
        self._open = False
        self._loop.remove_reader(self._descriptor)
