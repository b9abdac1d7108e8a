import contextlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import WireError
from streaming.frames import Since
from streaming.message import (
    MAX_BYTES,
    MAX_INT,
    FeatureMessage,
    Format,
    Heartbeat,
    Ledger,
    Message,
    MessageQuality,
    decode,
    encode,
    to_wire_vector,
    vector_of,
)

counts = st.integers(0, MAX_INT)
ids = st.from_regex(r"[a-z0-9_-]{1,64}", fullmatch=True)
sinces = st.builds(Since, counts, st.dictionaries(st.sampled_from(["late", "superseded", "newer_cause"]), counts))
heads = {
    "v": st.just(1),
    "session": st.text(min_size=1, max_size=32),
    "camera": ids,
    "seq": counts,
    "frame_seq": counts,
    "since": sinces,
    "model": st.text(min_size=1, max_size=64),
    "captured_at": counts,
    "published_at": counts,
}
floats = st.floats(-1, 1, width=16)


@st.composite
def features(draw: st.DrawFn) -> FeatureMessage:
    values, dtype = draw(st.lists(floats, min_size=1, max_size=40)), draw(st.sampled_from(["f2", "f4"]))
    return FeatureMessage(
        **{name: draw(strategy) for name, strategy in heads.items()},
        dim=len(values),
        dtype=dtype,
        norm=draw(st.floats(0, 1e9)),
        vector=np.array(values, dtype="<" + dtype).tobytes(),
        output=draw(st.sampled_from(["frame", "temporal"])),
        clock=draw(st.sampled_from(["rtcp", "driver", "arrival", "scene"])),
        captured_error_us=draw(counts),
        deadline=draw(counts),
        ledger=draw(st.builds(Ledger, **dict.fromkeys(Ledger.__struct_fields__, counts))),
        quality=MessageQuality(
            rung=224,
            tokens_updated=draw(counts),
            tokens_total=draw(counts),
            cold=draw(st.booleans()),
            change=draw(st.floats(0, 1)),
            budget_met=draw(st.booleans()),
        ),
        pts_us=draw(st.integers(-MAX_INT, MAX_INT)),
        cut=draw(st.booleans()),
        reset=draw(st.booleans()),
        spooled=draw(st.booleans()),
    )


heartbeats = st.one_of(
    st.builds(Heartbeat, **heads, held_since=counts),
    st.builds(Heartbeat, **heads, tail=st.just(True)),
)


def feature(**changes: Any) -> FeatureMessage:
    fields: dict[str, Any] = {
        "v": 1,
        "session": "s1",
        "camera": "front",
        "seq": 0,
        "frame_seq": 0,
        "since": Since(),
        "model": "f00d",
        "captured_at": 1,
        "published_at": 2,
        "dim": 2,
        "dtype": "f4",
        "norm": 1.0,
        "vector": np.array([0.6, 0.8], "<f4").tobytes(),
        "output": "frame",
        "clock": "arrival",
        "captured_error_us": 0,
        "deadline": 3,
        "ledger": Ledger(**dict.fromkeys(Ledger.__struct_fields__, 0)),
        "quality": MessageQuality(rung=224, tokens_updated=1, tokens_total=1, cold=False, change=0.0, budget_met=True),
        "pts_us": 0,
        "cut": False,
        "reset": False,
    }
    return FeatureMessage(**{**fields, **changes})


def as_map(message: Message) -> dict[str, Any]:
    return msgspec.to_builtins(message, builtin_types=(bytes,))


@given(message=st.one_of(features(), heartbeats), form=st.sampled_from(["msgpack", "json"]))
def test_decode_is_the_inverse_of_encode(message: Message, form: Format) -> None:
    assert decode(encode(message, form)) == message


@given(data=st.binary(max_size=300))
def test_decode_of_any_bytes_raises_only_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


@given(message=st.one_of(features(), heartbeats), form=st.sampled_from(["msgpack", "json"]), draw=st.data())
def test_decode_of_mutated_bytes_raises_only_wire_error(message: Message, form: Format, draw: st.DataObject) -> None:
    data = bytearray(encode(message, form))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(0, len(data)))
    with contextlib.suppress(WireError):
        decode(bytes(data[cut:] if draw.draw(st.booleans()) else data))


def test_decode_of_deep_nesting_raises_only_wire_error() -> None:
    with pytest.raises(WireError):
        decode(b"\x82\xa1v\x01\xa1x" + b"\x91" * 100_000 + b"\x01")
    with pytest.raises(WireError):
        decode(b'{"v":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@pytest.mark.parametrize("field", [name for name in FeatureMessage.__struct_fields__ if name != "spooled"])
def test_feature_without_a_required_field_is_refused(field: str) -> None:
    message = as_map(feature())
    del message[field]
    with pytest.raises(WireError, match=field):
        decode(msgspec.msgpack.encode(message))


@pytest.mark.parametrize("field", ["session", "seq", "since", "model", "published_at"])
def test_heartbeat_without_a_required_field_is_refused(field: str) -> None:
    message = as_map(feature()) | {"held_since": 5}
    del message[field]
    with pytest.raises(WireError, match=field):
        decode(msgspec.msgpack.encode(message))


def test_unknown_fields_are_ignored() -> None:
    message = feature()
    assert decode(msgspec.msgpack.encode(as_map(message) | {"added_later": {"deep": [1, b"x"]}})) == message


def test_a_higher_version_is_refused_with_a_sentence_whatever_else_it_holds() -> None:
    with pytest.raises(WireError, match="expected a feature message of version 1, got 2: a newer camvec"):
        decode(msgspec.msgpack.encode({"v": 2, "other": "shape"}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vector": b"123"}, r"expected 8 bytes of vector \(2 of f4\), got 3"),
        ({"dtype": "f2"}, "expected 4 bytes of vector"),
        ({"vector": np.array([np.nan, 1], "<f4").tobytes()}, "finite numbers from camera 'front'"),
        ({"norm": float("inf")}, "finite norm"),
        ({"camera": "../etc"}, "camera"),
        ({"since": Since(held=-1)}, "counts of frames"),
        ({"since": Since(dropped={"late": -1})}, "counts of frames"),
        ({"since": Since(dropped={str(n): 0 for n in range(99)})}, "counts of frames"),
        ({"seq": -1}, "seq"),
        ({"captured_at": 1 << 60}, "captured_at"),
        ({"clock": "sundial"}, "clock"),
        ({"dim": 0, "vector": b""}, "dim"),
    ],
)
def test_an_impossible_value_is_refused_and_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(WireError, match=said):
        decode(msgspec.msgpack.encode(as_map(feature(**change))))


def test_json_that_overflows_its_dtype_is_refused() -> None:
    text = encode(feature(dtype="f2", vector=np.array([0.5, 0.5], "<f2").tobytes()), "json")
    with pytest.raises(WireError, match="finite"):
        decode(text.replace(b"[0.5,0.5]", b"[1e9,0.5]"))


def test_an_oversized_payload_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="at most"):
        decode(b"\x81" * (MAX_BYTES + 1))


def test_encode_refuses_what_is_too_large_for_the_broker() -> None:
    with pytest.raises(WireError, match="use msgpack or a smaller dim"):
        encode(feature(dim=30_000, vector=np.full(30_000, 0.123456789, "<f4").tobytes()), "json")


def test_to_wire_vector_refuses_what_is_not_finite() -> None:
    for bad in (np.inf, np.nan, 1e30, 70_000):
        with pytest.raises(WireError, match="numbers within 1000, got"):
            to_wire_vector(np.array([1, bad], "<f4").tobytes(), "f2")
    with pytest.raises(WireError, match="1 to 65536 numbers, got 0"):
        to_wire_vector(b"", "f2")


def test_float16_keeps_the_direction_to_one_part_in_a_million() -> None:
    rng = np.random.default_rng(0)
    worst = 1.0
    for dim in (192, 512, 1280):
        exact = rng.standard_normal((200, dim)).astype(np.float32)
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        for row in exact:
            message = feature(dim=dim, dtype="f2", vector=to_wire_vector(row.astype("<f4").tobytes(), "f2"))
            sent = vector_of(decode(encode(message))).astype(np.float64)
            worst = min(worst, float(sent @ row.astype(np.float64) / np.linalg.norm(sent) / np.linalg.norm(row)))
    assert worst > 1 - 1e-6
