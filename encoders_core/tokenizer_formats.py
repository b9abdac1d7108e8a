"""Tokenizers built from the vocabularies that checkpoints bring, where there is no `tokenizer.json`."""

import gzip
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from encoders_core.errors import WeightsError

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "[UNK]"
_CLIP_PATTERN: Final = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    """CLIP's lower-case byte-level BPE: words end in `</w>`, a text stands between start and end tokens."""
    from tokenizers import (  # noqa: PLC0415  optional: token ids need none
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    model = models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=END, fuse_unk=False)
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(_CLIP_PATTERN), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def from_vocab_and_merges(vocab: Path, merges: Path) -> Any:
    """CLIP's `vocab.json` and `merges.txt`, as transformers saves them."""
    lines = merges.read_text("utf-8").splitlines()
    pairs = [_pair(line, merges) for line in lines if line.strip() and not line.startswith("#version")]
    return clip_tokenizer(json.loads(vocab.read_text("utf-8")), pairs)


def from_openai_merges(path: Path) -> Any:
    """OpenAI's `bpe_simple_vocab_16e6.txt.gz`: merges alone; the vocabulary follows from their order."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    pairs = [_pair(line, path) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(_byte_letters())
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, pairs), START, END]
    return clip_tokenizer({word: number for number, word in enumerate(words)}, pairs)


def from_wordpiece(path: Path, options: dict[str, Any]) -> Any:
    """BERT's `vocab.txt`, with the choices of `tokenizer_config.json`."""
    from tokenizers import (  # noqa: PLC0415  optional: token ids need none
        Tokenizer,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    vocab = {word: number for number, word in enumerate(path.read_text("utf-8").split("\n")) if word}
    tokenizer: Any = Tokenizer(models.WordPiece(vocab, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=options.get("do_lower_case", True),
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    return tokenizer


def from_sentencepiece(path: Path) -> Any:
    """A SentencePiece unigram model (`spiece.model`), texts ending in `</s>` as T5's and SigLIP's do.

    https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto gives the numbers of the fields.
    """
    from tokenizers import (  # noqa: PLC0415  optional: token ids need none
        Regex,
        Tokenizer,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    pieces, unknown, characters = _read_sentencepiece(path)
    tokenizer: Any = Tokenizer(models.Unigram(pieces, unknown, byte_fallback=False))
    steps: list[Any] = [normalizers.Precompiled(characters)] if characters else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    names = [piece for piece, _ in pieces]
    if "</s>" in names:
        special = [("</s>", names.index("</s>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=special)
    return tokenizer


def _read_sentencepiece(path: Path) -> tuple[list[tuple[str, float]], int, bytes]:
    """Pieces with their scores, the number of the unknown piece, and the compiled character map."""
    pieces: list[tuple[str, float]] = []
    unknown, characters = 0, b""
    try:
        for field, value in _protobuf_fields(path.read_bytes()):
            if field == 1:
                piece = dict(_protobuf_fields(value))
                if piece.get(3) == 2:  # type UNKNOWN
                    unknown = len(pieces)
                pieces.append((piece[1].decode("utf-8"), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
            elif field == 2:
                if dict(_protobuf_fields(value)).get(3, 1) != 1:
                    raise WeightsError(f"{path}: expected a unigram model, got another kind of SentencePiece model")
            elif field == 3:
                characters = dict(_protobuf_fields(value)).get(2, b"")
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as exc:
        raise WeightsError(f"{path}: the file is damaged or no SentencePiece model") from exc
    if not pieces:
        raise WeightsError(f"{path}: the file is damaged or no SentencePiece model")
    return pieces, unknown, characters


def _protobuf_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message: int for a varint, bytes for anything longer."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + size > len(data):
            raise IndexError(at)
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def _pair(line: str, source: Path) -> tuple[str, str]:
    parts = line.split()
    if len(parts) != 2:
        raise WeightsError(f"{source}: expected two parts in each merge, got {line!r}")
    return parts[0], parts[1]


def _byte_letters() -> Iterator[str]:
    """The printable letter that stands for each byte in byte-level BPE, in the order of OpenAI's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from map(chr, printable)
    yield from (chr(256 + number) for number in range(256 - len(printable)))
