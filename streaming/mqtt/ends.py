"""What the two ends of a link say of themselves: our will and handlers, the broker's limits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Protocol = Literal["5", "3.1.1"]


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


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker said in its CONNACK."""

    packet_bytes: int = 1 << 28
    receive_maximum: int = 65_535
    retain: bool = True
