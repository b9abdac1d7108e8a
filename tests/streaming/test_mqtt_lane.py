"""The queue of one camera and the outbox, without a broker: what may be lost, and what is said of it."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from streaming.accounting import CameraAccount
from streaming.frames import Since
from streaming.mqtt.lane import MAX_LOSSLESS, Lane, Place, TailMark
from streaming.mqtt.parcels import InFlight, Outage, Outbox, Parcel, places
from streaming.mqtt.properties import PublishProperties
from streaming.records import FeatureRecord
from tests.gear.mqtt import feature, held

S = 10**9


def lane() -> Lane:
    return Lane("front", CameraAccount(next_seq=0))


def test_a_newer_vector_takes_the_place_of_the_one_that_waits() -> None:
    one = lane()
    assert one.offer(feature(seq=0), 0, "broker_away") == []
    (pushed_out,) = one.offer(feature(seq=1), 0, "broker_away")
    assert pushed_out.record.frame_seq == 0
    taken = one.take()
    assert (taken.record.frame_seq, taken.since) == (1, Since(dropped={"broker_away": 1}))


def test_a_heartbeat_waits_behind_the_vector_that_it_repeats_and_goes_with_it() -> None:
    one = lane()
    one.offer(feature(seq=0), 0, "broker_away")
    for seq in (3, 5):
        one.offer_held(held(seq=seq), Since(held=seq - one.account.accounted_upto), 0)
    assert [waiting.record.frame_seq for waiting in one.waiting] == [0, 5]
    one.offer(feature(seq=6), 0, "broker_away")
    assert [waiting.record.frame_seq for waiting in one.waiting] == [6]
    assert one.take().since == Since(held=5, dropped={"broker_away": 1})


def test_what_is_too_old_expires_and_what_comes_from_a_file_does_not() -> None:
    live, file = lane(), lane()
    live.offer(feature(seq=0), 0, "broker_away")
    file.offer(feature(seq=0, lossless=True), 0, "broker_away")
    assert len(live.expire(3 * S, 2 * S)) == 1
    assert live.account.dropped == {"expired": 1}
    assert file.expire(3 * S, 2 * S) == []


def test_what_comes_from_a_file_is_queued_up_to_a_bound() -> None:
    one = lane()
    pushed_out = [one.offer(feature(seq=seq, lossless=True), 0, "broker_away") for seq in range(MAX_LOSSLESS + 2)]
    assert sum(map(len, pushed_out)) == 2
    assert one.take().since == Since(dropped={"broker_away": 2})


steps = st.lists(st.sampled_from(["vector", "held", "hole", "send", "expire", "tail", "again"]), max_size=60)


@given(steps=steps)
def test_whatever_happens_the_messages_account_for_every_frame(steps: list[str]) -> None:
    one, seq, now_ns, last = lane(), 0, 0, -1
    for step in steps:
        match step:
            case "vector":
                one.offer(feature(seq=seq), now_ns, "publisher_behind")
                seq += 1
            case "again":
                one.offer(feature(seq=max(0, seq - 1)), now_ns, "publisher_behind")
                seq = max(seq, 1)
            case "held":
                one.offer_held(held(seq=seq + 1), Since(held=2), now_ns)
                seq += 2
            case "tail":
                one.offer_held(TailMark(seq), Since(dropped={"stopped": 1}), now_ns)
                seq += 1
            case "hole":
                seq += 3
            case "expire":
                now_ns += 3 * S
                one.expire(now_ns, 2 * S)
            case _ if one.waiting:
                waiting = one.take()
                itself = isinstance(waiting.record, FeatureRecord)
                one.account.published += itself
                assert waiting.record.frame_seq - last == itself + waiting.since.frames
                last = waiting.record.frame_seq
    account, waits = one.account, one._features
    assert waits <= 1
    assert len(one.waiting) <= 3
    assert account.published + account.held + sum(account.dropped.values()) + waits == account.frames


def parcel(topic: str, **changes: object) -> Parcel:
    return Parcel(topic, b"x", **changes)  # type: ignore[arg-type]


def test_the_newest_state_counts_and_events_keep_their_order() -> None:
    box = Outbox(max_queued=10)
    for payload in (b"old", b"new"):
        box.put_latest(Parcel("state", payload))
    box.put(parcel("event/1"))
    box.put(parcel("event/2"))
    assert [(box.next(0) or parcel("none")).topic for _ in range(4)] == ["state", "event/1", "event/2", "none"]


def test_events_are_bounded_and_expire_and_both_are_counted() -> None:
    box = Outbox(max_queued=2)
    for n in range(3):
        box.put(parcel(f"event/{n}", camera="front", expires_ns=10))
    assert box.dropped == Counter(front=1)
    assert box.next(11) is None
    assert box.dropped == Counter(front=3)


def test_what_was_not_acknowledged_is_sent_again_in_order_but_states_are_not() -> None:
    box = Outbox(max_queued=10)
    box.put(parcel("event/3"))
    sent = [parcel("event/1"), parcel("state", again=False), parcel("event/2"), parcel("spooled", spool_id=7)]
    for mid, one in enumerate(sent):
        box.sent(mid, InFlight(one, 0, []))
    assert [one.topic for one in box.disconnected()] == ["spooled"]
    assert [one.topic for one in box.queued] == ["event/1", "event/2", "event/3"]


def test_the_window_bounds_what_is_in_flight() -> None:
    box = Outbox(max_queued=10, window=1)
    box.put(parcel("event/1"))
    box.sent(1, InFlight(parcel("other"), 0, []))
    assert box.next(0) is None
    box.acknowledged(1)
    assert box.next(0) is not None


def test_an_acknowledgement_confirms_what_was_sent_before_and_an_outage_names_the_rest() -> None:
    one, box = lane(), Outbox(max_queued=10)
    lanes = {"front": one}
    one.sent = Place(4, 40)
    box.sent(1, InFlight(parcel("state"), 0, places(lanes)))
    one.sent = Place(6, 60)
    box.acknowledged(1)
    outage = Outage.begin(lanes, 100, "closed")
    one.account.drop(Since(), "broker_away")
    assert outage.report(lanes, 200, Counter(), Counter(front=3)) == {
        "from": 100,
        "until": 200,
        "reason": "closed",
        "cameras": {
            "front": {
                "dropped": {"broker_away": 1},
                "spooled": 3,
                "events_dropped": 0,
                "unconfirmed": {"seq": [5, 6], "frame_seq": [41, 60]},
            }
        },
    }


characters = st.characters(codec="utf-8", exclude_characters="\0")  # MQTT allows no NUL


@given(
    expiry_s=st.none() | st.integers(0, 2**32 - 1),
    content=st.text(characters, max_size=30),
    user=st.lists(st.tuples(st.text(characters, max_size=20), st.text(characters, max_size=200)), max_size=5),
)
def test_properties_are_packed_as_paho_would(expiry_s: int | None, content: str, user: list[tuple[str, str]]) -> None:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    theirs = Properties(PacketTypes.PUBLISH)
    if expiry_s is not None:
        theirs.MessageExpiryInterval = expiry_s
    if content:
        theirs.ContentType = content
    for pair in user:
        theirs.UserProperty = pair
    ours = PublishProperties(expiry_s=expiry_s, content_type=content, user=tuple(user)).pack()
    parsed, length = Properties(PacketTypes.PUBLISH).unpack(ours)
    assert length == len(ours)
    assert parsed.json() == theirs.json()
