"""What the realtime encoder gives back: vectors, and how each was made."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders_core.realtime.frame_gate import Reason


@dataclass(frozen=True, slots=True)
class StreamQuality:
    """How the vector of one frame came about. Tokens are the model's units of work."""

    reason: Reason
    """Why it was encoded, or "held"."""
    rung: int
    """Input size in pixels."""
    tokens_updated: int
    tokens_total: int
    cold: bool
    """A dense pass after a start, a cut or a reset."""
    change: float
    """Share of the picture that differs from the frame encoded before, 0 to 1."""
    cut: bool
    encode_us: int
    budget_met: bool

    @property
    def held(self) -> bool:
        """Nothing was computed: the vector is that of an earlier frame."""
        return self.reason == "held"


@dataclass(frozen=True, slots=True)
class StreamFeature:
    """One frame's vector. `vector` (D,) float32 has unit length, `norm` restores it."""

    camera: str
    vector: NDArray[np.float32]
    norm: float
    temporal: NDArray[np.float32] | None
    """(D,) float32 of unit length: the temporal head's output, when there is one."""
    quality: StreamQuality
    latency_ms: float
    """From arrival to this result."""
    tag: Any = None
    """What was handed over with the frame."""


@dataclass(frozen=True, slots=True)
class StreamFeatures:
    """The vectors of T frames in order; held frames repeat the vector that stands for them."""

    features: NDArray[np.float32]
    """(T, D), unit length."""
    norms: NDArray[np.float32]
    """(T,)"""
    held: NDArray[np.bool_]
    """(T,)"""
    temporal: NDArray[np.float32] | None
    """(T, D), unit length, or None without a temporal head."""
    latency_ms: NDArray[np.float32]
    """(T,)"""
    quality: tuple[StreamQuality, ...]


def stack(features: list[StreamFeature], dim: int, *, temporal: bool) -> StreamFeatures:
    """Single frames -> arrays over all of them; of no frame at all, arrays of length 0."""

    def rows(vectors: list[NDArray[np.float32] | None]) -> NDArray[np.float32]:
        return np.asarray([vector for vector in vectors if vector is not None], np.float32).reshape(-1, dim)

    return StreamFeatures(
        features=rows([one.vector for one in features]),
        norms=np.asarray([one.norm for one in features], np.float32),
        held=np.asarray([one.quality.held for one in features], np.bool_),
        temporal=rows([one.temporal for one in features]) if temporal else None,
        latency_ms=np.asarray([one.latency_ms for one in features], np.float32),
        quality=tuple(one.quality for one in features),
    )
