"""What the publisher does when the broker does not: real mosquitto, refused, denied, restarted, frozen, old."""

import asyncio
import json
import random
import signal
import time
from pathlib import Path

import pytest

from streaming import message
from streaming.errors import BrokerError, ConfigError
from streaming.frames import Since
from streaming.mqtt import MqttSettings, Publisher, TlsSettings
from streaming.mqtt.link import Handlers, connect
from streaming.mqtt.settings import BrokerSettings
from tests.gear.mosquitto import Certificates, free_port, make_certificates, mosquitto
from tests.gear.mqtt import eventually, fake_broker, feature, held, listening, publishing, state

pytestmark = pytest.mark.integration
FRONT = "camvec/edge1/cam/front"
PASSWORD = "hunter2-is-secret"


async def refused(settings: BrokerSettings) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        async with connect(settings, Handlers(lambda *_: None)):
            pass
    assert PASSWORD not in str(caught.value) + repr(caught.value) + repr(settings)
    return caught.value


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


async def test_password_is_accepted_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    with mosquitto(tmp_path, users={"edge": PASSWORD}) as broker:
        settings = MqttSettings(port=broker.port, username="edge", password=PASSWORD)
        async with publishing(settings) as publisher:
            await eventually(lambda: publisher.statistics().connected)
        wrong = await refused(BrokerSettings(port=broker.port, username="edge", password=PASSWORD + "x"))
        assert wrong.reason == "auth"
        assert "refused user 'edge'" in str(wrong)
        assert "check mqtt.username and mqtt.password" in str(wrong)
        older = await refused(BrokerSettings(port=broker.port, username="edge", password="no", protocol="3.1.1"))
        assert older.reason == "auth"
        assert (await refused(BrokerSettings(port=broker.port))).reason == "auth"


async def test_a_wrong_password_is_a_problem_of_the_publisher(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mosquitto(tmp_path, users={"edge": PASSWORD}) as broker:
        async with publishing(MqttSettings(port=broker.port, username="edge", password=PASSWORD + "x")) as publisher:
            await eventually(lambda: publisher.statistics().problems)
            (problem,) = publisher.statistics().problems
            next_retry_us = publisher.statistics().next_retry_at_us
    assert next_retry_us is not None
    assert next_retry_us / 1e6 - time.time() > 5  # a refused password is tried rarely
    assert "refused user 'edge'" in problem
    assert PASSWORD not in caplog.text
    assert "refused user 'edge'" in caplog.text


async def test_tls_is_verified_by_default(tmp_path: Path, certificates: Certificates) -> None:
    with mosquitto(tmp_path, tls=certificates) as broker:
        trusting = TlsSettings(ca=certificates.ca)
        async with publishing(MqttSettings(host="localhost", port=broker.port, tls=trusting)) as publisher:
            await eventually(lambda: publisher.statistics().connected)
            assert publisher.statistics().protocol == "5"
        unknown = await refused(BrokerSettings(host="localhost", port=broker.port, tls=TlsSettings()))
        other = await refused(
            BrokerSettings(host="localhost", port=broker.port, tls=TlsSettings(ca=certificates.other_ca))
        )
        assert (unknown.reason, other.reason) == ("tls", "tls")
        assert "is not trusted" in str(other)
        async with connect(
            BrokerSettings(host="localhost", port=broker.port, tls=TlsSettings(verify=False)), Handlers(lambda *_: None)
        ) as link:
            assert link.protocol == "5"
        plain = await refused(BrokerSettings(host="localhost", port=broker.port))
        assert plain.reason == "closed"
        assert "TLS on one side only" in str(plain)


async def test_a_client_certificate_is_shown_when_it_is_wanted(tmp_path: Path, certificates: Certificates) -> None:
    with mosquitto(tmp_path, tls=certificates, client_certificates=True) as broker:
        mutual = TlsSettings(ca=certificates.ca, cert=certificates.client_cert, key=certificates.client_key)
        async with publishing(MqttSettings(host="localhost", port=broker.port, tls=mutual)) as publisher:
            await eventually(lambda: publisher.statistics().connected)
        missing = await refused(BrokerSettings(host="localhost", port=broker.port, tls=TlsSettings(ca=certificates.ca)))
        assert missing.reason == "tls"
        assert "wants a client certificate" in str(missing)


async def test_certificate_files_that_cannot_be_used_are_named_at_the_start(
    tmp_path: Path, certificates: Certificates
) -> None:
    with pytest.raises(ConfigError, match=r"got nothing at /nowhere/ca\.pem"):
        async with Publisher(MqttSettings(tls=TlsSettings(ca=Path("/nowhere/ca.pem"))), node="edge1"):
            pass
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"bad\.pem: expected a PEM file"):
        TlsSettings(ca=tmp_path / "bad.pem").context()
    with pytest.raises(ConfigError, match="must belong together"):
        TlsSettings(cert=certificates.client_cert, key=certificates.key).context()


async def test_a_denied_topic_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    acl = f"user edge\ntopic readwrite camvec/edge1/#\ntopic deny {FRONT}/embedding/#\nuser viewer\ntopic read #\n"
    with mosquitto(tmp_path, users={"edge": PASSWORD, "viewer": "v"}, acl=acl) as broker:
        settings = MqttSettings(port=broker.port, username="edge", password=PASSWORD)
        async with (
            listening(broker.port, "camvec/+/cam/+/embedding/+", username="viewer", password="v") as heard,
            publishing(settings) as publisher,
        ):
            await eventually(lambda: publisher.statistics().connected)
            for seq in range(5):
                publisher.publish_feature(feature("front", seq))
                publisher.publish_feature(feature("back", seq))
            await heard.until(lambda: len(heard.messages) == 5)
            await eventually(lambda: publisher.statistics().problems)
            (problem,) = publisher.statistics().problems
    assert problem == (
        f"the broker denies user 'edge' to publish to {FRONT}/embedding/lite0 (not authorized): allow it in the broker's ACL"
    )
    assert {topic for topic, _, _ in heard.messages} == {"camvec/edge1/cam/back/embedding/lite0"}


async def test_a_restarted_broker_gets_everything_again_and_hears_what_it_missed(tmp_path: Path) -> None:
    """R33, R29: no persistence, so the broker has forgotten all of it."""
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port)) as publisher:
            publisher.set_cameras({"front": 0})
            publisher.publish_state(state("front"))
            await eventually(lambda: publisher.statistics().connected)
            for seq in range(3):
                publisher.publish_feature(feature(seq=seq))
            await eventually(lambda: not publisher._sender.outbox.in_flight)
            broker.stop(signal.SIGKILL)
            await eventually(lambda: not publisher.statistics().connected)
            for seq in range(3, 8):
                publisher.publish_feature(feature(seq=seq))
            publisher.publish_feature(feature(seq=8, cut=True))
            broker.start()
            async with listening(broker.port, "camvec/#") as heard:
                await heard.until(lambda: heard.on("cam/front/state") and heard.on("availability") and heard.on("info"))
                await eventually(lambda: publisher.statistics().connected)
                publisher.publish_feature(feature(seq=9))
                await eventually(lambda: publisher.statistics().cameras["front"].accounted_upto == 9)
                figures = publisher.statistics().cameras["front"]
        assert heard.on("availability")[0] == b"online"
    assert figures.dropped.get("broker_away", 0) + figures.dropped.get("expired", 0) >= 5
    assert figures.published + sum(figures.dropped.values()) == 10


class Latest(random.Random):
    """Draws the upper bound: back-off delays of 1, 2, 4 s."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002 - the signature of Random
        return b


async def test_what_was_not_delivered_is_told_in_gap(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port, expiry_s=1), rng=Latest()) as publisher:
            publisher.set_cameras({"front": 0, "back": 0})
            await eventually(lambda: publisher.statistics().connected)
            publisher.publish_feature(feature(seq=0))
            await eventually(lambda: not publisher._sender.outbox.in_flight)
            for seq in range(1, 4):
                publisher.publish_feature(feature(seq=seq))  # QoS 0: nobody can know
            broker.stop(signal.SIGKILL)
            await eventually(lambda: not publisher.statistics().connected)
            for seq in range(4, 8):
                publisher.publish_feature(feature(seq=seq))
            await asyncio.sleep(1.2)
            broker.start()
            async with listening(broker.port, "camvec/edge1/event/gap") as heard:  # before the publisher, in 2 s
                await heard.until(lambda: heard.messages)
    gap = json.loads(heard.messages[0][1])
    assert gap["from"] < gap["until"]
    assert gap["reason"] == "closed"
    assert list(gap["cameras"]) == ["front"]
    front = gap["cameras"]["front"]
    assert front["dropped"] == {"broker_away": 3, "expired": 1}
    assert front["unconfirmed"] == {"seq": [1, 3], "frame_seq": [1, 3]}


async def test_the_newest_vector_and_all_events_survive_a_short_outage(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port, expiry_s=60), rng=Latest()) as publisher:
            publisher.set_cameras({"front": 0})
            await eventually(lambda: publisher.statistics().connected)
            broker.stop(signal.SIGKILL)
            await eventually(lambda: not publisher.statistics().connected)
            publisher.publish_feature(feature(seq=0, cut=True))
            publisher.publish_held(held(seq=4, frames=4))
            publisher.publish_feature(feature(seq=5))
            broker.start()
            async with listening(broker.port, f"{FRONT}/embedding/+", f"{FRONT}/event/+") as heard:
                await heard.until(lambda: len(heard.messages) == 3)
    (vector,) = [message.decode(payload) for payload in heard.on("embedding/lite0")]
    assert (vector.frame_seq, vector.since) == (5, Since(held=4, dropped={"broker_away": 1}))
    assert [json.loads(payload)["phase"] for payload in heard.on("scene_change")] == ["new", "end"]


async def test_the_spool_delivers_what_the_outage_held_back(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    with mosquitto(tmp_path / "broker") as broker:
        settings = MqttSettings(port=broker.port, offline="spool", spool_dir=tmp_path / "spool")
        async with publishing(settings, rng=Latest(), session="first") as publisher:
            publisher.set_cameras({"front": 0})
            await eventually(lambda: publisher.statistics().connected)
            broker.stop(signal.SIGKILL)
            await eventually(lambda: not publisher.statistics().connected)
            for seq in range(20):
                publisher.publish_feature(feature(seq=seq))
            await asyncio.sleep(0.3)  # a stop without the broker: the disk has it
        broker.start()
        async with (
            listening(broker.port, f"{FRONT}/embedding/+") as heard,
            publishing(settings, session="second") as publisher,
        ):
            await heard.until(lambda: len(heard.messages) == 19)
            await asyncio.sleep(0.5)
            spool = publisher._sender.spooler._spool
            assert spool is not None
            assert spool.items == 0
    sent = [message.decode(payload) for _, payload, _ in heard.messages]
    assert [one.frame_seq for one in sent] == list(range(19))
    assert all(isinstance(one, message.FeatureMessage) and one.spooled and one.session == "first" for one in sent)


async def test_a_frozen_broker_is_noticed_and_left(tmp_path: Path) -> None:
    """SIGSTOP: the sockets stay open and nothing answers. The limits are shorter here than by default."""
    settings = {"ack_timeout_s": 1.0, "state_s": 0.5, "connect_timeout_s": 1.0}
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port, **settings)) as publisher:  # type: ignore[arg-type]
            publisher.set_cameras({"front": 0})
            await eventually(lambda: publisher.statistics().connected)
            broker.freeze()
            began = time.monotonic()
            await eventually(lambda: not publisher.statistics().connected)
            assert time.monotonic() - began < 10
            await eventually(lambda: publisher.statistics().problems)
            assert "has acknowledged nothing for 1 s" in publisher.statistics().problems[0]
            broker.thaw()
            await eventually(lambda: publisher.statistics().connected)
            assert publisher.statistics().protocol == "5"  # its silence was no sign of an old broker


async def test_a_stop_does_not_wait_for_a_frozen_broker(tmp_path: Path) -> None:
    """R21."""
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port)) as publisher:
            publisher.set_cameras({"front": 0})
            await eventually(lambda: publisher.statistics().connected)
            broker.freeze()
            publisher.publish_feature(feature(seq=0))
            began = time.monotonic()
        assert time.monotonic() - began < 4


async def test_a_broker_of_3_1_1_is_recognised_and_remembered() -> None:
    """iotcore's plain listener leaves an MQTT 5 client without an answer."""
    iotcore = pytest.importorskip("iotcore", reason="needs the broker wheel iotcore (pip install camvec[edge])")
    port = free_port()
    with iotcore.Broker(port=port, listen="127.0.0.1"):
        async with (
            listening(port, f"{FRONT}/#", protocol="3.1.1") as heard,
            publishing(MqttSettings(port=port)) as publisher,
        ):
            await eventually(lambda: publisher.statistics().connected)
            assert publisher.statistics().protocol == "3.1.1"
            assert publisher._reconnector.memory.is_old(f"127.0.0.1:{port}")
            publisher.publish_feature(feature(seq=0, cut=True))
            await heard.until(lambda: heard.on("embedding/lite0") and heard.on("event/scene_change"))
    structured = json.loads(heard.on("event/scene_change")[0])
    assert (structured["specversion"], structured["data"]["phase"]) == ("1.0", "new")
    assert message.decode(heard.on("embedding/lite0")[0]).frame_seq == 0


CONNACK_5 = b"\x20\x03\x00\x00\x00"
TAKEN_OVER = b"\xe0\x02\x8e\x00"


async def test_a_takeover_is_named_and_slows_the_retries() -> None:
    """R32: a broker that says so (0x8E)."""
    async with fake_broker(CONNACK_5, TAKEN_OVER) as broker, publishing(MqttSettings(port=broker.port)) as publisher:
        await eventually(lambda: publisher.statistics().problems)
        (problem,) = publisher.statistics().problems
        assert "another client with the id 'camvec-edge1' took our place" in problem
        await asyncio.sleep(1.5)
        assert broker.visits == 1


async def test_two_publishers_of_one_node_are_told_why_they_flap(tmp_path: Path) -> None:
    """R32: mosquitto 2.0 closes the older connection without a word."""
    with mosquitto(tmp_path) as broker:
        settings = MqttSettings(port=broker.port)
        async with publishing(settings, rng=Latest()) as one, publishing(settings, rng=Latest()) as other:
            hint = "does another client use the id 'camvec-edge1'?"
            await eventually(lambda: hint in str(one.statistics().problems + other.statistics().problems), 20)


async def test_a_broker_that_kicks_us_is_not_stormed() -> None:
    """R31: it answers CONNECT and closes, each time."""
    async with fake_broker(CONNACK_5) as broker, publishing(MqttSettings(port=broker.port)) as publisher:
        await asyncio.sleep(4)
        assert 1 <= broker.visits <= 12
        assert publisher._reconnector.backoff.failures in {broker.visits, broker.visits - 1}


async def test_one_slow_socket_keeps_the_newest_vector_of_each_camera(tmp_path: Path) -> None:
    """A frozen broker takes nothing: buffers fill, and what waits is bounded and counted by cause."""
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port, expiry_s=60)) as publisher:
            publisher.set_cameras({"front": 0, "back": 0})
            await eventually(lambda: publisher.statistics().connected)
            broker.freeze()
            for seq in range(3000):
                publisher.publish_feature(feature("front", seq, vector=b"\0\0\x80?" * 1280, dim=1280))
                publisher.publish_feature(feature("back", seq, vector=b"\0\0\x80?" * 1280, dim=1280))
            figures = publisher.statistics().cameras
            assert [one.waiting for one in figures.values()] == [1, 1]
            for one in figures.values():
                assert one.published + one.waiting + sum(one.dropped.values()) == 3000
                assert one.dropped["publisher_behind"] > 0
            broker.thaw()
            await eventually(lambda: [one.waiting for one in publisher.statistics().cameras.values()] == [0, 0])


async def test_a_file_loses_nothing_to_a_slow_socket(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with (
            listening(broker.port, f"{FRONT}/embedding/+", qos=0) as heard,
            publishing(MqttSettings(port=broker.port)) as publisher,
        ):
            publisher.set_cameras({"front": 0})
            await eventually(lambda: publisher.statistics().connected)
            for seq in range(800):
                publisher.publish_feature(feature(seq=seq, lossless=True))
            await heard.until(lambda: len(heard.messages) == 800)
    assert [message.decode(payload).frame_seq for _, payload, _ in heard.messages] == list(range(800))


async def test_embeddings_of_qos_1_survive_a_restart_of_the_broker(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        async with publishing(MqttSettings(port=broker.port, embedding_qos=1, expiry_s=60), rng=Latest()) as publisher:
            publisher.set_cameras({"front": 0})
            await eventually(lambda: publisher.statistics().connected)
            broker.freeze()
            publisher.publish_feature(feature(seq=0))
            publisher.publish_feature(feature(seq=1))
            broker.stop(signal.SIGKILL)
            await eventually(lambda: not publisher.statistics().connected)
            broker.start()
            async with listening(broker.port, f"{FRONT}/embedding/+") as heard:
                await heard.until(lambda: len(heard.messages) == 2)
    assert [message.decode(payload).seq for _, payload, _ in heard.messages] == [0, 1]


async def test_an_unreachable_broker_is_named() -> None:
    nowhere = await refused(BrokerSettings(port=free_port()))
    assert (nowhere.reason, "start the broker" in str(nowhere)) == ("refused", True)
    unknown = await refused(BrokerSettings(host="nowhere.invalid"))
    assert (unknown.reason, "'nowhere.invalid'" in str(unknown)) == ("unreachable", True)


async def test_a_silent_broker_is_a_time_out() -> None:
    async with fake_broker(close=False) as broker:
        assert (await refused(BrokerSettings(port=broker.port, connect_timeout_s=0.5))).reason == "timeout"


@pytest.mark.parametrize(
    "answer", [b"\xff" * 50, b"\x20\x03\x00\x77\x00", b"\x20\x05\x00", b"HTTP/1.1 400 Bad Request"]
)
async def test_a_server_that_is_no_broker_is_refused_in_one_sentence(answer: bytes) -> None:
    async with fake_broker(answer) as broker:
        said = await refused(BrokerSettings(port=broker.port, connect_timeout_s=0.5))
    assert said.reason in {"closed", "timeout", "unavailable"}
    assert "\n" not in str(said)
