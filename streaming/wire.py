"""Messages between the processes: bytes <-> types. Whatever is not exactly ours raises `WireError`, nothing else.

A message is `b"cv"`, one version byte, one MessagePack map with a `type`. A frame has a second part: its pixels, raw.
Sizes are checked before they are used; what a peer claims is never allocated before it is checked.
"""

import re
from typing import Annotated, Final, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from streaming.errors import WireError
from streaming.frames import DROP_CAUSES, CaptureTime, ClockSource, Frame, FrameSpec, Since
from streaming.records import (
    FeatureRecord,
    FidelityRecord,
    HeldRecord,
    ModelDescriptor,
    Record,
    StateRecord,
    WorkerStats,
)

WIRE_VERSION: Final = 1
PREFIX: Final = b"cv" + bytes([WIRE_VERSION])
MAX_SIDE_PX: Final = 4096
MAX_MESSAGE_BYTES: Final = 64 << 20
"""The largest part that a socket accepts; 4096 x 4096 x 3 bytes fit."""
MAX_CONTROL_BYTES: Final = 64 << 10
MAX_RECORD_BYTES: Final = 1 << 20
MAX_DIM: Final = 1 << 16
MAX_CAMERAS: Final = 256
"""Cameras of one capture process."""
MAX_SEQ: Final = (1 << 53) - 1
MAX_INT: Final = (1 << 63) - 1
MAX_PACE_US: Final = 3_600_000_000
NO_FRAME: Final = -1
"""As a `frame_seq`: none yet."""

CAMERA_ID: Final = r"\A[a-z0-9_-]{1,64}\Z"
WORKER_ID: Final = r"\A[A-Za-z0-9._-]{1,64}\Z"

Camera = Annotated[str, Meta(pattern=CAMERA_ID)]
Worker = Annotated[str, Meta(pattern=WORKER_ID)]
Text = Annotated[str, Meta(max_length=256)]
Seq = Annotated[int, Meta(ge=0, le=MAX_SEQ)]
LastSeq = Annotated[int, Meta(ge=NO_FRAME, le=MAX_SEQ)]
Token = Annotated[int, Meta(ge=1, le=MAX_INT)]
Nanoseconds = Annotated[int, Meta(ge=0, le=MAX_INT)]
Microseconds = Annotated[int, Meta(ge=0, le=MAX_SEQ)]
Side = Annotated[int, Meta(ge=1, le=MAX_SIDE_PX)]


class Hello(msgspec.Struct, tag="hello", frozen=True, forbid_unknown_fields=True):
    """Capture to encoder, until welcomed and then every second: I am here, and this is the last that I sent."""

    worker: Worker
    incarnation: Token
    """Random at each start of the worker."""
    version: Text
    host: Text
    """Durations of CLOCK_MONOTONIC compare only between processes of the same host."""
    cameras: Annotated[dict[Camera, LastSeq], Meta(max_length=MAX_CAMERAS)]
    """camera -> the last `frame_seq` that was sent; what the encoder has not seen up to there was lost on the way."""
    echo_ns: Nanoseconds = 0
    """`sent_ns` of the newest message that came from the encoder (0: none), and how long ago that was."""
    echo_age_us: Microseconds = 0


class Welcome(msgspec.Struct, tag="welcome", frozen=True, forbid_unknown_fields=True):
    """Encoder to capture, on each Hello: the picture that my model wants. A new `epoch` voids all frames in flight."""

    epoch: Token
    spec: FrameSpec
    model_id: Text
    sent_ns: Nanoseconds


class FrameHeader(msgspec.Struct, tag="frame", frozen=True, forbid_unknown_fields=True):
    """All of a `Frame` but its pixels, which follow as the second part: height x width x 3 bytes of RGB."""

    camera: Camera
    frame_seq: Seq
    height: Side
    width: Side
    pts_us: Annotated[int, Meta(ge=-MAX_SEQ, le=MAX_SEQ)]
    captured_at_us: Microseconds
    clock: ClockSource
    captured_error_us: Microseconds
    arrived_ns: Nanoseconds
    decode_us: Microseconds
    convert_us: Microseconds
    wait_us: Microseconds
    since: Since
    reset: bool
    lossless: bool
    epoch: Token
    sent_ns: Nanoseconds
    age_us: Microseconds
    """Time since arrival when it was sent: the only duration that means something on another host."""
    echo_ns: Nanoseconds = 0
    """As in Hello."""
    echo_age_us: Microseconds = 0


class Tail(msgspec.Struct, tag="tail", frozen=True, forbid_unknown_fields=True):
    """Frames up to and including `up_to_seq` are accounted for by `since` alone: none of them was sent."""

    camera: Camera
    up_to_seq: Seq
    since: Since


class Ack(msgspec.Struct, tag="ack", frozen=True, forbid_unknown_fields=True):
    """Encoder to capture, absolute and repeated: frames up to `up_to_seq` are no longer in flight (-1: none yet)."""

    epoch: Token
    incarnation: Token
    camera: Camera
    up_to_seq: LastSeq
    pace_us: Annotated[int, Meta(ge=0, le=MAX_PACE_US)]
    """Least interval between two frames of this camera; 0: no limit."""
    sent_ns: Nanoseconds


class Bye(msgspec.Struct, tag="bye", frozen=True, forbid_unknown_fields=True):
    """Capture to encoder: I stop of my own will."""

    worker: Worker


ToEncoder = Hello | FrameHeader | Tail | Bye | StateRecord | WorkerStats
ToCapture = Welcome | Ack
ToPublisher = Record | Tail
Message = ToEncoder | ToCapture | ToPublisher

M = TypeVar("M", bound=Message)

_ENCODER = msgspec.msgpack.Encoder()
_TO_ENCODER: msgspec.msgpack.Decoder[ToEncoder] = msgspec.msgpack.Decoder(ToEncoder)
_TO_CAPTURE: msgspec.msgpack.Decoder[ToCapture] = msgspec.msgpack.Decoder(ToCapture)
_TO_PUBLISHER: msgspec.msgpack.Decoder[ToPublisher] = msgspec.msgpack.Decoder(ToPublisher)
_CAMERA = re.compile(CAMERA_ID)


def encode(message: Message) -> bytes:
    """The bytes of one message. Raises WireError on what the other end would refuse."""
    _check(message)
    try:
        return PREFIX + _ENCODER.encode(message)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as exc:
        raise WireError(f"cannot encode {type(message).__name__}: {exc}") from exc


def decode_to_encoder(data: bytes | memoryview) -> ToEncoder:
    """What a capture process may say to an encoder. Raises WireError on anything else."""
    return _decode(_TO_ENCODER, data, MAX_CONTROL_BYTES)


def decode_to_capture(data: bytes | memoryview) -> ToCapture:
    """What an encoder may say to a capture process. Raises WireError on anything else."""
    return _decode(_TO_CAPTURE, data, MAX_CONTROL_BYTES)


def decode_record(data: bytes | memoryview) -> ToPublisher:
    """What an encoder may hand to the publisher. Raises WireError on anything else."""
    return _decode(_TO_PUBLISHER, data, MAX_RECORD_BYTES)


def _decode(decoder: msgspec.msgpack.Decoder[M], data: bytes | memoryview, max_bytes: int) -> M:
    body = _body(data, max_bytes)
    try:
        message = decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, MemoryError) as exc:
        raise WireError(f"expected a message of wire version {WIRE_VERSION}, got {len(data)} bytes: {exc}") from exc
    _check(message)
    return message


def _body(data: bytes | memoryview, max_bytes: int) -> memoryview:
    if len(data) > max_bytes:
        raise WireError(f"expected at most {max_bytes} bytes, got {len(data)}")
    view = memoryview(data)
    if len(data) <= len(PREFIX) or view[:2] != PREFIX[:2]:
        raise WireError(f"expected a message that begins with {PREFIX[:2]!r}, got {bytes(view[:8])!r}")
    if view[2] != WIRE_VERSION:
        raise WireError(f"expected wire version {WIRE_VERSION}, got {view[2]}: both ends need the same camvec version")
    return view[len(PREFIX) :]


def header_of(frame: Frame, *, epoch: int, now_ns: int, echo_ns: int = 0, echo_age_us: int = 0) -> FrameHeader:
    """The first part of a frame's message; `frame.pixels` is the second. Raises WireError if they cannot be sent."""
    pixels = frame.pixels
    fits = pixels.ndim == 3 and pixels.shape[2] == 3 and max(pixels.shape) <= MAX_SIDE_PX and min(pixels.shape) > 0
    if not fits or pixels.dtype != np.uint8 or not pixels.flags.c_contiguous:
        raise WireError(
            f"expected contiguous uint8 pixels of (height, width, 3) up to {MAX_SIDE_PX}, "
            f"got {pixels.dtype} {pixels.shape} of camera {frame.camera!r}"
        )
    return FrameHeader(
        camera=frame.camera,
        frame_seq=frame.frame_seq,
        height=pixels.shape[0],
        width=pixels.shape[1],
        pts_us=frame.pts_us,
        captured_at_us=frame.captured.at_us,
        clock=frame.captured.clock,
        captured_error_us=frame.captured.error_us,
        arrived_ns=frame.arrived_ns,
        decode_us=frame.decode_us,
        convert_us=frame.convert_us,
        wait_us=frame.wait_us,
        since=frame.since,
        reset=frame.reset,
        lossless=frame.lossless,
        epoch=epoch,
        sent_ns=now_ns,
        age_us=max(0, now_ns - frame.arrived_ns) // 1000,
        echo_ns=echo_ns,
        echo_age_us=echo_age_us,
    )


def frame_of(header: FrameHeader, pixels: NDArray[np.uint8], *, arrived_ns: int) -> Frame:
    """The frame of a header and its (height, width, 3) pixels; `arrived_ns` in the clock of this host."""
    return Frame(
        camera=header.camera,
        frame_seq=header.frame_seq,
        pixels=pixels,
        pts_us=header.pts_us,
        captured=CaptureTime(header.captured_at_us, header.clock, header.captured_error_us),
        arrived_ns=arrived_ns,
        decode_us=header.decode_us,
        convert_us=header.convert_us,
        wait_us=header.wait_us,
        since=header.since,
        reset=header.reset,
        lossless=header.lossless,
    )


def _check(message: Message) -> None:
    """What the field types do not say: ranges of the records' numbers, ids, and sizes that must agree."""
    match message:
        case FrameHeader() | Tail():
            _check_since(message.since)
        case FeatureRecord():
            _check_feature(message)
        case HeldRecord():
            _check_camera(message.camera)
            _check_since(message.since)
            _check_numbers(message, message.frame_seq, message.held_since_us, message.captured_at_us, message.change)
        case StateRecord():
            _check_state(message)
        case WorkerStats():
            spans = [value for span in message.percentiles_ms.values() for value in span]
            used = (message.pid, message.cpu_percent, message.rss_mb)
            _check_numbers(message, *used, *spans, *message.counters.values())
        case FidelityRecord():
            _check_camera(message.camera)
            cosine = 1.0 + (message.cos_p5 or 0.0)
            errors = (message.fvu or 0.0, message.fvu_upper or 0.0, cosine)
            _check_numbers(message, *errors, message.audited, message.coverage, message.scale)
        case ModelDescriptor():
            _check_spec(message.frame_spec)
            _check_numbers(message, message.dim, message.full_pass_ms)
        case Welcome():
            _check_spec(message.spec)
        case _:
            pass


def _check_feature(record: FeatureRecord) -> None:
    _check_camera(record.camera)
    _check_since(record.since)
    times = (record.captured_at_us, record.captured_error_us, record.arrived_ns, record.deadline_ns)
    stages, quality = msgspec.structs.astuple(record.stages), msgspec.structs.astuple(record.quality)
    _check_numbers(record, record.frame_seq, record.norm, *times, *stages, *quality)
    if not -MAX_SEQ <= record.pts_us <= MAX_SEQ:
        raise WireError(f"expected a pts_us within {MAX_SEQ}, got {record.pts_us}")
    if not 1 <= record.dim <= MAX_DIM or len(record.vector) != 4 * record.dim:
        raise WireError(f"expected 4 x dim bytes of vector, dim 1 to {MAX_DIM}; got {len(record.vector)}, {record.dim}")
    if record.temporal is not None and (len(record.temporal) % 4 or len(record.temporal) > 4 * MAX_DIM):
        raise WireError(f"expected a temporal vector of 4-byte floats, got {len(record.temporal)} bytes")


def _check_state(state: StateRecord) -> None:
    _check_camera(state.camera)
    times = (state.since_us, state.next_retry_at_us or 0, state.last_frame_at_us or 0)
    _check_numbers(state, *times, state.captured, state.fps_in, *state.size, state.repaired_pts, state.reconnects)


def _check_camera(camera: str) -> None:
    if not _CAMERA.match(camera):
        raise WireError(f"expected a camera id of a-z, 0-9, _ and -, up to 64 long, got {camera[:80]!r}")


def _check_numbers(message: Message, *numbers: float) -> None:
    # A NaN fails both comparisons.
    if not all(0 <= number <= MAX_INT for number in numbers):
        wrong = next(number for number in numbers if not 0 <= number <= MAX_INT)
        raise WireError(f"expected numbers from 0 to {MAX_INT} in {type(message).__name__}, got {wrong}")


def _check_since(since: Since) -> None:
    dropped = since.dropped
    if since.held < 0 or since.held > MAX_SEQ:
        raise WireError(f"expected 0 to {MAX_SEQ} frames held, got {since.held}")
    for cause, count in dropped.items():
        if cause not in DROP_CAUSES:
            raise WireError(f"expected drop causes {', '.join(DROP_CAUSES)}, got {cause[:40]!r}")
        if not 0 <= count <= MAX_SEQ:
            raise WireError(f"expected 0 to {MAX_SEQ} frames dropped as {cause}, got {count}")


def _check_spec(spec: FrameSpec) -> None:
    if not all(1 <= side <= MAX_SIDE_PX for side in spec.size_hw):
        raise WireError(f"expected a size_hw of 1 to {MAX_SIDE_PX}, got {spec.size_hw}")
