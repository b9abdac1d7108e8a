"""What stands in a PUBLISH besides its payload: MQTT 5 properties, packed once and used often, and the packet of QoS 0."""

from functools import lru_cache
from typing import Final

_PUBLISH: Final = 0x30
_EXPIRY: Final = 0x02
_CONTENT_TYPE: Final = 0x03
_USER: Final = 0x26


class PublishProperties:
    """Stands for paho's `Properties`, of which a PUBLISH needs `pack` alone: building that costs more than the message."""

    __slots__ = ("_packed",)

    def __init__(
        self, *, expiry_s: int | None = None, content_type: str = "", user: tuple[tuple[str, str], ...] = ()
    ) -> None:
        body = bytearray()
        if expiry_s is not None:
            body += bytes([_EXPIRY]) + expiry_s.to_bytes(4, "big")
        if content_type:
            body += bytes([_CONTENT_TYPE]) + _text(content_type)
        for name, value in user:
            body += bytes([_USER]) + _text(name) + _text(value)
        self._packed = _length(len(body)) + bytes(body)

    def pack(self) -> bytes:
        """The properties with their length, as they stand in the packet."""
        return self._packed


@lru_cache(maxsize=64)
def plain(expiry_s: int | None, content_type: str) -> PublishProperties:
    """Properties without user properties: the same few all the time."""
    return PublishProperties(expiry_s=expiry_s, content_type=content_type)


def publish_packet(topic: str, payload: bytes, properties: PublishProperties | None, *, retain: bool = False) -> bytes:
    """A PUBLISH of QoS 0. `properties` None: MQTT 3.1.1, which has none."""
    head = _head(topic, properties.pack() if properties is not None else b"")
    return bytes([_PUBLISH | retain]) + _length(len(head) + len(payload)) + head + payload


@lru_cache(maxsize=512)
def _head(topic: str, packed: bytes) -> bytes:
    return _text(topic) + packed


def _text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def _length(count: int) -> bytes:
    """MQTT's variable byte integer."""
    digits = bytearray()
    while True:
        count, digit = divmod(count, 128)
        digits.append(digit | (0x80 if count else 0))
        if not count:
            return bytes(digits)
