"""A connection to a broker in the newest MQTT that it speaks. Reconnecting is the caller's business: a link lives once."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from streaming.errors import BrokerError
from streaming.mqtt.aio import Link
from streaming.mqtt.dial import dial
from streaming.mqtt.ends import Handlers, Protocol, Will
from streaming.mqtt.settings import BrokerSettings

__all__ = ["Handlers", "Link", "Protocol", "ProtocolMemory", "Will", "connect"]

CONNACK_V5_S: Final = 1.0
"""A broker of 3.1.1 may leave an MQTT 5 client without an answer: then ask in 3.1.1."""
REMEMBER_NS: Final = 3600 * 10**9
"""A slow broker may look like one of 3.1.1: ask again in MQTT 5 after an hour."""
_WORTH_OLDER_PROTOCOL: Final = frozenset({"timeout", "closed", "protocol"})


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


@asynccontextmanager
async def connect(
    settings: BrokerSettings, handlers: Handlers, *, will: Will | None = None, memory: ProtocolMemory | None = None
) -> AsyncIterator[Link]:
    """A link to the broker, said goodbye to at the end. Raises BrokerError, with its reason, if there is none."""
    memory = memory if memory is not None else ProtocolMemory()
    if settings.protocol == "auto" and not memory.is_old(settings.address):
        link = await _open_newest(settings, handlers, will, memory)
    else:
        protocol: Protocol = "3.1.1" if settings.protocol == "auto" else settings.protocol
        link = await _open(settings, handlers, will, protocol, settings.connect_timeout_s)
    try:
        yield link
    except BrokerError:
        link.abort()  # it is gone: nobody is there for a goodbye
        raise
    except BaseException:
        await link.close()
        raise
    await link.close()


async def _open_newest(settings: BrokerSettings, handlers: Handlers, will: Will | None, memory: ProtocolMemory) -> Link:
    known = memory.is_new(settings.address)
    try:
        link = await _open(settings, handlers, will, "5", settings.connect_timeout_s if known else CONNACK_V5_S)
    except BrokerError as newest:
        if newest.reason != "protocol" and (known or newest.reason not in _WORTH_OLDER_PROTOCOL):
            raise
        link = await _open(settings, handlers, will, "3.1.1", settings.connect_timeout_s)
    memory.remember(settings.address, link.protocol)
    return link


async def _open(
    settings: BrokerSettings, handlers: Handlers, will: Will | None, protocol: Protocol, timeout_s: float
) -> Link:
    # Reading the authorities of the system takes a while.
    context = await asyncio.to_thread(settings.tls.context) if settings.tls else None
    sock = await dial(settings, context)
    link = Link(settings, handlers, will, protocol)
    await link.open(sock, timeout_s)
    return link
