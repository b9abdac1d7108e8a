"""What a subscriber gets: features, states, models, figures. Plain data, decoded and checked."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from streaming.chain import Verdict
from streaming.errors import WireError
from streaming.frames import Since
from streaming.message import FeatureMessage, Heartbeat, Ledger, MessageQuality, vector_of

T = TypeVar("T")
MAX_JSON_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Feature:
    """One vector of one camera, and everything that is known about how it came here."""

    node: str
    camera: str
    model_id: str
    model: str
    """Fingerprint: vectors of different fingerprints cannot be compared."""
    vector: NDArray[np.float32] = field(repr=False)
    """(dim,) float32, unit length."""
    norm: float
    """Its length before that."""
    output: str
    """`frame` or `temporal`."""
    session: str
    seq: int
    frame_seq: int
    since: Since
    """What became of the frames between the message before and this one."""
    captured_at: datetime
    clock: str
    """Who says so: rtcp, driver, arrival or scene."""
    captured_error_us: int
    published_at: datetime
    deadline: datetime
    received_at: datetime
    age_s: float
    """From the capture to here, by the wall clocks of both hosts: as good as they agree."""
    late: bool
    """Received after its deadline, by the same clocks."""
    ledger: Ledger
    quality: MessageQuality
    pts_us: int
    cut: bool
    reset: bool
    spooled: bool
    """Held back while the broker was away: old, and outside of the order."""
    held_since: datetime | None
    """Set on a heartbeat: the picture has not changed, so this is the last vector again."""
    gap: int
    """Messages that are missing right before this one."""
    missing_frames: int
    """Frames of which nothing is known therefore."""
    duplicate: bool
    restart: bool
    """The publisher began a new session, or the camera's frame numbers began anew."""


class CameraState(msgspec.Struct, kw_only=True):
    """What a camera is doing; docs/mqtt.md has all states and reasons. Times are Unix microseconds."""

    v: int
    camera: str
    state: str
    """`removed`: its retained state was cleared."""
    node: str = ""
    session: str = ""
    at: int = 0
    reason: str | None = None
    detail: str = ""
    since: int = 0
    next_retry_at: int | None = None
    last_frame_at: int | None = None
    captured: int = 0
    fps_in: float = 0.0
    fps_out: float = 0.0
    lag_ms: float = 0.0
    accounted_upto: int = -1
    encoded: int = 0
    published: int = 0
    held: int = 0
    dropped: dict[str, int] = {}
    duplicates: int = 0
    restarts: int = 0
    codec: str = ""
    size: tuple[int, int] = (0, 0)
    clock: str | None = None
    repaired_pts: int = 0
    reconnects: int = 0
    fidelity: dict[str, float | int | str | None] | None = None
    """How far the vectors are from full passes, as audited: docs/mqtt.md; None without audits."""


class Model(msgspec.Struct, kw_only=True):
    """Where vectors come from."""

    v: int
    model_id: str
    fingerprint: str
    name: str
    dim: int
    trained: bool
    """False: random weights, the vectors mean nothing."""
    node: str = ""
    pooling: str = ""
    frame_spec: dict[str, Any] = {}
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    temporal_of: str | None = None
    text_space: str | None = None
    full_pass_ms: float = 0.0
    dtype: str = ""
    normalised: bool = True


@dataclass(frozen=True, slots=True)
class Figures:
    """A JSON payload of a node as it came: `stats`, or a `gap`."""

    node: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a node is there: `online`, `offline` (it vanished) or `stopped`."""

    node: str
    status: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where and when a message came."""

    node: str
    model_id: str
    received_us: int
    verdict: Verdict


def feature_of(message: FeatureMessage, arrival: Arrival) -> Feature:
    """A decoded message as users see it; the vector is brought to exactly unit length."""
    vector = vector_of(message)
    length = float(np.linalg.norm(vector))
    if length:
        vector /= length
    return Feature(
        node=arrival.node,
        camera=message.camera,
        model_id=arrival.model_id,
        model=message.model,
        vector=vector,
        norm=message.norm,
        output=message.output,
        clock=message.clock,
        captured_error_us=message.captured_error_us,
        deadline=to_time(message.deadline),
        late=arrival.received_us > message.deadline,
        ledger=message.ledger,
        quality=message.quality,
        pts_us=message.pts_us,
        cut=message.cut,
        reset=message.reset,
        spooled=message.spooled,
        held_since=None,
        **_of_both(message, arrival),
    )


def held_feature(last: Feature, message: Heartbeat, arrival: Arrival) -> Feature:
    """The last vector again, at a later moment."""
    fields = {name: getattr(last, name) for name in Feature.__slots__} | _of_both(message, arrival)
    held_since = None if message.held_since is None else to_time(message.held_since)
    return Feature(
        **{**fields, "held_since": held_since, "late": False, "cut": False, "reset": False, "spooled": False}
    )


def _of_both(message: FeatureMessage | Heartbeat, arrival: Arrival) -> dict[str, Any]:
    verdict = arrival.verdict
    return {
        "session": message.session,
        "seq": message.seq,
        "frame_seq": message.frame_seq,
        "since": message.since,
        "captured_at": to_time(message.captured_at),
        "published_at": to_time(message.published_at),
        "received_at": to_time(arrival.received_us),
        "age_s": (arrival.received_us - message.captured_at) / 1e6,
        "gap": verdict.gap,
        "missing_frames": verdict.missing_frames,
        "duplicate": verdict.duplicate,
        "restart": verdict.restart,
    }


_STATE: Final = msgspec.json.Decoder(CameraState)
_MODEL: Final = msgspec.json.Decoder(Model)
_BODY: Final = msgspec.json.Decoder(dict[str, Any])


def state_of(node: str, camera: str, payload: bytes) -> CameraState:
    """The state of a camera; an empty payload is a camera that was removed. Raises WireError."""
    if not payload:
        return CameraState(v=1, node=node, camera=camera, state="removed")
    state = _decoded(_STATE, payload)
    state.node = node
    return state


def model_of(node: str, payload: bytes) -> Model | None:
    """A model; None if it was removed. Raises WireError."""
    if not payload:
        return None
    model = _decoded(_MODEL, payload)
    model.node = node
    return model


def figures_of(node: str, payload: bytes) -> Figures:
    """Any JSON object of a node. Raises WireError."""
    return Figures(node, _decoded(_BODY, payload))


def _decoded(decoder: msgspec.json.Decoder[T], payload: bytes) -> T:
    if len(payload) > MAX_JSON_BYTES:
        raise WireError(f"expected at most {MAX_JSON_BYTES} bytes of JSON, got {len(payload)}")
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError) as exc:
        raise WireError(f"expected a JSON object of this topic, got {len(payload)} bytes: {exc}") from exc


def to_time(unix_us: int) -> datetime:
    """Unix microseconds as an aware datetime; what no calendar holds becomes its last day."""
    try:
        return datetime.fromtimestamp(unix_us / 1e6, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC)
