"""The consumer SDK against a real broker and a real publisher."""

import asyncio
import gc
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from streaming import BrokerError, ConfigError, FeatureSubscriber, ModelMismatchError, TlsSettings
from streaming.frames import Since
from streaming.mqtt import MqttSettings
from tests.gear.mosquitto import free_port, make_certificates, mosquitto
from tests.gear.mqtt import eventually, feature, held, model, publishing, sending, state

FRONT = "camvec/edge1/cam/front"


@pytest.mark.integration
async def test_features_arrive_with_what_happened_to_their_neighbours(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port)) as publisher, FeatureSubscriber(broker.url) as subscriber:
            publisher.set_cameras({"front": 0, "back": 0})
            await eventually(lambda: publisher.statistics().connected)
            stream = subscriber.features(camera="front")
            await stream.ready()
            record = feature(seq=2, since=Since(held=1, dropped={"late": 1}))
            publisher.publish_feature(feature("back", 0))
            publisher.publish_feature(record)
            publisher.publish_held(held(seq=4, frames=2))
            publisher.publish_feature(feature(seq=5))
            first, second = await anext(stream), await anext(stream)
            statistics = subscriber.statistics("front")
    assert (first.camera, first.node, first.model_id, first.model) == ("front", "edge1", "lite0", "f00dbabe")
    assert np.allclose(first.vector, np.frombuffer(record.vector, "<f4"), atol=1e-3)
    assert first.vector.dtype == np.float32
    assert (first.norm, first.since, first.frame_seq) == (7.5, Since(held=1, dropped={"late": 1}), 2)
    assert 0 < first.age_s < 5
    assert (second.frame_seq, second.gap, second.restart) == (5, 0, False)
    assert (statistics.vectors, statistics.held, statistics.frames) == (2, 3, 6)


@pytest.mark.integration
async def test_several_iterators_run_side_by_side(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with (
            publishing(MqttSettings(port=broker.port)) as publisher,
            FeatureSubscriber(broker.url) as subscriber,
            FeatureSubscriber(broker.url) as another,
        ):
            publisher.set_cameras(["front", "back"])
            publisher.set_model(model())
            await eventually(lambda: publisher.statistics().connected)
            front, everything = subscriber.features("front"), subscriber.features()
            states, models, events = subscriber.states(), subscriber.models(), subscriber.events("front")
            stats, theirs = subscriber.stats(), another.features()
            for stream in (front, everything, states, models, events, stats, theirs):
                await stream.ready()
            assert (await anext(models)).fingerprint == "f00dbabe"
            assert {(await anext(states)).camera, (await anext(states)).camera} == {"front", "back"}
            publisher.publish_state(state("front", "stalled", "stalled"))
            publisher.publish_feature(feature("front", 0))
            publisher.publish_feature(feature("front", 1, cut=True))
            publisher.publish_feature(feature("back", 0))
            publisher.publish_stats({"cpu_percent": 12.5})
            assert [(await anext(front)).camera for _ in range(2)] == ["front"] * 2
            assert sorted([(await anext(everything)).camera for _ in range(3)]) == ["back", "front", "front"]
            assert sorted([(await anext(theirs)).camera for _ in range(3)]) == ["back", "front", "front"]
            assert (await anext(events)).type == "scene_change"
            assert (await anext(stats)).body["cpu_percent"] == 12.5
            assert (await anext(states)).reason == "stalled"
            late = subscriber.states("back")  # the broker sends retained messages once a filter: we keep them
            assert (await anext(late)).camera == "back"
        assert [one async for one in front] == []  # closed with its subscriber


@pytest.mark.integration
async def test_a_stream_that_is_left_ends_its_subscription(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with FeatureSubscriber(broker.url) as subscriber, sending(broker.port) as send:
            kept = subscriber.events("front")
            await kept.ready()
            states = subscriber.states()
            await states.ready()
            send(f"{FRONT}/state", b'{"v":1,"camera":"front","state":"streaming"}')
            async for one in states:
                assert one.state == "streaming"
                break
            del states, one
            gc.collect()
            await eventually(lambda: subscriber._active == {"camvec/+/cam/front/event/+"})


@pytest.mark.integration
async def test_the_subscriber_comes_back_with_the_broker(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port)) as publisher, FeatureSubscriber(broker.url) as subscriber:
            publisher.set_cameras({"front": 0})
            await eventually(lambda: publisher.statistics().connected)
            stream = subscriber.features("front")
            await stream.ready()
            publisher.publish_feature(feature(seq=0))
            await anext(stream)
            broker.stop(signal.SIGKILL)
            await eventually(lambda: subscriber.connection.state == "waiting")
            problem = subscriber.connection.problem  # the first retry may have come at once
            assert "closed the connection" in problem or "nothing listens" in problem
            await eventually(lambda: not publisher.statistics().connected)
            for seq in range(1, 5):
                publisher.publish_feature(feature(seq=seq))
            broker.start()
            await eventually(lambda: subscriber.connection.state == "connected" and bool(subscriber._active), 20)
            await eventually(lambda: publisher.statistics().connected, 20)
            publisher.publish_feature(feature(seq=5))
            while (await anext(stream)).frame_seq != 5:
                pass
            statistics = subscriber.statistics("front")
    assert statistics.frames == 6  # whatever became of each
    assert statistics.restarts == 0


@pytest.mark.integration
async def test_corrupt_payloads_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with (
            publishing(MqttSettings(port=broker.port)) as publisher,
            FeatureSubscriber(broker.url) as subscriber,
            sending(broker.port) as send,
        ):
            await eventually(lambda: publisher.statistics().connected)
            stream = subscriber.features("front")
            states = subscriber.states()
            await states.ready()
            for payload in (b"", b"garbage", b"\x81\xa1v\x01", b'{"v":2}', b"\xff" * 300_000):
                send(f"{FRONT}/embedding/lite0", payload)
            send(f"{FRONT}/state", b"{")
            await eventually(lambda: subscriber.statistics("front").corrupt == 6)
            publisher.publish_feature(feature(seq=0))
            assert (await anext(stream)).frame_seq == 0


@pytest.mark.integration
async def test_a_changed_model_ends_an_iterator_that_did_not_ask_for_it(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port)) as publisher, FeatureSubscriber(broker.url) as subscriber:
            await eventually(lambda: publisher.statistics().connected)
            stream = subscriber.features()
            await stream.ready()
            publisher.publish_feature(feature(seq=0))
            publisher.publish_feature(feature(seq=1, model="beef"))
            await anext(stream)
            with pytest.raises(ModelMismatchError) as caught:
                await anext(stream)
    assert (caught.value.expected, caught.value.got, caught.value.camera) == ("f00dbabe", "beef", "front")


@pytest.mark.integration
async def test_a_wrong_password_is_an_error_at_once_and_shows_no_secret(tmp_path: Path) -> None:
    with mosquitto(tmp_path, users={"viewer": "pass/word"}) as broker:
        async with FeatureSubscriber(f"mqtt://viewer:pass%2Fword@127.0.0.1:{broker.port}") as subscriber:
            assert subscriber.connection.state == "connected"
        began = time.monotonic()
        with pytest.raises(BrokerError, match="refused user 'viewer'") as caught:
            async with FeatureSubscriber(f"mqtt://viewer:hunter2@127.0.0.1:{broker.port}"):
                pass
        assert caught.value.reason == "auth"
        assert "hunter2" not in str(caught.value)
        assert time.monotonic() - began < 5


@pytest.mark.integration
async def test_tls_by_url(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    mutual = TlsSettings(ca=certificates.ca, cert=certificates.client_cert, key=certificates.client_key)
    with mosquitto(tmp_path, tls=certificates, client_certificates=True) as broker:
        url = f"mqtts://localhost:{broker.port}"
        async with FeatureSubscriber(url, tls=mutual) as subscriber:
            assert subscriber.connection.state == "connected"
        with pytest.raises(BrokerError, match="is not trusted") as caught:
            async with FeatureSubscriber(url):
                pass
        assert caught.value.reason == "tls"


async def test_a_broker_that_is_not_there_is_an_error_after_the_time_out() -> None:
    with pytest.raises(BrokerError, match=r"not connected after 0\.5 s: nothing listens"):
        async with FeatureSubscriber(f"mqtt://127.0.0.1:{free_port()}", connect_timeout_s=0.5):
            pass


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://u:hunter2@host", "expected a broker URL like mqtt://"),
        ("mqtt://u:hunter2@", "expected a broker URL like mqtt://"),
        ("mqtt://u:hunter2@host:port", "one that is no URL"),
        ("mqtt://u:hunter2@host/camvec", "pass the topic root as root="),
    ],
)
async def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        FeatureSubscriber(url)
    assert "hunter2" not in str(caught.value)


async def test_an_id_that_cannot_be_is_refused_at_once() -> None:
    subscriber = FeatureSubscriber("mqtt://localhost")
    with pytest.raises(ConfigError, match="expected a camera id"):
        subscriber.features(camera="front/#")


def test_the_sdk_imports_without_the_edge() -> None:
    code = """
import sys
import streaming.client, streaming.blocking
heavy = {"torch", "av", "cv2", "pydantic", "zmq", "iotcore", "encoders_core", "workers"} & set(sys.modules)
print(sorted(heavy))
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.monotonic() - began < 5  # 0.3 s on an idle machine: docs/benchmarks.md


async def test_the_names_of_the_sdk_come_from_the_package() -> None:
    import streaming

    assert all(getattr(streaming, name) for name in streaming.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        streaming.nonsense  # noqa: B018


async def test_ready_of_a_closed_subscriber_returns() -> None:
    subscriber = FeatureSubscriber("mqtt://localhost")
    stream = subscriber.features()
    await stream.aclose()
    async with asyncio.timeout(1):
        await stream.ready()


@pytest.mark.integration
async def test_subscriber_can_be_left_while_the_broker_confirms_a_subscription(tmp_path: Path) -> None:
    """Before Python 3.12 a cancellation that came together with a confirmation was lost, and leaving took for ever."""
    with mosquitto(tmp_path) as broker:
        for step in range(60):
            async with asyncio.timeout(10), FeatureSubscriber(broker.url) as subscriber:
                features = subscriber.features()
                if step % 2:
                    await features.ready()
                    await features.aclose()
                await asyncio.sleep(step * 0.00005)
