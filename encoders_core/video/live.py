"""An encoder of live streams from the words of `VideoEncoder.create_realtime`, mapped onto the pipeline's own."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

from encoders_core.config import QUALITY_TARGETS, QualityLevel, TemporalConfig
from encoders_core.errors import OptionError
from encoders_core.options import Schema, check_options
from encoders_core.realtime.frame_encoder import FrameEncoder, load_frame_encoder, sizes_px
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder

REALTIME_OPTIONS: Final[Schema] = {
    "latency_optimization": {
        "max_latency_ms": float,
        "frame_skipping": ("adaptive", "none"),
        "temporal_caching": bool,
    },
    "quality_vs_speed": {
        "quality_level": get_args(QualityLevel),
        "adaptive_resolution": bool,
        "motion_based_sampling": bool,
    },
}
"""What `create_realtime` knows."""

_BUFFER_SIZE: Final = 8
_STEPS_DOWN: Final[dict[QualityLevel, int | None]] = {"high_quality": 1, "balanced": 2, "fast": None}
"""How many sizes below its own the model may be brought to; None is all that it has."""


def create_realtime(
    config: Mapping[str, Any] | None = None,
    buffer_size: int | None = None,
    *,
    model: str | FrameEncoder = "efficientnet-lite0",
    clock: Callable[[], int] = time.monotonic_ns,
) -> RealtimeVideoEncoder:
    """A RealtimeVideoEncoder; `model` is a frame encoder, or the name of one with its trained weights.

    `latency_optimization`. `max_latency_ms` (100): the budget from a frame's arrival to its vector. `frame_skipping`:
    "adaptive" gives up frames that would be late, newest wins, and lets `motion_based_sampling` hold; "none" encodes every
    frame, in order, and the source waits. `temporal_caching` (True): what was computed for earlier frames is used for the
    next, in a temporal head over the last `buffer_size` frames (8), whose keys and values are kept, and, in a model that can,
    for the parts of a picture that have not changed; False: no head, and a full pass of each frame.

    `quality_vs_speed`. `quality_level` ("balanced"): the error that held frames may add up to (FVU .005, .02, .05 for
    high_quality, balanced, fast), together with what a model saves within a frame, and how many sizes down `adaptive_resolution` may go (1, 2, all). `adaptive_resolution`
    (False): smaller pictures while a pass is predicted to miss the budget; their vectors differ more from those of full
    pictures than held ones do, `quality.rung` of each result says which it was. `motion_based_sampling` (True with
    "adaptive"): frames without visible change are held, that is, the last vector stands for them.

    Raises OptionError for unknown words, and for combinations in which one would have no effect.
    """
    options = check_options(config or {}, REALTIME_OPTIONS, "realtime")
    latency, quality = options.get("latency_optimization", {}), options.get("quality_vs_speed", {})
    lossless = latency.get("frame_skipping", "adaptive") == "none"
    level: QualityLevel = quality.get("quality_level", "balanced")
    gated, scaled = quality.get("motion_based_sampling", not lossless), quality.get("adaptive_resolution", False)
    _check_combination(lossless=lossless, gated=gated, scaled=scaled, named_level="quality_level" in quality)
    frame_encoder = load_frame_encoder(model) if isinstance(model, str) else model
    return RealtimeVideoEncoder(
        frame_encoder,
        budget_ms=_budget_ms(latency.get("max_latency_ms", 100.0)),
        gate=level if gated else None,
        temporal=_temporal(buffer_size, cached=latency.get("temporal_caching", True)),
        rungs=_rungs(frame_encoder, level) if scaled else None,
        lossless=lossless,
        target_fvu=QUALITY_TARGETS[level],
        caching=latency.get("temporal_caching", True),
        clock=clock,
    )


def _check_combination(*, lossless: bool, gated: bool, scaled: bool, named_level: bool) -> None:
    if lossless and gated:
        raise OptionError(
            "motion_based_sampling holds frames, and frame_skipping 'none' encodes every one: choose frame_skipping "
            "'adaptive', or switch motion_based_sampling off"
        )
    if named_level and not gated and not scaled:
        raise OptionError(
            "quality_level says how much holding frames and smaller pictures may cost, and both are off: switch "
            "motion_based_sampling or adaptive_resolution on, or leave quality_level out"
        )


def _budget_ms(max_latency_ms: float) -> float:
    if not max_latency_ms > 0:
        raise OptionError(f"max_latency_ms: expected a positive number of milliseconds, got {max_latency_ms}")
    return max_latency_ms


def _temporal(buffer_size: int | None, *, cached: bool) -> TemporalConfig | None:
    if cached:
        return TemporalConfig(window=_BUFFER_SIZE if buffer_size is None else buffer_size)
    if buffer_size is not None:
        raise OptionError("buffer_size is the window of the temporal head, and temporal_caching False has none")
    return None


def _rungs(frame_encoder: FrameEncoder, level: QualityLevel) -> list[int]:
    steps = _STEPS_DOWN[level]
    return list(sizes_px(frame_encoder)[: None if steps is None else steps + 1])
