from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming import message
from streaming.errors import ModelMismatchError
from streaming.feature import CameraState, Feature
from streaming.inbox import FeatureStream, Inbox
from streaming.message import FeatureMessage
from streaming.mqtt.compose import Composer, Moment
from streaming.mqtt.lane import Lane
from streaming.mqtt.settings import MqttSettings
from streaming.stream import Stream
from streaming.topics import Address
from tests.gear.mqtt import feature

TOPIC = "camvec/edge1/cam/front/embedding/lite0"
NOW_US = 1_700_000_000_000_000


def sent(seq: int = 0, *, captured_us: int = NOW_US - 50_000, **changes: Any) -> FeatureMessage:
    lane = Lane("front")
    lane.seqs["lite0"] = seq
    record = feature("front", seq, captured_at_us=captured_us, **changes)
    composer = Composer(MqttSettings(), "s1")
    return composer.frame(lane, record, record.since, Moment(record.arrived_ns, NOW_US - 10_000))


def features(**options: Any) -> FeatureStream:
    def accepts(address: Address, output: str) -> bool:
        return address.kind == "embedding" and output == "frame"

    stream = FeatureStream("camvec/+/cam/+/embedding/+", accepts, 100)
    for name, value in options.items():
        setattr(stream, name, value)
    return stream


def inbox(*streams: Stream[Any]) -> Inbox:
    return Inbox("camvec", None, lambda: streams, lambda: NOW_US)


def waiting(stream: Stream[Feature]) -> list[Feature]:
    return list(stream._items)


async def test_a_feature_has_a_vector_of_unit_length_and_its_age() -> None:
    stream = features()
    inbox(stream).received(TOPIC, message.encode(sent()))
    (one,) = waiting(stream)
    assert abs(float((one.vector**2).sum()) - 1) < 1e-6
    assert (one.node, one.camera, one.model_id, one.age_s) == ("edge1", "front", "lite0", 0.05)
    assert one.captured_at.isoformat() == "2023-11-14T22:13:19.950000+00:00"
    assert not one.late


async def test_what_is_too_old_for_a_stream_is_counted() -> None:
    strict, patient = features(max_age_s=0.04), features()
    box = inbox(strict, patient)
    box.received(TOPIC, message.encode(sent()))
    assert (len(waiting(strict)), len(waiting(patient))) == (0, 1)
    assert box.statistics("front", None, None).too_old == 1


async def test_vectors_of_two_models_are_not_mixed() -> None:
    """R38."""
    strict, willing = features(), features(allow_model_change=True)
    box = inbox(strict, willing)
    box.received(TOPIC, message.encode(sent(0)))
    box.received(TOPIC, message.encode(sent(1, model="beef")))
    assert (await anext(strict)).model == "f00dbabe"
    with pytest.raises(ModelMismatchError, match="now sends vectors of model beef, expected f00dbabe"):
        await anext(strict)
    assert [one.model for one in waiting(willing)] == ["f00dbabe", "beef"]


async def test_a_heartbeat_is_the_last_vector_again_for_those_who_ask() -> None:
    plain, held = features(), features(include_held=True)
    box = inbox(plain, held)
    first = sent(0)
    beat = {"v": 1, "session": "s1", "camera": "front", "seq": 1, "frame_seq": 5, "since": {"held": 5, "dropped": {}}}
    beat |= {"model": "f00dbabe", "captured_at": NOW_US, "published_at": NOW_US, "held_since": NOW_US - 1_000_000}
    box.received(TOPIC, message.encode(first))
    box.received(TOPIC, message._PACK.encode(beat))
    assert len(waiting(plain)) == 1
    vector, again = waiting(held)
    assert again.held_since is not None
    assert (again.frame_seq, again.age_s) == (5, 0.0)
    assert (again.vector == vector.vector).all()


async def test_a_slow_consumer_gets_the_newest_and_the_count() -> None:
    stream = FeatureStream("camvec/+/cam/+/embedding/+", lambda *_: True, 3)
    box = inbox(stream)
    for seq in range(10):
        box.received(TOPIC, message.encode(sent(seq)))
    assert [one.frame_seq for one in waiting(stream)] == [7, 8, 9]
    assert (stream.dropped, box.statistics("front", None, None).skipped) == (7, 7)


async def test_a_message_on_the_topic_of_another_camera_is_corrupt() -> None:
    box = inbox(features())
    box.received(TOPIC.replace("front", "back"), message.encode(sent()))
    assert box.statistics(None, None, None).corrupt == 1


async def test_the_state_of_a_removed_camera_says_so() -> None:
    states: Stream[CameraState] = Stream("camvec/+/cam/+/state", lambda address: address.kind == "state", 9)
    inbox(states).received("camvec/edge1/cam/front/state", b"")
    assert (await anext(states)).state == "removed"


kinds = st.sampled_from(
    ["availability", "info", "stats", "event/gap", "model/m", "cam/front/state", "cam/front/event/x"]
)
topics = st.one_of(st.just(TOPIC), kinds.map(lambda end: f"camvec/edge1/{end}"), st.text(max_size=40))
payloads = st.one_of(
    st.binary(max_size=100),
    st.dictionaries(st.sampled_from(["v", "camera", "state", "at", "size"]), st.one_of(st.integers(), st.text())).map(
        message._JSON.encode
    ),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(topic=topics, payload=payloads)
async def test_nothing_that_arrives_raises(topic: str, payload: bytes) -> None:
    box = inbox(features(), Stream("#", lambda *_: True, 5))
    box.received(topic, payload)
