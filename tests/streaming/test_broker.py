import asyncio
import contextlib
import socket
import sys

import pytest

from streaming import message
from streaming.broker import EmbeddedBroker
from streaming.errors import BrokerError
from streaming.mqtt import MqttSettings
from tests.gear.mosquitto import free_port
from tests.gear.mqtt import eventually, feature, listening, model, publishing

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _needs_iotcore(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name:
        pytest.importorskip("iotcore", reason="needs the broker wheel iotcore (pip install camvec[edge])")


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


async def test_subscribers_of_both_versions_get_vectors_events_and_retained_topics() -> None:
    async with EmbeddedBroker() as broker:
        settings = broker.for_publisher(MqttSettings(format="json"))
        async with (
            listening(broker.port, protocol="3.1.1") as older,
            listening(broker.port_v5, protocol="5") as newer,
            publishing(settings) as publisher,
        ):
            publisher.set_model(model())
            await eventually(lambda: publisher.statistics().connected)
            large = feature(seq=0, dim=16_000, vector=b"\xdb\x0f\x49\x3c" * 16_000, cut=True)  # 180 kB of JSON
            publisher.publish_feature(large)
            for heard in (older, newer):
                await heard.until(lambda heard=heard: heard.on("embedding/lite0") and heard.on("event/scene_change"))
                assert message.decode(heard.on("embedding/lite0")[0]).frame_seq == 0
            async with listening(broker.port_v5, "camvec/edge1/model/+", protocol="5") as late:
                await late.until(lambda: late.messages)
                assert late.messages[0][2]
    assert not is_listening(broker.port)


async def test_a_port_can_be_chosen() -> None:
    port = free_port()
    async with EmbeddedBroker(port) as broker:
        assert broker.port == port
        assert broker.url == f"mqtt://127.0.0.1:{port}"
        assert is_listening(port)


async def test_a_taken_port_is_named() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(BrokerError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            async with EmbeddedBroker(port):
                pass
    assert caught.value.reason == "refused"


async def test_the_broker_dies_with_its_parent() -> None:
    script = """
import asyncio
from streaming.broker import EmbeddedBroker

async def main():
    async with EmbeddedBroker() as broker:
        print(broker.port, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    port = int(await parent.stdout.readline())
    assert is_listening(port)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not is_listening(port))


async def test_a_host_without_the_wheel_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iotcore", None)
    with pytest.raises(BrokerError, match=r"needs the package iotcore \(pip install 'camvec\[edge\]'\)"):
        async with EmbeddedBroker():
            pass
