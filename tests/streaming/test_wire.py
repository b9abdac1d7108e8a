from contextlib import suppress
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import wire
from streaming.errors import Reason, WireError
from streaming.frames import DROP_CAUSES, CaptureTime, ClockSource, Frame, FrameSpec, Since
from streaming.records import (
    CameraStatus,
    FeatureRecord,
    FidelityRecord,
    HeldRecord,
    ModelDescriptor,
    Quality,
    Stages,
    StateRecord,
    WorkerStats,
)

cameras = st.from_regex(r"[a-z0-9_-]{1,64}", fullmatch=True)
workers = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
seqs = st.integers(0, wire.MAX_SEQ)
sides = st.integers(1, wire.MAX_SIDE_PX)
numbers = st.integers(0, 2**63 - 1)
reals = st.floats(0, 1e12, allow_nan=False)
words = st.text(max_size=60)
sinces = st.builds(
    Since,
    held=st.integers(0, 2**40),
    dropped=st.dictionaries(st.sampled_from(DROP_CAUSES), st.integers(0, 2**40), max_size=4),
)
specs = st.builds(FrameSpec, size_hw=st.tuples(sides, sides), fit=st.sampled_from(["squash", "crop", "letterbox"]))
clocks = st.sampled_from(get_args(ClockSource))
spans = st.tuples(reals, reals, reals)

hellos = st.builds(
    wire.Hello,
    worker=workers,
    incarnation=st.integers(1, 2**63 - 1),
    version=words,
    host=words,
    cameras=st.dictionaries(cameras, st.integers(-1, wire.MAX_SEQ), max_size=5),
    echo_ns=numbers,
    echo_age_us=seqs,
)
headers = st.builds(
    wire.FrameHeader,
    camera=cameras,
    frame_seq=seqs,
    height=sides,
    width=sides,
    pts_us=st.integers(-(2**53) + 1, 2**53 - 1),
    captured_at_us=seqs,
    clock=clocks,
    captured_error_us=seqs,
    arrived_ns=numbers,
    decode_us=seqs,
    convert_us=seqs,
    wait_us=seqs,
    since=sinces,
    reset=st.booleans(),
    lossless=st.booleans(),
    epoch=st.integers(1, 2**63 - 1),
    sent_ns=numbers,
    age_us=seqs,
)
tails = st.builds(wire.Tail, camera=cameras, up_to_seq=seqs, since=sinces)
states = st.builds(
    StateRecord,
    camera=cameras,
    state=st.sampled_from(get_args(CameraStatus)),
    reason=st.sampled_from([None, *get_args(Reason)]),
    detail=words,
    since_us=seqs,
    next_retry_at_us=st.none() | seqs,
    fps_in=reals,
    size=st.tuples(sides, sides),
)
stats = st.builds(
    WorkerStats,
    worker=words,
    pid=st.integers(0, 2**31),
    cpu_percent=reals,
    rss_mb=reals,
    percentiles_ms=st.dictionaries(words, spans, max_size=3),
    counters=st.dictionaries(words, numbers, max_size=3),
)
helds = st.builds(
    HeldRecord,
    camera=cameras,
    frame_seq=seqs,
    since=sinces,
    held_since_us=seqs,
    captured_at_us=seqs,
    change=st.floats(0, 1),
)
fidelities = st.builds(
    FidelityRecord,
    camera=cameras,
    fvu=st.none() | reals,
    fvu_upper=st.none() | reals,
    cos_p5=st.none() | st.floats(-1, 1),
    audited=seqs,
    coverage=st.floats(0, 1),
    scale=st.floats(0, 2),
)
descriptors = st.builds(
    ModelDescriptor,
    model_id=words,
    fingerprint=words,
    name=words,
    dim=st.integers(1, 9000),
    trained=st.booleans(),
    frame_spec=specs,
    mean=spans,
    std=spans,
    pooling=words,
    full_pass_ms=reals,
)
features = st.integers(1, 64).flatmap(
    lambda dim: st.builds(
        FeatureRecord,
        camera=cameras,
        frame_seq=seqs,
        since=sinces,
        model_id=words,
        model=words,
        dim=st.just(dim),
        vector=st.binary(min_size=4 * dim, max_size=4 * dim),
        norm=reals,
        pts_us=st.integers(-(2**53) + 1, 2**53 - 1),
        captured_at_us=seqs,
        clock=clocks,
        captured_error_us=seqs,
        arrived_ns=numbers,
        deadline_ns=numbers,
        stages=st.builds(Stages, decode_us=seqs, encode_us=seqs),
        quality=st.builds(
            Quality,
            rung=sides,
            tokens_updated=seqs,
            tokens_total=seqs,
            cold=st.booleans(),
            change=st.floats(0, 1),
        ),
        temporal=st.none() | st.just(b"\0" * 8),
    )
)
byes = st.builds(wire.Bye, worker=workers)
welcomes = st.builds(wire.Welcome, epoch=st.integers(1, 2**63 - 1), spec=specs, model_id=words, sent_ns=numbers)
acks = st.builds(
    wire.Ack,
    epoch=st.integers(1, 2**63 - 1),
    incarnation=st.integers(1, 2**63 - 1),
    camera=cameras,
    up_to_seq=st.integers(-1, wire.MAX_SEQ),
    pace_us=st.integers(0, wire.MAX_PACE_US),
    sent_ns=numbers,
)

DECODERS = (wire.decode_to_encoder, wire.decode_to_capture, wire.decode_record)
to_encoder = hellos | headers | tails | byes | states | stats
to_capture = welcomes | acks
to_publisher = features | helds | states | descriptors | stats | tails | fidelities


def header(**changes: Any) -> wire.FrameHeader:
    frame = Frame(
        "front", 7, np.zeros((224, 224, 3), np.uint8), 1, CaptureTime(1, "rtcp", 3), 5, 1, 2, 3, Since(3, {"paced": 2})
    )
    return msgspec.structs.replace(wire.header_of(frame, epoch=4, now_ns=10**9), **changes)


def feature(**changes: Any) -> FeatureRecord:
    quality = Quality(224, 1, 1, False, 0.5)
    record = FeatureRecord("front", 3, Since(), "m", "f", 2, b"\0" * 8, 1.0, 1, 1, "rtcp", 0, 1, 1, Stages(), quality)
    return msgspec.structs.replace(record, **changes)


def raw(**fields: Any) -> bytes:
    """A message of ours but for what `fields` say: written without the checks of `encode`."""
    return wire.PREFIX + msgspec.msgpack.encode({"type": "frame"} | msgspec.structs.asdict(header()) | fields)


@given(to_encoder)
def test_messages_to_an_encoder_come_back_as_they_were(message: wire.ToEncoder) -> None:
    assert wire.decode_to_encoder(wire.encode(message)) == message


@given(to_capture)
def test_messages_to_capture_come_back_as_they_were(message: wire.ToCapture) -> None:
    assert wire.decode_to_capture(wire.encode(message)) == message


@given(to_publisher)
def test_records_come_back_as_they_were(message: wire.ToPublisher) -> None:
    assert wire.decode_record(memoryview(wire.encode(message))) == message


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda noise: wire.PREFIX + noise))
def test_arbitrary_bytes_raise_wire_error(noise: bytes) -> None:
    for decode in DECODERS:
        with pytest.raises(WireError):
            decode(noise)


@settings(max_examples=300)
@given(st.data())
def test_mutated_messages_decode_or_raise_wire_error(data: st.DataObject) -> None:
    good = bytearray(wire.encode(data.draw(to_encoder | to_capture | to_publisher)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "insert", "delete"]))
        if how == "flip":
            good[at] = data.draw(st.integers(0, 255))
        elif how == "insert":
            good[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif how == "delete" and len(good) > 1:
            del good[at]
        elif at:
            del good[at:]
    for decode in DECODERS:
        with suppress(WireError):
            decode(bytes(good))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"frame_seq": -1}, "`int` >= 0 - at `$.frame_seq`"),
        ({"frame_seq": 2**63}, "frame_seq"),
        ({"arrived_ns": 2**64 - 1}, "arrived_ns"),
        ({"height": 4097}, "<= 4096 - at `$.height`"),
        ({"width": 0}, "width"),
        ({"width": 1.5}, "width"),
        ({"camera": "Front"}, "camera"),
        ({"camera": "front\n"}, "camera"),
        ({"camera": "../front"}, "camera"),
        ({"clock": "sundial"}, "clock"),
        ({"since": {"held": -1, "dropped": {}}}, "frames held, got -1"),
        ({"since": {"held": 0, "dropped": {"bored": 1}}}, "got 'bored'"),
        ({"since": {"held": 0, "dropped": {"paced": -4}}}, "dropped as paced, got -4"),
        ({"since": {"held": 0, "dropped": {"paced": "4"}}}, "dropped"),
        ({"epoch": None}, "epoch"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"type": "gift"}, "Invalid value 'gift'"),
    ],
)
def test_frame_header_with_a_wrong_field_is_named(fields: dict[str, Any], said: str) -> None:
    assert wire.decode_to_encoder(raw()) == header()
    with pytest.raises(WireError) as caught:
        wire.decode_to_encoder(raw(**fields))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (feature(dim=3), "expected 4 x dim bytes of vector"),
        (feature(dim=0, vector=b""), "dim 1 to 65536"),
        (feature(frame_seq=-1), "in FeatureRecord, got -1"),
        (feature(norm=float("nan")), "in FeatureRecord, got nan"),
        (feature(stages=Stages(queue_us=-5)), "got -5"),
        (feature(temporal=b"123"), "temporal vector"),
        (feature(camera="a/b"), "expected a camera id"),
        (feature(pts_us=2**60), "expected a pts_us"),
        (HeldRecord("front", 1, Since(-1), 0, 0, 0.0), "frames held, got -1"),
        (StateRecord("front", "streaming", None, "", 0, fps_in=float("inf")), "got inf"),
        (WorkerStats("encode-0", 1, 1.0, 1.0, {"encode": (1.0, float("nan"), 1.0)}), "got nan"),
        (WorkerStats("encode-0", 1, 1.0, 1.0, counters={"bad": -1}), "got -1"),
    ],
)
def test_record_with_a_wrong_value_is_refused_at_both_ends(record: wire.ToPublisher, said: str) -> None:
    sent_without_checks = wire.PREFIX + msgspec.msgpack.encode(record)
    for attempt in (lambda: wire.encode(record), lambda: wire.decode_record(sent_without_checks)):
        with pytest.raises(WireError) as caught:
            attempt()
        assert said in str(caught.value)


def test_message_of_another_schema_version_says_what_to_do() -> None:
    other = b"cv" + bytes([wire.WIRE_VERSION + 1]) + wire.encode(header())[3:]
    with pytest.raises(WireError, match="expected wire version 1, got 2: both ends need the same camvec version"):
        wire.decode_to_encoder(other)


def test_message_in_the_wrong_direction_is_refused() -> None:
    with pytest.raises(WireError, match="Invalid value 'welcome'"):
        wire.decode_to_encoder(wire.encode(wire.Welcome(1, FrameSpec((224, 224)), "m", 1)))


def test_oversized_message_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="expected at most 65536 bytes, got 70000"):
        wire.decode_to_encoder(wire.PREFIX + b"\0" * 69997)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\x82\xa4type\xa5frame\xa5since\xdf\xff\xff\xff\xff",
        b"\x82\xa4type\xa5state\xa4size\xdd\xff\xff\xff\xff",
        b"\x82\xa4type\xa5state\xa1x" + b"\x91" * 60000,
        b"\x82\xa4type\xa5state\xa6camera\xdb\xff\xff\xff\xff",
        b"\x82\xa4type\xa5state\xa6camera\xa2\xff\xfe",
    ],
    ids=["map", "array", "since", "size", "nesting", "string", "not UTF-8"],
)
def test_claimed_size_depth_or_text_that_is_not_there_is_refused(bomb: bytes) -> None:
    for decode in DECODERS:
        with pytest.raises(WireError):
            decode(wire.PREFIX + bomb)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 8, 3), np.uint8)[:, ::2],
        np.zeros((4097, 1, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["gray", "four channels", "float", "strided", "too high", "empty"],
)
def test_pixels_that_no_encoder_takes_are_refused_by_the_sender(pixels: Any) -> None:
    frame = Frame("front", 0, pixels, 0, CaptureTime(0, "arrival", 0), 0, 0, 0, 0, Since())
    with pytest.raises(WireError, match="expected contiguous uint8 pixels"):
        wire.header_of(frame, epoch=1, now_ns=1)


def test_frame_comes_back_from_header_and_pixels_with_its_age() -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    frame = Frame("front", 7, pixels, -3, CaptureTime(99, "scene", 2), 1_000_000, 1, 2, 3, Since(1), reset=True)
    head = wire.header_of(frame, epoch=5, now_ns=3_500_000)
    assert (head.height, head.width, head.age_us, head.sent_ns) == (4, 6, 2500, 3_500_000)
    assert wire.frame_of(head, pixels, arrived_ns=1_000_000) == frame


def test_numbers_of_a_foreign_type_are_named_by_the_sender() -> None:
    with pytest.raises(WireError, match="cannot encode FeatureRecord"):
        wire.encode(feature(captured_at_us=np.int64(3)))
