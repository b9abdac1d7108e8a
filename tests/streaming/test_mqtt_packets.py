from typing import Any

import pytest
from paho.mqtt.client import CallbackAPIVersion, Client, MQTTv5, MQTTv311

from streaming.mqtt.properties import PublishProperties, plain, publish_packet


def packet_of_paho(topic: str, payload: bytes, properties: PublishProperties | None, *, retain: bool) -> bytes:
    """What paho would write."""
    client: Any = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv311 if properties is None else MQTTv5)
    client._sock = object()
    written: list[bytes] = []
    client._packet_queue = lambda _command, packet, *_: written.append(bytes(packet))
    client._send_publish(0, topic.encode(), payload, 0, retain, properties=properties)
    client._sock = None
    return written[0]


@pytest.mark.parametrize("size", [0, 1, 100, 130, 2700, 20_000, 3_000_000])
@pytest.mark.parametrize("properties", [None, PublishProperties(), plain(2, "application/msgpack")])
@pytest.mark.parametrize("retain", [False, True])
def test_packet_is_the_one_that_paho_would_write(size: int, properties: PublishProperties | None, retain: bool) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    ours = publish_packet("camvec/edge/cam/türe/embedding/lite0", payload, properties, retain=retain)
    assert ours == packet_of_paho("camvec/edge/cam/türe/embedding/lite0", payload, properties, retain=retain)
