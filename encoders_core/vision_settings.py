"""The advanced settings of VisionEncoder: what they are called, and what they mean for the network."""

from typing import Any, Final

from encoders_core.models.layers import ACTIVATIONS
from encoders_core.models.vit import Position, VitConfig
from encoders_core.options import Schema

ADVANCED_OPTIONS: Final[Schema] = {
    "patch_embedding": {"learnable_position": bool, "sinusoidal_position": bool, "patch_dropout": float},
    "transformer_blocks": {"attention_dropout": float, "feedforward_dropout": float, "pre_layer_norm": bool},
    "output_projection": {
        "use_pooling": bool,
        "pooling_type": ("cls_token", "mean", "max"),
        "final_activation": (None, *ACTIVATIONS),
    },
}
"""What `configure_advanced_settings` knows."""

_POSITIONS: Final[dict[tuple[bool, bool], Position]] = {
    (True, False): "learnable",
    (False, True): "sinusoidal",
    (True, True): "sinusoidal_learnable",
    (False, False): "none",
}


def advanced_changes(config: VitConfig, options: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The options of the specification as fields of VitConfig."""
    patches, blocks = options.get("patch_embedding", {}), options.get("transformer_blocks", {})
    projection = options.get("output_projection", {})
    learnable, sinusoidal = next(key for key, value in _POSITIONS.items() if value == config.position)
    kinds = (patches.get("learnable_position", learnable), patches.get("sinusoidal_position", sinusoidal))
    changes: dict[str, Any] = {"position": _POSITIONS[kinds], "pool": _pool(config, projection)}
    renamed = (
        (patches, {"patch_dropout": "patch_dropout"}),
        (blocks, {"attention_dropout": "attn_drop", "feedforward_dropout": "mlp_drop"}),
        (blocks, {"pre_layer_norm": "pre_layer_norm"}),
        (projection, {"final_activation": "final_activation"}),
    )
    for section, names in renamed:
        changes |= {ours: section[theirs] for theirs, ours in names.items() if theirs in section}
    return changes


def _pool(config: VitConfig, projection: dict[str, Any]) -> str:
    if not projection.get("use_pooling", config.pool != "none" or "pooling_type" in projection):
        return "none"
    if "pooling_type" in projection:
        return str(projection["pooling_type"]).removesuffix("_token")
    if config.pool != "none":
        return config.pool
    return "cls" if config.class_token else "mean"
