import asyncio
import json
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streaming import message
from streaming.frames import Since
from streaming.message import FeatureMessage, Heartbeat
from streaming.mqtt import MqttSettings, Publisher
from streaming.records import FidelityRecord, Quality
from tests.gear.mosquitto import mosquitto
from tests.gear.mqtt import eventually, feature, held, listening, model, publishing, sending, state

pytestmark = pytest.mark.integration
FRONT = "camvec/edge1/cam/front"


async def test_a_vector_arrives_as_the_contract_says(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with (
            listening(broker.port, "camvec/#", qos=0) as heard,
            publishing(MqttSettings(port=broker.port), session="s1") as publisher,
        ):
            publisher.set_cameras({"front": 0})
            publisher.set_model(model())
            await eventually(lambda: publisher.statistics().connected)
            record = feature(seq=2, since=Since(held=1, dropped={"superseded": 1}))
            publisher.publish_feature(record)
            await heard.until(lambda: heard.on("embedding/lite0"))
    sent = message.decode(heard.on("embedding/lite0")[0])
    assert isinstance(sent, FeatureMessage)
    assert (sent.session, sent.camera, sent.seq, sent.frame_seq, sent.model) == ("s1", "front", 0, 2, "f00dbabe")
    assert sent.since == Since(held=1, dropped={"superseded": 1})
    assert np.allclose(message.vector_of(sent), np.frombuffer(record.vector, "<f4"), atol=1e-3)
    assert sent.captured_at < sent.published_at < sent.deadline
    assert sent.quality.budget_met
    assert sent.ledger.encode == 1500


async def test_the_retained_topics_describe_the_node(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port), session="s1") as publisher:
            publisher.set_cameras(["front", "back"])
            publisher.set_model(model())
            publisher.publish_state(state("front", "backoff", "refused", "rtsp://admin:hunter2@10.0.0.5/1 refused"))
            async with listening(broker.port, "camvec/#") as heard:
                await heard.until(lambda: b"backoff" in b"".join(heard.on("cam/front/state")))
                await heard.until(lambda: heard.on("model/lite0") and heard.on("cam/back/state"))
        assert heard.on("availability")[0] == b"online"
        info = json.loads(heard.on("info")[-1])
        assert (info["session"], info["cameras"], info["models"]) == ("s1", ["back", "front"], ["lite0"])
        assert json.loads(heard.on("model/lite0")[-1])["fingerprint"] == "f00dbabe"
        front = json.loads(heard.on("cam/front/state")[-1])
        assert (front["state"], front["reason"]) == ("backoff", "refused")
        assert "hunter2" not in str(heard.messages)
        async with listening(broker.port, "camvec/edge1/availability") as after:
            await after.until(lambda: after.messages == [("camvec/edge1/availability", b"stopped", True)])


PUBLISHER = """
import asyncio, sys
from streaming.mqtt import MqttSettings, Publisher

async def main():
    async with Publisher(MqttSettings(port=int(sys.argv[1])), node="edge1") as publisher:
        await publisher.run()

asyncio.run(main())
"""


async def test_a_publisher_that_is_killed_is_offline(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with listening(broker.port, "camvec/edge1/availability") as heard:
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", PUBLISHER, str(broker.port))
            await heard.until(lambda: heard.on("availability") == [b"online"])
            process.kill()
            await process.wait()
            await heard.until(lambda: heard.on("availability") == [b"online", b"offline"])


async def test_a_publisher_that_is_told_to_stop_says_so(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with listening(broker.port, "camvec/edge1/availability") as heard:
            async with Publisher(MqttSettings(port=broker.port), node="edge1") as publisher:
                running = asyncio.create_task(publisher.run())
                await heard.until(lambda: heard.on("availability") == [b"online"])
                running.cancel()
                await asyncio.wait([running])
            await heard.until(lambda: heard.on("availability") == [b"online", b"stopped"])


async def test_heartbeats_and_losses_add_up_to_the_frames(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with (
            listening(broker.port, f"{FRONT}/embedding/+", qos=0) as heard,
            publishing(MqttSettings(port=broker.port)) as publisher,
        ):
            publisher.set_cameras({"front": 0})
            await eventually(lambda: publisher.statistics().connected)
            publisher.publish_feature(feature(seq=0))
            publisher.publish_held(held(seq=3, frames=3))
            publisher.publish_held(held(seq=5, frames=2))  # within the second: told by the next message
            publisher.publish_feature(feature(seq=9, since=Since(dropped={"late": 1})))  # two frames unexplained
            publisher.publish_feature(feature(seq=9))  # a repeat
            publisher.publish_feature(feature(seq=10, vector=np.full(64, np.nan, "<f4").tobytes()))
            publisher.publish_tail("front", 12, Since(dropped={"stopped": 2}))
            await heard.until(lambda: len(heard.messages) == 4)
            account = publisher.statistics().cameras["front"]
    sent = [message.decode(payload) for _, payload, _ in heard.messages]
    assert [(one.seq, one.frame_seq) for one in sent] == [(0, 0), (1, 3), (2, 9), (3, 12)]
    assert [type(one) for one in sent] == [FeatureMessage, Heartbeat, FeatureMessage, Heartbeat]
    assert sent[2].since == Since(held=2, dropped={"late": 1, "worker_lost": 2})
    assert sent[3].since == Since(dropped={"stopped": 2, "failed": 1})
    assert sum(one.since.frames for one in sent) + 2 == 13
    assert account.published + account.held + sum(account.dropped.values()) == 13
    assert (account.duplicates, account.rejected) == (1, 1)


async def test_the_temporal_vector_is_a_model_of_its_own(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with (
            listening(broker.port, f"{FRONT}/embedding/+", qos=0) as heard,
            publishing(MqttSettings(port=broker.port)) as publisher,
        ):
            publisher.set_model(model())
            publisher.set_model(model("lite0-ring", fingerprint="beef", temporal_of="lite0", dim=2))
            await eventually(lambda: publisher.statistics().connected)
            publisher.publish_feature(feature(seq=0, temporal=np.array([3, 4], "<f4").tobytes()))
            publisher.publish_held(held(seq=1, frames=1))
            publisher.publish_feature(feature(seq=2, temporal=np.array([0, 2], "<f4").tobytes()))
            await heard.until(lambda: len(heard.messages) == 5)
    first, second = (message.decode(payload) for payload in heard.on("lite0-ring"))
    assert isinstance(first, FeatureMessage)
    assert (first.output, first.model, first.norm, message.vector_of(first).tolist()) == (
        "temporal",
        "beef",
        5.0,
        pytest.approx([0.6, 0.8], abs=1e-3),
    )
    assert (second.seq, second.frame_seq, second.since) == (1, 2, Since(held=1))


async def test_fidelity_is_in_the_state_and_a_broken_gate_is_told_at_once(tmp_path: Path) -> None:
    sound = FidelityRecord("front", 0.0123456789, 0.015, 0.998, 120, 0.9, 1.0, "on")
    with mosquitto(tmp_path) as broker:
        async with (
            listening(broker.port, f"{FRONT}/state") as heard,
            publishing(MqttSettings(port=broker.port)) as publisher,
        ):
            await eventually(lambda: publisher.statistics().connected)
            publisher.set_cameras(["front"])
            publisher.publish_fidelity(sound)
            publisher.publish_fidelity(msgspec.structs.replace(sound, gates="off"))
            await heard.until(lambda: b'"off"' in b"".join(heard.on("state")))
            assert publisher.statistics().cameras["front"].fidelity is not None
    told = json.loads(heard.on("state")[-1])["fidelity"]
    assert told == {
        "fvu": 0.012346,
        "fvu_upper": 0.015,
        "cos_p5": 0.998,
        "audited": 120,
        "coverage": 0.9,
        "scale": 1.0,
        "gates": "off",
    }


async def test_events_carry_their_attributes_and_end_when_the_camera_is_lost(tmp_path: Path) -> None:
    busy = Quality(rung=224, tokens_updated=1, tokens_total=1, cold=False, change=0.3)
    with mosquitto(tmp_path) as broker:
        async with (
            listening(broker.port, f"{FRONT}/event/+") as heard,
            publishing(MqttSettings(port=broker.port)) as publisher,
        ):
            await eventually(lambda: publisher.statistics().connected)
            publisher.publish_feature(feature(seq=0, quality=busy))
            await asyncio.sleep(0.6)
            publisher.publish_feature(feature(seq=1, quality=busy))
            publisher.publish_feature(feature(seq=2, cut=True))
            publisher.publish_state(state("front", "stalled", "stalled"))
            await heard.until(lambda: len(heard.messages) == 4)
    bodies = [(topic.rpartition("/")[2], json.loads(payload)) for topic, payload, _ in heard.messages]
    assert [(kind, body["phase"]) for kind, body in bodies] == [
        ("activity", "new"),
        ("scene_change", "new"),
        ("activity", "end"),
        ("scene_change", "end"),
    ]
    assert bodies[2][1]["reason"] == "camera_lost"
    assert bodies[0][1]["event"] == bodies[2][1]["event"]


async def test_a_command_is_carried_out_and_its_value_told(tmp_path: Path) -> None:
    asked = []

    async def obey(camera: str, name: str, value: object) -> object:
        asked.append((camera, name, value))
        if name != "enabled":
            raise ValueError(f"expected a setting like 'enabled', got {name!r}")
        return value

    with mosquitto(tmp_path) as broker:
        async with (
            listening(broker.port, f"{FRONT}/value/+") as heard,
            publishing(MqttSettings(port=broker.port), on_command=obey) as publisher,
        ):
            publisher.set_cameras(["front"])
            await eventually(lambda: publisher.statistics().connected)
            await asyncio.sleep(0.2)  # its subscription
            async with sending(broker.port) as send:
                send(f"{FRONT}/set/colour", b"red")
                send("camvec/edge1/cam/nosuch/set/enabled", b"false")
                send(f"{FRONT}/set/enabled", b"false")
            await heard.until(lambda: b"false" in heard.on("value/enabled"))
    assert asked == [("front", "colour", "red"), ("front", "enabled", False)]


async def test_removed_cameras_leave_nothing_retained_also_of_an_earlier_run(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port)) as first:
            first.set_cameras(["garden", "front"])
            first.set_model(model("old-model"))
            first.publish_value("garden", "enabled", value=True)
            await eventually(lambda: first.statistics().connected)
        async with publishing(MqttSettings(port=broker.port)) as second:
            second.set_cameras(["front", "back"])
            second.set_model(model())
            await eventually(lambda: second.statistics().connected)
            second.set_cameras(["front"])
            async with listening(broker.port, "camvec/#") as heard:
                gone = ["cam/garden/state", "cam/garden/value/enabled", "model/old-model"]
                await heard.until(lambda: all(b"" in heard.on(topic) for topic in gone))
        async with listening(broker.port, "camvec/#") as after:
            await asyncio.sleep(0.3)
            left = sorted(topic.removeprefix("camvec/edge1/") for topic, _, _ in after.messages)
            assert left == ["availability", "cam/front/state", "info", "model/lite0"]


async def test_a_camera_that_comes_back_counts_on(tmp_path: Path) -> None:
    """Else its messages would look like repeats, and its events like old ones."""
    with mosquitto(tmp_path) as broker:
        async with (
            listening(broker.port, f"{FRONT}/embedding/+", f"{FRONT}/event/+", qos=0) as heard,
            publishing(MqttSettings(port=broker.port)) as publisher,
        ):
            await eventually(lambda: publisher.statistics().connected)
            for first in (0, 10):
                publisher.set_cameras({"front": first})
                publisher.publish_feature(feature(seq=first))
                publisher.publish_feature(feature(seq=first + 1, cut=True))
                publisher.set_cameras([])
                publisher.publish_feature(feature(seq=first + 2))  # a straggler
            await heard.until(lambda: len(heard.messages) == 8)
            assert publisher.statistics().unknown_cameras == 2
    sent = [message.decode(payload) for payload in heard.on("embedding/lite0")]
    assert [(one.seq, one.frame_seq) for one in sent] == [(0, 0), (1, 1), (2, 10), (3, 11)]
    told = [json.loads(payload) for payload in heard.on("event/scene_change")]
    assert [event["phase"] for event in told] == ["new", "end", "new", "end"]
    assert len({event["event"] for event in told}) == 2


async def test_json_is_an_option(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with (
            listening(broker.port, f"{FRONT}/embedding/+", qos=0) as heard,
            publishing(MqttSettings(port=broker.port, format="json", dtype="f4")) as publisher,
        ):
            await eventually(lambda: publisher.statistics().connected)
            record = feature(seq=0)
            publisher.publish_feature(record)
            await heard.until(lambda: heard.messages)
    body = json.loads(heard.messages[0][1])
    assert np.array(body["vector"], "<f4").tobytes() == record.vector


async def test_stages_and_budget_are_measured_to_the_write(tmp_path: Path) -> None:
    written = []
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port), on_written=written.append) as publisher:
            await eventually(lambda: publisher.statistics().connected)
            for seq in range(20):
                publisher.publish_feature(feature(seq=seq))
            publisher.publish_feature(feature(seq=20, deadline_ns=time.monotonic_ns() - 1))
            cold = Quality(rung=224, tokens_updated=1, tokens_total=1, cold=True, change=1.0)
            publisher.publish_feature(feature(seq=21, quality=cold))
            await eventually(lambda: len(written) == 22)
            figures = publisher.statistics()
    assert (figures.budget_hits, figures.budget_misses, figures.cold) == (20, 1, 1)
    p50, p95, p99 = figures.percentiles_ms["total"]
    assert 4.0 <= p50 <= p95 <= p99
    assert figures.percentiles_ms["encode"] == (1.5, 1.5, 1.5)
    assert all(one.total_us >= one.publish_us for one in written)
