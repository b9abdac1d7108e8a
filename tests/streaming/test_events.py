import json
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import WireError
from streaming.events import (
    Event,
    EventDetector,
    EventSettings,
    attributes,
    decode,
    encode_binary,
    encode_structured,
)
from streaming.frames import Since
from streaming.records import FeatureRecord, HeldRecord, Quality, Stages

S = 1_000_000_000


def feature(at_s: float, change: float = 0.0, *, cut: bool = False, reset: bool = False) -> FeatureRecord:
    quality = Quality(rung=224, tokens_updated=1, tokens_total=1, cold=cut or reset, change=change)
    return FeatureRecord(
        camera="front",
        frame_seq=int(at_s * 10),
        since=Since(),
        model_id="m",
        model="f",
        dim=1,
        vector=b"\0\0\x80?",
        norm=1.0,
        pts_us=0,
        captured_at_us=int(at_s * 1e6),
        clock="arrival",
        captured_error_us=0,
        arrived_ns=0,
        deadline_ns=0,
        stages=Stages(),
        quality=quality,
        cut=cut,
        reset=reset,
    )


def held(at_s: float) -> HeldRecord:
    return HeldRecord("front", int(at_s * 10), Since(held=1), 0, int(at_s * 1e6), 0.001)


def run(detector: EventDetector, *records: FeatureRecord | HeldRecord) -> list[Event]:
    return [event for record in records for event in detector.feed(record, record.captured_at_us * 1000)]


def detector(**settings: float) -> EventDetector:
    return EventDetector("edge1", "front", "s1", EventSettings(**settings))


def told(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.type, event.phase) for event in events]


def test_activity_begins_after_min_duration_and_ends_after_quiet() -> None:
    busy = [feature(t / 10, 0.05) for t in range(10)]
    still = [held(t) for t in range(2, 6)]
    events = run(detector(), *busy, *still)
    assert told(events) == [("activity", "new"), ("activity", "end")]
    new, end = events
    assert new.event == end.event
    assert new.id != end.id
    assert (new.started_at, end.ended_at, end.reason, end.peak) == (500_000, 900_000, "quiet", 0.05)


def test_activity_of_one_frame_is_noise() -> None:
    assert run(detector(), feature(0, 0.5), feature(0.1, 0.0), feature(0.6, 0.5), feature(0.7, 0.0)) == []


def test_activity_goes_on_between_the_thresholds() -> None:
    events = run(detector(), *(feature(t / 10, 0.05) for t in range(7)), *(feature(t, 0.015) for t in range(1, 9)))
    assert told(events) == [("activity", "new")]


def test_activity_is_updated_now_and_then() -> None:
    events = run(detector(update_s=2), *(feature(t / 10, 0.05) for t in range(60)))
    assert told(events) == [("activity", "new"), ("activity", "update"), ("activity", "update")]
    assert [event.n for event in events] == [0, 1, 2]


def test_activity_ends_by_the_clock_when_no_record_comes() -> None:
    one = detector()
    run(one, *(feature(t / 10, 0.05) for t in range(10)))
    assert one.tick(3 * S) == []
    assert told(one.tick(4 * S)) == [("activity", "end")]


def test_everything_ends_when_the_camera_is_lost() -> None:
    one = detector()
    run(one, *(feature(t / 10, 0.05) for t in range(10)), feature(1, cut=True))
    events = one.lost()
    assert told(events) == [("activity", "end"), ("scene_change", "end")]
    assert {event.reason for event in events} == {"camera_lost"}
    assert one.lost() == []


def test_cuts_that_follow_each_other_are_one_scene_change() -> None:
    events = run(detector(), *(feature(t, cut=True) for t in (1, 2, 3)), feature(6))
    assert told(events) == [("scene_change", "new"), ("scene_change", "end")]
    assert (events[0].cuts, events[1].cuts, events[1].ended_at) == (1, 3, 3_000_000)


def test_the_first_frame_after_an_open_is_neither_a_cut_nor_activity() -> None:
    assert run(detector(), feature(0, 1.0, cut=True, reset=True), feature(1, 1.0, reset=True)) == []


steps = st.lists(
    st.tuples(st.floats(0.01, 4), st.sampled_from(["change", "cut", "held", "tick", "lost"]), st.floats(0, 1)),
    max_size=80,
)


@given(steps=steps)
def test_every_event_begins_once_ends_once_and_never_overlaps(steps: list[tuple[float, str, float]]) -> None:
    one, now, events = detector(), 0.0, list[Event]()
    for after_s, what, change in steps:
        now += after_s
        match what:
            case "change":
                events += run(one, feature(now, change))
            case "cut":
                events += run(one, feature(now, 1.0, cut=True))
            case "held":
                events += run(one, held(now))
            case "tick":
                events += one.tick(int(now * S))
            case _:
                events += one.lost()
    events += one.lost()
    phases = defaultdict(list)
    for event in events:
        phases[event.event].append(event.phase)
    assert all(told[0] == "new" and told[-1] == "end" for told in phases.values())
    assert all(set(told[1:-1]) <= {"update"} for told in phases.values())
    assert len({event.id for event in events}) == len(events)


def test_an_event_is_a_cloud_event_in_both_modes() -> None:
    (event,) = run(detector(), feature(1.5, cut=True))
    structured = json.loads(encode_structured(event, "camvec"))
    expected = {
        "specversion": "1.0",
        "id": "s1-front-scene_change-1.0",
        "source": "/camvec/edge1/cam/front",
        "type": "camvec.scene_change",
        "subject": "front",
        "time": "1970-01-01T00:00:01.500000Z",
        "event": "s1-front-scene_change-1",
        "phase": "new",
    }
    assert attributes(event, "camvec") == expected
    assert {name: structured[name] for name in expected} == expected
    assert structured["datacontenttype"] == "application/json"
    assert structured["data"] == json.loads(encode_binary(event))
    assert decode(encode_binary(event)) == decode(encode_structured(event, "camvec")) == event


@given(
    data=st.one_of(st.binary(max_size=200), st.recursive(st.integers(), st.lists).map(lambda x: json.dumps(x).encode()))
)
def test_decode_of_anything_else_raises_only_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


def test_decode_of_a_later_version_says_so() -> None:
    (event,) = run(detector(), feature(1, cut=True))
    with pytest.raises(WireError, match="expected an event of version 1, got 2"):
        decode(encode_binary(event).replace(b'"v":1', b'"v":2'))


def test_settings_with_thresholds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 <= stop_change <= start_change"):
        EventSettings(start_change=0.01, stop_change=0.02)
