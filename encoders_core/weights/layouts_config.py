"""From a checkpoint's own words to ours: shapes are read off the tensors, the rest from its configuration files."""

import dataclasses
import math
import re
from typing import Any, Final

from encoders_core.errors import OptionError, WeightsError
from encoders_core.models.text_transformer import TextConfig
from encoders_core.models.vit import VitConfig
from encoders_core.weights.files import Tensors

ACTIVATION_NAMES: Final = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""What transformers and timm call an activation, and what it is called here."""

HF_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "vit": {"act": "gelu", "eps": 1e-12},
    "vit_mae": {"act": "gelu", "eps": 1e-12},
    "vit_msn": {"act": "gelu", "eps": 1e-6},
    "deit": {"act": "gelu", "eps": 1e-12},
    "dinov2": {"act": "gelu", "eps": 1e-6},
    "dinov2_with_registers": {"act": "gelu", "eps": 1e-6},
    "clip": {"act": "quick_gelu", "eps": 1e-5},
    "siglip": {"act": "gelu_tanh", "eps": 1e-6},
    "videomae": {"act": "gelu", "eps": 1e-12, "num_frames": 16},
    "vivit": {"act": "gelu_tanh", "eps": 1e-6, "num_frames": 32},
    "timesformer": {"act": "gelu", "eps": 1e-6, "num_frames": 8},
}
"""What a transformers `config.json` leaves out when it equals the default of its class; 12 heads and 224 px for all."""

HF_TEXT_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "clip": {"act": "quick_gelu", "eps": 1e-5, "num_heads": 8, "eos_id": 49407},
    "siglip": {"act": "gelu_tanh", "eps": 1e-6, "num_heads": 12},
    "bert": {"act": "gelu", "eps": 1e-12, "num_heads": 12},
}

HEADS_BY_WIDTH: Final = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""Released ViTs whose heads are not 64 wide; the number of heads cannot be read off the tensors."""

_SAY_THE_ACTIVATION: Final = (
    "the activation is not in a weights file: say act='quick_gelu' (OpenAI's CLIP weights and open_clip's -quickgelu "
    "models) or act='gelu' (other open_clip models); a wrong one gives wrong features"
)


def vit_config(tensors: Tensors, settings: dict[str, Any], *, source: str) -> VitConfig:
    """The configuration of a ViT under native names: shapes from `tensors`, manners from `settings`.

    Raises WeightsError when there is no patch embedding, OptionError when the activation is not said anywhere.
    """
    if "patch_embed.proj.weight" not in tensors or tensors["patch_embed.proj.weight"].ndim != 4:
        raise WeightsError(f"{source}: expected the weights of an image model, found none for two-dimensional patches")
    if "act" not in settings:
        raise OptionError(f"{source}: {_SAY_THE_ACTIVATION}")
    shape = vit_shape(tensors)
    width = shape["embed_dim"]
    heads = {"num_heads": HEADS_BY_WIDTH.get(width, max(1, width // 64))}
    wanted = {field.name for field in dataclasses.fields(VitConfig)}
    merged = heads | shape | {key: value for key, value in settings.items() if value is not None}
    return VitConfig(**{key: value for key, value in (merged | _grid(tensors, merged)).items() if key in wanted})


def vit_shape(tensors: Tensors) -> dict[str, Any]:
    """Everything about a ViT that its tensors tell."""
    width, in_chans, _, patch = tensors["patch_embed.proj.weight"].shape
    hidden = tensors["blocks.0.mlp.fc2.weight"].shape[1] if "blocks.0.mlp.fc2.weight" in tensors else 4 * width
    fc1, head, registers = (tensors.get(key) for key in ("blocks.0.mlp.fc1.weight", "head.weight", "reg_token"))
    has_class, has_fc_norm = "cls_token" in tensors, "fc_norm.weight" in tensors
    pool = "cls" if has_class and not has_fc_norm else "mean"
    return {
        "embed_dim": width,
        "in_chans": in_chans,
        "patch_size": patch,
        "depth": count_blocks(tensors),
        "mlp_hidden": hidden,
        "swiglu": fc1 is not None and fc1.shape[0] == 2 * hidden,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "patch_bias": "patch_embed.proj.bias" in tensors,
        "init_values": 1.0 if "blocks.0.ls1.gamma" in tensors else None,
        "class_token": has_class,
        "reg_tokens": 0 if registers is None else registers.shape[1],
        "norm_pre": "norm_pre.weight" in tensors,
        "final_norm": "norm.weight" in tensors,
        "fc_norm": has_fc_norm,
        "pool": "map" if "attn_pool.latent" in tensors else pool,
        "num_classes": 0 if head is None else head.shape[0],
        "head_bias": "head.bias" in tensors,
        "position": "learnable" if "pos_embed" in tensors else "none",
    }


def count_blocks(tensors: Tensors) -> int:
    """How many blocks the names run to; 0 without any."""
    numbers = [int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def _grid(tensors: Tensors, merged: dict[str, Any]) -> dict[str, Any]:
    """Image size and whether the table covers the prefix; a square table tells both when nobody says the size."""
    if "pos_embed" not in tensors:
        return {"no_embed_class": True}
    rows, patch = tensors["pos_embed"].shape[1], merged["patch_size"]
    prefix = int(merged["class_token"]) + merged["reg_tokens"]
    if (size := merged.get("img_size")) is None:
        covers = [covered for covered in (prefix, 0) if math.isqrt(rows - covered) ** 2 == rows - covered]
        side = math.isqrt(rows - (covers[0] if covers else 0)) * patch
        return {"img_size": (side, side), "no_embed_class": bool(covers) and covers[0] == 0}
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return {"no_embed_class": rows == (height // patch) * (width // patch)}


def hf_vision_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What a transformers `config.json` says about its image tower. Raises OptionError for an unknown family."""
    family = re.sub(r"_vision_model$", "", str(config.get("model_type", "")))
    if family not in HF_DEFAULTS:
        raise OptionError(f"model_type {family!r} is not supported; known: {', '.join(HF_DEFAULTS)}")
    tower = config.get("vision_config") or config
    settings: dict[str, Any] = {"num_heads": 12, "img_size": 224} | HF_DEFAULTS[family]
    words = {
        "num_attention_heads": "num_heads",
        "image_size": "img_size",
        "layer_norm_eps": "eps",
        "num_frames": "num_frames",
        "attention_probs_dropout_prob": "attn_drop",
        "attention_dropout": "attn_drop",
        "hidden_dropout_prob": "mlp_drop",
    }
    settings |= {ours: tower[theirs] for theirs, ours in words.items() if tower.get(theirs) is not None}
    if "hidden_act" in tower:
        settings["act"] = activation_name(tower["hidden_act"])
    return settings


def timm_settings(config: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """What a timm `config.json` says, in our words: `architecture`, `global_pool`, `model_args`, `pretrained_cfg`."""
    name, arguments = str(config.get("architecture", "")), config.get("model_args") or {}
    pretrained = config.get("pretrained_cfg") or {}
    settings: dict[str, Any] = {}
    if "quickgelu" in name:
        settings["act"] = "quick_gelu"
    elif "siglip" in name or "attn_pool.latent" in tensors:
        settings["act"] = "gelu_tanh"  # as the weights were trained, in big_vision
    if "norm_pre.weight" in tensors:
        settings["eps"] = 1e-5
    if name.startswith("vit_base_patch16_gap"):
        settings["num_heads"] = 16
    pool = {"token": "cls", "avg": "mean", "max": "max", "map": "map"}.get(str(config.get("global_pool")))
    if pool is not None:
        settings["pool"] = pool
    if size := arguments.get("img_size") or (pretrained.get("input_size") or [])[1:]:
        settings["img_size"] = size
    return settings


def open_clip_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What an `open_clip_config.json` says about its image tower: size, heads, activation."""
    model = config.get("model_cfg") or {}
    tower = model.get("vision_cfg") or {}
    if "timm_model_name" in tower:
        act = "gelu_tanh" if "siglip" in tower["timm_model_name"] else "gelu"
        return {"img_size": tower.get("image_size"), "act": act}
    if not tower:
        return {}
    width = int(tower.get("width", 768))
    settings = {"num_heads": width // int(tower.get("head_width", 64)), "img_size": tower.get("image_size", 224)}
    return settings | {"act": "quick_gelu" if model.get("quick_gelu") else "gelu"}


def text_config(tensors: Tensors, settings: dict[str, Any], *, source: str) -> TextConfig:
    """The configuration of a text tower under native names. Raises WeightsError, or OptionError without activation."""
    if "token_embed.weight" not in tensors or "pos_embed" not in tensors:
        raise WeightsError(f"{source}: expected the weights of a text model, found no token or positional table")
    if "act" not in settings:
        raise OptionError(f"{source}: {_SAY_THE_ACTIVATION}")
    vocab_size, width = tensors["token_embed.weight"].shape
    fc2, head, segments = (tensors.get(key) for key in ("blocks.0.mlp.fc2.weight", "head.weight", "type_embed.weight"))
    shape = {
        "vocab_size": vocab_size,
        "context_length": tensors["pos_embed"].shape[1],
        "embed_dim": width,
        "depth": count_blocks(tensors),
        "num_heads": max(1, width // 64),
        "mlp_hidden": None if fc2 is None else fc2.shape[1],
        "type_vocab_size": 0 if segments is None else segments.shape[0],
        "norm_embed": "norm_embed.weight" in tensors,
        "final_norm": "norm.weight" in tensors,
        "num_classes": 0 if head is None else head.shape[0],
        "head_bias": "head.bias" in tensors,
    }
    wanted = {field.name for field in dataclasses.fields(TextConfig)}
    said = {key: value for key, value in settings.items() if value is not None and key in wanted}
    return TextConfig(**shape | said)


def hf_text_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What a transformers `config.json` says about its text tower. Raises OptionError for an unknown family."""
    family = re.sub(r"_text_model$", "", str(config.get("model_type", "")))
    if family not in HF_TEXT_DEFAULTS:
        raise OptionError(f"model_type {family!r} is no supported text model; known: {', '.join(HF_TEXT_DEFAULTS)}")
    tower = config.get("text_config") or config
    if tower.get("position_embedding_type", "absolute") != "absolute":
        raise OptionError(f"position_embedding_type {tower['position_embedding_type']!r} is not supported")
    settings = dict(HF_TEXT_DEFAULTS[family])
    words = {"num_attention_heads": "num_heads", "layer_norm_eps": "eps"}
    settings |= {ours: tower[theirs] for theirs, ours in words.items() if tower.get(theirs) is not None}
    if "hidden_act" in tower:
        settings["act"] = activation_name(tower["hidden_act"])
    if family == "clip" and tower.get("eos_token_id") is not None:
        legacy = tower["eos_token_id"] == 2  # a wrong number in old files, which then meant the largest id
        settings["eos_id"] = None if legacy else tower["eos_token_id"]
    return settings


def open_clip_text_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What an `open_clip_config.json` says about its text tower."""
    model = config.get("model_cfg") or {}
    tower = model.get("text_cfg") or {}
    if "hf_model_name" in tower:
        raise OptionError(f"open_clip around the text model {tower['hf_model_name']!r} is not supported")
    settings: dict[str, Any] = {"act": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    if (tower.get("act_kwargs") or {}).get("approximate") == "tanh":
        settings["act"] = "gelu_tanh"
    if "heads" in tower:
        settings["num_heads"] = tower["heads"]
    if "eps" in (tower.get("norm_kwargs") or {}):
        settings["eps"] = tower["norm_kwargs"]["eps"]
    pools = {"argmax": "eot", "last": "last", "first": "cls"}
    return settings | {"causal": not tower.get("no_causal_mask"), "pool": pools[tower.get("pool_type", "argmax")]}


def activation_name(name: str) -> str:
    """Our word for an activation of transformers or timm. Raises OptionError for one that is not built."""
    if name not in ACTIVATION_NAMES:
        raise OptionError(
            f"activation {name!r} of the checkpoint is not supported; known: {', '.join(ACTIVATION_NAMES)}"
        )
    return ACTIVATION_NAMES[name]
