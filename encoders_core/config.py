"""What can be set about the encoders: frozen data, checked when made, defaults in one place."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from encoders_core.errors import OptionError

QualityLevel = Literal["high_quality", "balanced", "fast"]
Priority = Literal["low", "normal", "high"]
TemporalKind = Literal["transformer", "lstm", "gru", "conv3d"]

QUALITY_TARGETS: Final[dict[QualityLevel, float]] = {"high_quality": 0.005, "balanced": 0.02, "fast": 0.05}
"""Fraction of variance unexplained (FVU) that holding frames may cost, by level."""


@dataclass(frozen=True)
class GateConfig:
    """When a frame may be held, that is, the last vector stand for it.

    `target_fvu`: allowed error of the held frames, sum |z' - z|^2 / sum |z - mean|^2 over time; 0 encodes every frame
    that differs in any pixel. `max_hold_s`: after this long even a still picture is encoded again. Of the frames that
    would be held, every `audit_first`-th is encoded all the same, to measure the error; the interval grows by one with
    each to `audit_every`.
    """

    target_fvu: float = 0.02
    max_hold_s: float = 30.0
    audit_first: int = 8
    audit_every: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.target_fvu < 1:
            raise OptionError(f"target_fvu: expected a number from 0 to below 1, got {self.target_fvu}")
        if self.max_hold_s <= 0:
            raise OptionError(f"max_hold_s: expected a positive number of seconds, got {self.max_hold_s}")
        if not 1 <= self.audit_first <= self.audit_every:
            raise OptionError(
                f"audit_first, audit_every: expected 1 <= first <= every, got {self.audit_first}, {self.audit_every}"
            )


@dataclass(frozen=True)
class AuditConfig:
    """How many frames are encoded once more, in full and in slack time, to measure the vectors that stood for them.

    `share` of all frames, drawn by a generator that starts at `seed`; at most `max_frames`, of `max_mb` together, wait.
    """

    share: float = 0.01
    seed: int = 0
    max_frames: int = 32
    max_mb: float = 16.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise OptionError(f"share: expected a number above 0 and up to 1, got {self.share}")
        if self.max_frames < 1 or self.max_mb <= 0:
            raise OptionError(f"max_frames, max_mb: expected positive numbers, got {self.max_frames}, {self.max_mb}")


@dataclass(frozen=True)
class TemporalConfig:
    """The temporal head: `depth` causal layers of `width` over the last `window` frames, each; a recurrence over them in all.

    `skipped` says what a held frame is to it: "hold": nothing, no step is made and its last output stands; "repeat": one
    more frame with the held vector; "dt": no step either, but the next one knows how many frames it is later. Dropped
    frames are never steps.
    """

    kind: TemporalKind = "transformer"
    window: int = 16
    depth: int = 2
    width: int = 256
    num_heads: int = 4
    skipped: Literal["hold", "repeat", "dt"] = "hold"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.window, self.depth, self.width, self.num_heads) < 1:
            raise OptionError(f"window, depth, width, num_heads: expected positive numbers, got {self}")
        if self.width % self.num_heads:
            raise OptionError(f"width: expected a multiple of num_heads ({self.num_heads}), got {self.width}")
        if self.skipped not in ("hold", "repeat", "dt"):
            raise OptionError(f"skipped: expected 'hold', 'repeat' or 'dt', got {self.skipped!r}")
        if self.kind not in get_args(TemporalKind):
            raise OptionError(f"kind: expected one of {', '.join(get_args(TemporalKind))}, got {self.kind!r}")
        if self.window < 2 and (self.kind != "transformer" or self.skipped == "dt"):
            raise OptionError(f"window: expected at least 2 frames for {self.kind} with {self.skipped!r}, got 1")
