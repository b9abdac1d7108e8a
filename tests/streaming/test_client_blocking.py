import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streaming import BrokerError, subscribe
from streaming.blocking import subscribe_events, subscribe_states
from streaming.mqtt import MqttSettings
from tests.gear.mosquitto import Mosquitto, free_port, mosquitto
from tests.gear.mqtt import eventually, feature, publishing, state


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path) as running:
        yield running


def publish_in_thread(port: int, stop: threading.Event) -> threading.Thread:
    """A publisher with its own event loop: ten vectors a second until told to stop."""
    import asyncio

    async def publish() -> None:
        async with publishing(MqttSettings(port=port)) as publisher:
            publisher.set_cameras(["front"])
            publisher.publish_state(state("front"))
            await eventually(lambda: publisher.statistics().connected)
            for seq in range(1000):
                if stop.is_set():
                    return
                publisher.publish_feature(feature(seq=seq, cut=seq % 50 == 1))
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=lambda: asyncio.run(publish()))
    thread.start()
    return thread


@pytest.mark.integration
def test_features_events_and_states_without_asyncio(broker: Mosquitto) -> None:
    stop = threading.Event()
    thread = publish_in_thread(broker.port, stop)
    try:
        seen = []
        for one in subscribe(broker.url, camera="front", timeout_s=10):
            seen.append(one.frame_seq)
            if len(seen) == 5:
                break
        assert seen == list(range(seen[0], seen[0] + 5))
        with subscribe_events(broker.url, timeout_s=10) as events:
            assert next(events).type == "scene_change"
        with subscribe_states(broker.url, camera="front", timeout_s=10) as states:
            assert next(states).camera == "front"
    finally:
        stop.set()
        thread.join()
    assert not [one for one in threading.enumerate() if one.name == "camvec-subscriber"]


@pytest.mark.integration
def test_nothing_for_a_while_is_a_time_out_and_one_may_go_on(broker: Mosquitto) -> None:
    with subscribe(broker.url, timeout_s=0.2) as stream:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_no_broker_is_an_error_and_leaves_no_thread() -> None:
    began = time.monotonic()
    with pytest.raises(BrokerError, match="not connected"):
        subscribe(f"mqtt://127.0.0.1:{free_port()}", connect_timeout_s=0.3)
    assert time.monotonic() - began < 5
    assert not [one for one in threading.enumerate() if one.name == "camvec-subscriber"]
