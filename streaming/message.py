"""One vector as it travels over MQTT: `FeatureMessage` / `Heartbeat` <-> one MessagePack (or JSON) map. Pure.

The contract is docs/mqtt.md. Fields are only added, unknown ones are ignored, anything else raises `VERSION`.
What is missing or impossible raises WireError; the decoder invents nothing.
"""

import math
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from streaming.errors import WireError
from streaming.frames import ClockSource, Since

VERSION: Final = 1
MAX_BYTES: Final = 255 << 10
"""The largest payload: with its topic and properties it fits the 256 KiB packets of the embedded broker."""
MAX_DIM: Final = 65_536
MAX_VALUE: Final = 1000.0
"""In a vector to be sent; of unit length, none is above 1."""
MAX_INT: Final = (1 << 53) - 1
"""The largest integer that JavaScript keeps exactly."""
MAX_CAUSES: Final = 64
_FLOAT32: Final = np.dtype("<f4")
_FLOAT16: Final = np.dtype("<f2")

Format = Literal["msgpack", "json"]
Dtype = Literal["f2", "f4"]
ITEMSIZE: Final[dict[Dtype, int]] = {"f2": 2, "f4": 4}
CONTENT_TYPE: Final[dict[Format, str]] = {"msgpack": "application/msgpack", "json": "application/json"}

Id = Annotated[str, Meta(pattern=r"\A[a-z0-9_-]{1,64}\Z")]
Text = Annotated[str, Meta(min_length=1, max_length=256)]
Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time went, microseconds. `publish` is that of the camera's previous message: this one is not sent yet."""

    decode: Count
    convert: Count
    wait: Count
    transfer: Count
    queue: Count
    encode: Count
    publish: Count


class MessageQuality(msgspec.Struct, frozen=True, kw_only=True):
    """How the vector was made; see `streaming.records.Quality`. `budget_met`: as known when it was handed to the socket."""

    rung: Count
    tokens_updated: Count
    tokens_total: Count
    cold: bool
    change: Share
    budget_met: bool


class _Head(msgspec.Struct, kw_only=True):
    """What both messages begin with. Times are Unix microseconds."""

    v: int
    session: Text
    """New at each start of the publisher; `seq` counts within it."""
    camera: Id
    seq: Count
    """Messages on this topic: 0, 1, 2, ... without gaps, so a gap is a message that was lost on the way."""
    frame_seq: Count
    since: Since
    """What became of the frames after the last message on this topic: see docs/mqtt.md for the sum."""
    model: Text
    """Fingerprint of the model."""
    captured_at: Count
    published_at: Count


class FeatureMessage(_Head, kw_only=True):
    """One vector. In MessagePack `vector` is `dim` little-endian floats of `dtype`, unit length."""

    dim: Annotated[int, Meta(ge=1, le=MAX_DIM)]
    dtype: Dtype
    norm: Annotated[float, Meta(ge=0)]
    vector: bytes
    output: Literal["frame", "temporal"]
    """What the vector describes: this frame, or the temporal head's view of the last frames."""
    clock: ClockSource
    captured_error_us: Count
    deadline: Count
    ledger: Ledger
    quality: MessageQuality
    pts_us: Annotated[int, Meta(ge=-MAX_INT, le=MAX_INT)]
    cut: bool
    reset: bool
    spooled: bool = False
    """Recorded while the broker was away and sent later: outside of the chain of `seq` and `since`."""


class Heartbeat(_Head, kw_only=True, omit_defaults=True):
    """No vector. The picture is held, unchanged, since `held_since`; or (`tail`) nothing more of the camera is coming.

    `since` counts frames up to and including `frame_seq`.
    """

    held_since: Count | None = None
    tail: bool = False


class _JsonFeature(FeatureMessage, kw_only=True):
    vector: list[float]  # type: ignore[assignment]  # the one field that differs between the two forms


class _Kind(msgspec.Struct):
    """The fields by which one decides how to read the rest."""

    v: int
    held_since: int | None = None
    tail: bool = False

    @property
    def is_heartbeat(self) -> bool:
        return self.held_since is not None or self.tail


Message = FeatureMessage | Heartbeat

_ERRORS: Final = (msgspec.MsgspecError, UnicodeError, ValueError, OverflowError, RecursionError, MemoryError)
_PACK: Final = msgspec.msgpack.Encoder()
_JSON: Final = msgspec.json.Encoder()
_KIND: Final = msgspec.msgpack.Decoder(_Kind)
_JSON_KIND: Final = msgspec.json.Decoder(_Kind)
_HEARTBEAT: Final = msgspec.msgpack.Decoder(Heartbeat)
_JSON_HEARTBEAT: Final = msgspec.json.Decoder(Heartbeat)
_FEATURE: Final = msgspec.msgpack.Decoder(FeatureMessage)
_JSON_FEATURE: Final = msgspec.json.Decoder(_JsonFeature)


def to_wire_vector(vector: bytes, dtype: Dtype) -> bytes:
    """Little-endian float32 bytes -> the same values in `dtype`. Raises WireError on what `decode` would refuse."""
    values = np.frombuffer(vector, _FLOAT32)
    if not 1 <= len(values) <= MAX_DIM:
        raise WireError(f"expected a vector of 1 to {MAX_DIM} numbers, got {len(values)}")
    # A NaN fails every comparison, and nothing within these bounds overflows a half. Of unit length as a rule: one product.
    with np.errstate(over="ignore"):
        square = values.dot(values)
    if not square <= MAX_VALUE:
        low, high = float(np.minimum.reduce(values)), float(np.maximum.reduce(values))
        if not (low >= -MAX_VALUE and high <= MAX_VALUE):
            raise WireError(f"expected a vector of numbers within {MAX_VALUE:g}, got {low:g} to {high:g}")
    return vector if dtype == "f4" else values.astype(_FLOAT16).tobytes()


def vector_of(message: FeatureMessage) -> NDArray[np.float32]:
    """The (dim,) float32 vector of a message: a copy that may be written to. Length as sent: 1 up to rounding."""
    return np.frombuffer(message.vector, dtype="<" + message.dtype).astype(np.float32)


def encode(message: Message, form: Format = "msgpack") -> bytes:
    """The payload. Raises WireError on what `decode` would refuse for its size."""
    if form == "json":
        data = _JSON.encode(_as_json(message) if isinstance(message, FeatureMessage) else message)
    else:
        data = _PACK.encode(message)
    if len(data) > MAX_BYTES:
        raise WireError(
            f"expected a message of at most {MAX_BYTES} bytes, got {len(data)}: use msgpack or a smaller dim"
        )
    return data


def decode(data: bytes) -> Message:
    """A payload of either form -> its message, checked. Raises WireError, and nothing else, on anything else."""
    if len(data) > MAX_BYTES:
        raise WireError(f"expected at most {MAX_BYTES} bytes, got {len(data)}")
    try:
        # A JSON object begins with `{`, which in MessagePack is the number 123.
        kind, message = _from_json(data) if data[:1] == b"{" else _from_msgpack(data)
    except _ERRORS as exc:
        raise WireError(f"expected a feature message of version {VERSION}, got {len(data)} bytes: {exc}") from exc
    if message is None:
        raise WireError(f"expected a feature message of version {VERSION}, got {kind.v}: a newer camvec can read it")
    if isinstance(message, FeatureMessage):
        _check_vector(message)
    _check_since(message.since)
    return message


def _from_msgpack(data: bytes) -> tuple[_Kind, Message | None]:
    kind = _KIND.decode(data)
    if kind.v != VERSION:
        return kind, None
    return kind, _HEARTBEAT.decode(data) if kind.is_heartbeat else _FEATURE.decode(data)


def _from_json(data: bytes) -> tuple[_Kind, Message | None]:
    kind = _JSON_KIND.decode(data)
    if kind.v != VERSION:
        return kind, None
    if kind.is_heartbeat:
        return kind, _JSON_HEARTBEAT.decode(data)
    message = _JSON_FEATURE.decode(data)
    fields = msgspec.structs.asdict(message)
    with np.errstate(over="ignore"):  # too large for the dtype becomes inf, which the check names
        fields["vector"] = np.array(message.vector, dtype="<" + message.dtype).tobytes()
    return kind, FeatureMessage(**fields)


def _check_vector(message: FeatureMessage) -> None:
    expected = message.dim * ITEMSIZE[message.dtype]
    if len(message.vector) != expected:
        raise WireError(
            f"expected {expected} bytes of vector ({message.dim} of {message.dtype}), got {len(message.vector)}"
        )
    if not math.isfinite(message.norm):
        raise WireError(f"expected a finite norm, got {message.norm}")
    if not np.isfinite(np.frombuffer(message.vector, dtype="<" + message.dtype)).all():
        raise WireError(f"expected a vector of finite numbers from camera {message.camera!r}")


def _check_since(since: Since) -> None:
    counts = (since.held, *since.dropped.values())
    if len(counts) > MAX_CAUSES or not all(0 <= count <= MAX_INT for count in counts):
        raise WireError(
            f"expected at most {MAX_CAUSES} counts of frames from 0 to {MAX_INT} in since, got {counts[:8]}"
        )


def _as_json(message: FeatureMessage) -> _JsonFeature:
    # The fewest digits from which the value of this dtype can be restored exactly.
    digits = ".5g" if message.dtype == "f2" else ".9g"
    fields = msgspec.structs.asdict(message)
    fields["vector"] = [float(format(value, digits)) for value in vector_of(message).tolist()]
    return _JsonFeature(**fields)
