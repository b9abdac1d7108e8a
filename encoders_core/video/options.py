"""What can be set about a VideoEncoder beside its weights: frozen data, and the nested options that change it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from encoders_core.config import TemporalKind
from encoders_core.errors import OptionError
from encoders_core.image_transform import Interpolation
from encoders_core.models.temporal_heads import SequenceConfig, TemporalPosition
from encoders_core.models.temporal_pooling import Aggregation
from encoders_core.options import Schema, check_options
from encoders_core.video.sampling import Sampling, Strategy

TemporalAggregation = Literal["cls_token"] | Aggregation
AGGREGATIONS: Final = ("attention", "mean", "max", "lstm", "cls_token")

TEMPORAL_OPTIONS: Final[Schema] = {
    "temporal_modeling": {
        "type": get_args(TemporalKind),
        "temporal_attention": bool,
        "positional_encoding": get_args(TemporalPosition),
        "max_temporal_distance": int,
        "num_layers": int,
        "causal": bool,
    },
    "frame_sampling": {
        "strategy": get_args(Strategy),
        "adaptive_threshold": float,
        "key_frame_threshold": float,
        "interpolation": get_args(Interpolation),
    },
    "motion_modeling": {
        "enable_optical_flow": bool,
        "motion_attention": bool,
        "temporal_pooling": ("attention_weighted", "mean", "max", "lstm", "cls_token"),
    },
}
"""What `configure_temporal_processing` knows."""

_CONV_WIDTH: Final = 128
_DEPTH: Final = 4


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """The temporal side of a VideoEncoder."""

    max_frames: int = 64
    fps: float = 30.0
    temporal: SequenceConfig | None = None
    """The temporal model; None has none."""
    sampling: Sampling = field(default_factory=Sampling)
    optical_flow: bool = False
    motion_attention: bool = False
    pooling: TemporalAggregation = "attention"

    def __post_init__(self) -> None:
        if self.max_frames < 1 or not self.fps > 0:
            raise OptionError(f"max_frames, fps: expected positive numbers, got {self.max_frames}, {self.fps}")
        if self.pooling not in AGGREGATIONS:
            raise OptionError(f"pooling: expected one of {', '.join(AGGREGATIONS)}, got {self.pooling!r}")
        if self.motion_attention and self.pooling != "attention":
            raise OptionError(
                f"motion_attention draws attention-weighted pooling towards motion, and temporal_pooling "
                f"{self.pooling!r} has no attention to draw: use 'attention_weighted', or switch motion_attention off"
            )
        if self.pooling == "cls_token" and self.temporal is not None:
            raise OptionError(
                "temporal_pooling 'cls_token' goes past the temporal model: use 'attention_weighted', 'mean', 'max' or "
                "'lstm'"
            )

    @property
    def measures_motion(self) -> bool:
        """Whether motion is measured at all."""
        return self.optical_flow or self.motion_attention

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `config.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "VideoConfig":
        """What `to_dict` gave. Raises OptionError for what does not fit."""
        try:
            temporal, sampling = content["temporal"], Sampling(**content["sampling"])
            parts = {"temporal": temporal and SequenceConfig(**temporal), "sampling": sampling}
            return cls(**{**content, **parts})
        except (KeyError, TypeError) as exc:
            raise OptionError(f"the temporal part of the configuration does not fit: {exc}") from exc


def sequence_config(width: int, max_frames: int, **options: Any) -> SequenceConfig:
    """A temporal model for frame features of `width`; conv3d works on 128 channels, where it has the width of a ViT's."""
    kind = options.get("kind", "transformer")
    width = _CONV_WIDTH if kind == "conv3d" else width
    heads = options.pop("num_heads", None) or max(1, width // 64)
    heads = next(count for count in range(heads, 0, -1) if width % count == 0)
    options = {"max_distance": max_frames} | options
    return SequenceConfig(width=width, num_heads=heads, max_frames=max_frames, **options)


def frame_config(max_frames: int, fps: float, layers: int, width: int, num_heads: int | None) -> VideoConfig:
    """Of an encoder that looks at every frame; without layers there is no temporal model."""
    if layers < 0:
        raise OptionError(f"temporal_layers: expected 0 or more, got {layers}")
    temporal = sequence_config(width, max_frames, depth=layers, num_heads=num_heads) if layers else None
    return VideoConfig(max_frames=max_frames, fps=float(fps), temporal=temporal)


def changed(
    config: VideoConfig, given: Mapping[str, Any], *, width: int, num_heads: int
) -> tuple[VideoConfig, Interpolation | None]:
    """`config` with nested options applied, and the interpolation if one is named. Raises OptionError, changes nothing."""
    options = check_options(given, TEMPORAL_OPTIONS, "temporal processing")
    modeling, sampling = options.get("temporal_modeling", {}), dict(options.get("frame_sampling", {}))
    motion, changes = options.get("motion_modeling", {}), dict[str, Any]()
    if "temporal_modeling" in options:
        changes["temporal"] = _temporal(config, modeling, width=width, num_heads=num_heads)
    interpolation = sampling.pop("interpolation", None)
    if sampling:
        changes["sampling"] = dataclasses.replace(config.sampling, **sampling)
    words = {"enable_optical_flow": "optical_flow", "motion_attention": "motion_attention"}
    changes |= {ours: motion[theirs] for theirs, ours in words.items() if theirs in motion}
    if "temporal_pooling" in motion:
        changes["pooling"] = motion["temporal_pooling"].removesuffix("_weighted")
    elif config.pooling == "cls_token" and (changes.get("temporal") or changes.get("motion_attention")):
        changes["pooling"] = "attention"  # the class token knows nothing of what was just asked for
    return dataclasses.replace(config, **changes), interpolation


def _temporal(config: VideoConfig, modeling: dict[str, Any], *, width: int, num_heads: int) -> SequenceConfig:
    """The temporal model that is there, changed, or a new one."""
    words = {
        "type": "kind",
        "temporal_attention": "attention",
        "positional_encoding": "position",
        "max_temporal_distance": "max_distance",
        "num_layers": "depth",
        "causal": "causal",
    }
    old = config.temporal
    kept = {} if old is None else {name: getattr(old, name) for name in words.values()}
    options = (
        {"depth": _DEPTH} | kept | {ours: modeling[theirs] for theirs, ours in words.items() if theirs in modeling}
    )
    return sequence_config(width, config.max_frames, num_heads=num_heads, **options)


def check_aggregation(how: TemporalAggregation, *, token: bool, attention: bool = False) -> TemporalAggregation:
    """`how`, if it is possible, with a class token or without, and with attention to report. Raises OptionError."""
    valid = [name for name in AGGREGATIONS if name != "cls_token" or token]
    if how not in valid:
        raise OptionError(f"temporal_aggregation: expected one of {', '.join(valid)}, got {how!r}")
    if attention and how in ("lstm", "cls_token"):
        raise OptionError(
            f"temporal attention: {how!r} weighs no frames; use 'attention', 'mean' or 'max', or ask for "
            "return_layer_attention"
        )
    return how
