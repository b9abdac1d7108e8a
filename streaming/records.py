"""What encoder and capture hand to the publisher: plain messages, decoded and checked by msgspec."""

from typing import Literal

import msgspec

from streaming.errors import Reason
from streaming.frames import ClockSource, FrameSpec, Since

CameraStatus = Literal["connecting", "streaming", "stalled", "backoff", "auth_failed", "ended", "stopped"]


class Stages(msgspec.Struct, frozen=True):
    """Where the time of one frame went, microseconds; `publish` is added by the publisher, of its previous message."""

    decode_us: int = 0
    convert_us: int = 0
    wait_us: int = 0
    transfer_us: int = 0
    queue_us: int = 0
    encode_us: int = 0


class Quality(msgspec.Struct, frozen=True):
    """How this vector was made. `rung` is the input size in pixels; tokens are the model's units of work."""

    rung: int
    tokens_updated: int
    tokens_total: int
    cold: bool
    """A dense pass after a start, a cut or a reset: counted apart from the budget's hits."""
    change: float
    """Share of the picture that differs from the last encoded frame, 0 to 1."""


class FeatureRecord(msgspec.Struct, tag="feature"):
    """One encoded frame. `vector` is little-endian float32, unit length, `dim` values; `norm` restores the length."""

    camera: str
    frame_seq: int
    since: Since
    model_id: str
    """The slug in the topic."""
    model: str
    """The fingerprint."""
    dim: int
    vector: bytes
    norm: float
    pts_us: int
    captured_at_us: int
    clock: ClockSource
    captured_error_us: int
    arrived_ns: int
    deadline_ns: int
    stages: Stages
    quality: Quality
    cut: bool = False
    """The picture changed as a whole between this frame and the one encoded before it."""
    reset: bool = False
    temporal: bytes | None = None
    """Output of the temporal head, little-endian float32, when it is switched on."""
    lossless: bool = False
    """From a file read at the encoder's pace: the publisher queues it instead of keeping the newest only."""


class HeldRecord(msgspec.Struct, tag="held"):
    """Nothing new to say: the last vector still stands for `frame_seq`. Sent at most once a second a camera.

    `since` counts the frames up to and including `frame_seq`: this record itself is not one more.
    """

    camera: str
    frame_seq: int
    since: Since
    held_since_us: int
    captured_at_us: int
    change: float


class StateRecord(msgspec.Struct, tag="state"):
    """What a camera is doing, from its capture worker. No secret in any field."""

    camera: str
    state: CameraStatus
    reason: Reason | None
    detail: str
    since_us: int
    next_retry_at_us: int | None = None
    last_frame_at_us: int | None = None
    captured: int = 0
    """Frames of this camera since its account began: the last `frame_seq` + 1."""
    fps_in: float = 0.0
    codec: str = ""
    size: tuple[int, int] = (0, 0)
    """width, height as the camera sends it."""
    clock: ClockSource | None = None
    repaired_pts: int = 0
    reconnects: int = 0


class ModelDescriptor(msgspec.Struct, tag="model", frozen=True):
    """Which model the vectors come from; published retained. `fingerprint` covers weights, FrameSpec, pooling and head."""

    model_id: str
    fingerprint: str
    name: str
    dim: int
    trained: bool
    frame_spec: FrameSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: str
    temporal_of: str | None = None
    """For a temporal output: the model id of the frames it runs over."""
    text_space: str | None = None
    """The text encoder whose vectors can be compared with these; None if there is none."""
    full_pass_ms: float = 0.0
    """Median of a dense pass as measured at start on this machine."""


class WorkerStats(msgspec.Struct, tag="worker"):
    """The health of one process, every few seconds. `percentiles_ms` maps a stage to (p50, p95, p99)."""

    worker: str
    pid: int
    cpu_percent: float
    rss_mb: float
    percentiles_ms: dict[str, tuple[float, float, float]] = {}
    counters: dict[str, int] = {}


class FidelityRecord(msgspec.Struct, tag="fidelity", frozen=True):
    """How far a camera's vectors are from those of full passes of every frame, as audits measured it."""

    camera: str
    fvu: float | None
    """Fraction of variance unexplained; None, as the next two: nothing has been audited yet."""
    fvu_upper: float | None
    """Above the true one in four of five cases."""
    cos_p5: float | None
    """Cosine to the full pass that 95 % of the audited frames exceed."""
    audited: int
    coverage: float
    """Audited over drawn, 0 to 1."""
    scale: float
    """Of the thresholds: 1 as configured, smaller is more exact."""
    gates: Literal["on", "off"]
    """Off: the vectors were far from what they should be; every frame gets a full pass."""


Record = FeatureRecord | HeldRecord | StateRecord | ModelDescriptor | WorkerStats | FidelityRecord
