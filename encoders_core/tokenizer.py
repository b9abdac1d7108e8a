"""Texts to token ids, as the model was trained: CLIP, SigLIP and BERT vocabularies through the `tokenizers` library."""

import json
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from encoders_core import tokenizer_formats as formats
from encoders_core.errors import InputError, OptionError, WeightsError, WeightsNotFoundError
from encoders_core.weights.files import read_json

Clean = Literal["none", "lower", "canonicalize"]

TOKENIZER_FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model"),
    "bpe_simple_vocab_16e6.txt.gz",
)
"""Every file that a tokenizer is made from, for downloads."""

_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


class TokenBatch(NamedTuple):
    """Texts as the model reads them."""

    ids: Tensor
    """(B, L) int64."""
    mask: Tensor
    """(B, L) bool, True where a token is no padding."""


@dataclass(frozen=True)
class TokenizerSettings:
    """What the vocabulary alone does not tell."""

    max_length: int
    """Longer texts are cut, special tokens kept."""
    pad_id: int = 0
    fixed_length: bool = False
    """Pad every text to `max_length` (SigLIP was trained so), not to the longest of its batch."""
    padding_side: Literal["left", "right"] = "right"
    clean: Clean = "none"
    """What happens to the text first: "lower" (SigLIP 2); "canonicalize" also drops punctuation and spaces (SigLIP)."""

    def __post_init__(self) -> None:
        if self.clean not in get_args(Clean):
            raise OptionError(f"clean: expected one of {', '.join(get_args(Clean))}, got {self.clean!r}")
        if self.padding_side not in ("left", "right"):
            raise OptionError(f"padding_side: expected 'left' or 'right', got {self.padding_side!r}")


class Tokenizer:
    """Texts -> `TokenBatch`. `backend` is a `tokenizers.Tokenizer`; its own padding and truncation are replaced."""

    def __init__(self, backend: Any, settings: TokenizerSettings) -> None:
        self.backend, self.settings = backend, settings
        length = settings.max_length if settings.fixed_length else None
        backend.enable_truncation(settings.max_length)
        backend.enable_padding(
            direction=settings.padding_side,
            pad_id=settings.pad_id,
            pad_token=backend.id_to_token(settings.pad_id) or "",
            length=length,
        )

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """Texts -> ids and mask, padded to one length. Raises InputError for what is no text."""
        texts = as_texts(texts)
        if not texts:
            return TokenBatch(torch.empty(0, 1, dtype=torch.int64), torch.empty(0, 1, dtype=torch.bool))
        encoded = self.backend.encode_batch([clean(text, self.settings.clean) for text in texts])
        ids = torch.tensor([row.ids for row in encoded], dtype=torch.int64)
        return TokenBatch(ids, torch.tensor([row.attention_mask for row in encoded], dtype=torch.bool))

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones too."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`, and the settings into `tokenizer_config.json`."""
        self.backend.save(str(directory / "tokenizer.json"))
        content = {"model_max_length": self.settings.max_length, "camvec": asdict(self.settings)}
        (directory / "tokenizer_config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def clean(text: str, how: Clean) -> str:
    """The text as the family prepared it for training."""
    if how == "none":
        return text
    if how == "lower":
        return text.lower()
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


def has_tokenizer(directory: Path) -> bool:
    """Whether a model directory brings a vocabulary."""
    return any((directory / name).is_file() for name in TOKENIZER_FILES if name != "tokenizer_config.json")


def load_tokenizer(directory: Path, family: str, context_length: int) -> Tokenizer:
    """The tokenizer of a model directory; `family` is the name of its text layout.

    Raises WeightsNotFoundError when the directory has none, or the `tokenizers` library is missing.
    """
    config = read_json(directory / "tokenizer_config.json")
    backend = _backend(directory, config)
    if "camvec" in config:
        return Tokenizer(backend, TokenizerSettings(**config["camvec"]))
    return Tokenizer(backend, _settings(directory, config, backend, family, context_length))


def _backend(directory: Path, config: dict[str, Any]) -> Any:
    try:
        import tokenizers  # noqa: PLC0415  optional: token ids need none
    except ImportError as exc:
        raise WeightsNotFoundError("tokenizing texts needs the tokenizers library: pip install 'camvec[text]'") from exc
    files = {name: directory / name for name in TOKENIZER_FILES}
    present = {name for name, path in files.items() if path.is_file()}
    try:
        if "tokenizer.json" in present:
            return tokenizers.Tokenizer.from_file(str(files["tokenizer.json"]))
        if {"vocab.json", "merges.txt"} <= present:
            return formats.from_vocab_and_merges(files["vocab.json"], files["merges.txt"])
        if "bpe_simple_vocab_16e6.txt.gz" in present:
            return formats.from_openai_merges(files["bpe_simple_vocab_16e6.txt.gz"])
        if "vocab.txt" in present:
            return formats.from_wordpiece(files["vocab.txt"], config)
        if "spiece.model" in present:
            return formats.from_sentencepiece(files["spiece.model"])
    except WeightsError:
        raise
    except Exception as exc:  # the library raises bare Exception
        raise WeightsError(f"{directory}: the tokenizer's files are damaged: {exc}") from exc
    raise WeightsNotFoundError(
        f"{directory}: found no tokenizer; expected tokenizer.json, or a vocabulary as one of {', '.join(TOKENIZER_FILES[2:])}"
    )


def _settings(
    directory: Path, config: dict[str, Any], backend: Any, family: str, context_length: int
) -> TokenizerSettings:
    said = read_json(directory / "sentence_bert_config.json").get("max_seq_length") or config.get("model_max_length")
    max_length = min(int(said), context_length) if said else context_length
    siglip = "SigLIP" in family
    pad = config.get("pad_token") or ("</s>" if siglip else "[PAD]" if "BERT" in family else formats.END)
    pad_id = backend.token_to_id(pad["content"] if isinstance(pad, dict) else pad)
    tokenizer_class = str(config.get("tokenizer_class", ""))
    newer = "Gemma" in tokenizer_class or "Siglip2" in tokenizer_class
    return TokenizerSettings(
        max_length=context_length if siglip else max_length,
        pad_id=pad_id or 0,
        fixed_length=siglip,
        padding_side=config.get("padding_side", "right"),
        clean="none" if not siglip else "lower" if newer else "canonicalize",
    )


def as_texts(texts: Any) -> list[str]:
    """One text or several -> a list of them. Raises InputError for what is no text."""
    found = [texts] if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
    for text in found:
        if not isinstance(text, str):
            raise InputError(f"expected texts, got {type(text).__name__}")
    return found
