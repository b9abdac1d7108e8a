"""host, port -> a connected socket, in a thread that can be abandoned.

A name server that does not answer blocks `getaddrinfo` for half a minute, and asyncio's own executor is joined when the
process ends: neither may hold up a stop.
"""

import asyncio
import contextlib
import socket
import ssl
import threading
from typing import Final

from streaming.errors import BrokerError
from streaming.mqtt.settings import BrokerSettings

SEND_BUFFER_BYTES: Final = 32 << 10
"""Small: what waits here is out of our hands, and old when it arrives. The kernel doubles it."""


async def dial(settings: BrokerSettings, context: ssl.SSLContext | None) -> socket.socket:
    """A TCP (and TLS) connection to the broker. Raises BrokerError `unreachable`, `refused`, `timeout` or `tls`."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[socket.socket] = loop.create_future()

    def deliver(result: socket.socket | BrokerError) -> None:
        if done.done():  # nobody waits any more
            if isinstance(result, socket.socket):
                result.close()
        elif isinstance(result, BrokerError):
            done.set_exception(result)
        else:
            done.set_result(result)

    def work() -> None:
        result = _try_dial(settings, context)
        try:
            loop.call_soon_threadsafe(deliver, result)
        except RuntimeError:  # the loop has ended meanwhile
            if isinstance(result, socket.socket):
                result.close()

    threading.Thread(target=work, name=f"mqtt-dial-{settings.address}", daemon=True).start()
    limit_s = 2 * settings.connect_timeout_s + 1
    try:
        async with asyncio.timeout(limit_s):
            return await done
    except TimeoutError as exc:
        raise BrokerError(
            "timeout", f"expected an answer from {settings.address} within {limit_s:g} s, got none"
        ) from exc


def _try_dial(settings: BrokerSettings, context: ssl.SSLContext | None) -> socket.socket | BrokerError:
    sock = None
    try:
        sock = socket.create_connection((settings.host, settings.tcp_port), timeout=settings.connect_timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        return sock if context is None else context.wrap_socket(sock, server_hostname=settings.host)
    except (OSError, ValueError) as exc:  # ValueError: certificates and host names that cannot be encoded
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()
        return explain(exc, settings)


def explain(exc: Exception, settings: BrokerSettings) -> BrokerError:
    """A system or TLS error on the way to the broker, as one sentence with its reason word."""
    where = f"the MQTT broker at {settings.address}"
    error: BrokerError
    match exc:
        case ssl.SSLCertVerificationError():
            said = f"{where} is not trusted: {exc.verify_message}; check mqtt.tls.ca and the host name"
            error = BrokerError("tls", said)
        case ssl.SSLError() | ssl.CertificateError():
            said = f"expected TLS from {where}, got: {exc.reason or exc}; check the port and the client certificate"
            error = BrokerError("tls", said)
        case socket.gaierror():
            error = BrokerError("unreachable", f"expected a known host name, got {settings.host!r}: {exc.strerror}")
        case ConnectionRefusedError():
            error = BrokerError(
                "refused", f"nothing listens at {settings.address}: start the broker or check host and port"
            )
        case TimeoutError():
            said = f"expected {where} to answer within {settings.connect_timeout_s:g} s, got silence"
            error = BrokerError("timeout", said)
        case _:
            error = BrokerError("unreachable", f"{where} cannot be reached: {exc}")
    error.__cause__ = exc
    return error
