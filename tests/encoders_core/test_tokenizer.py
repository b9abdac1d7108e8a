"""Tokenizers from every kind of vocabulary; their padding, cutting and cleaning."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders_core.errors import OptionError, WeightsError, WeightsNotFoundError
from encoders_core.tokenizer import Tokenizer, TokenizerSettings, clean, load_tokenizer
from encoders_core.tokenizer_formats import from_sentencepiece

tokenizers = pytest.importorskip("tokenizers", reason="tokenizing texts needs: pip install 'camvec[text]'")

SIGLIP = "transformers SigLIP (text)"
PIECES = ["<unk>", "</s>", "▁a", "▁cat", "▁in", "▁the", "▁park", "▁", *"abcdefghijklmnopqrstuvwxyz"]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: bytes | float) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def sentencepiece_model(kind: int = 1) -> bytes:
    """A SentencePiece unigram model written by hand; whole words cost less than their letters."""
    data = b""
    for piece in PIECES:
        score = -1.0 if len(piece) > 2 else -10.0
        piece_type = {"<unk>": 2, "</s>": 3}.get(piece, 1)
        data += field(1, field(1, piece.encode()) + field(2, score) + field(3, piece_type))
    return data + field(2, field(3, kind)) + field(3, field(1, b"identity"))


def write_siglip(folder: Path, **config: Any) -> None:
    (folder / "spiece.model").write_bytes(sentencepiece_model())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SiglipTokenizer"} | config))


def test_siglip_texts_are_cleaned_ended_and_of_full_length(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    ids, mask = load_tokenizer(tmp_path, SIGLIP, 12)(["  A cat,   in the PARK! ", "a"])
    expected = [PIECES.index(piece) for piece in ("▁a", "▁cat", "▁in", "▁the", "▁park", "</s>")]
    assert ids[0].tolist() == expected + [1] * 6, "padded with the end token"
    assert mask.sum(dim=1).tolist() == [6, 2]
    assert load_tokenizer(tmp_path, SIGLIP, 4)(["a cat in the park"]).ids.tolist() == [[2, 3, 4, 1]]


def test_siglip_2_keeps_punctuation_and_left_padding_is_left(tmp_path: Path) -> None:
    write_siglip(tmp_path, tokenizer_class="GemmaTokenizer", padding_side="left", pad_token={"content": "<unk>"})
    tokenizer = load_tokenizer(tmp_path, SIGLIP, 6)
    assert (tokenizer.settings.clean, tokenizer.settings.pad_id) == ("lower", 0)
    assert tokenizer(["A"]).ids.tolist() == [[0, 0, 0, 0, 2, 1]]


@pytest.mark.parametrize(("how", "expected"), [("none", " A  b! "), ("lower", " a  b! "), ("canonicalize", "a b")])
def test_clean(how: Any, expected: str) -> None:
    assert clean(" A  b! ", how) == expected


def test_save_and_load_keep_every_setting(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    first = load_tokenizer(tmp_path, SIGLIP, 12)
    (tmp_path / "saved").mkdir()
    first.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved", "whatever", 99)
    assert again.settings == first.settings
    assert torch.equal(again(["the cat!"]).ids, first(["the cat!"]).ids)
    assert again.vocab_size == len(PIECES)


def test_no_texts_give_no_rows(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    assert load_tokenizer(tmp_path, SIGLIP, 12)([]).ids.shape[0] == 0


def test_damaged_and_missing_vocabularies_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"found no tokenizer; expected tokenizer.json"):
        load_tokenizer(tmp_path, SIGLIP, 12)
    path = tmp_path / "spiece.model"
    path.write_bytes(sentencepiece_model()[:-3])
    with pytest.raises(WeightsError, match="damaged or no SentencePiece"):
        from_sentencepiece(path)
    path.write_bytes(sentencepiece_model(kind=2))
    with pytest.raises(WeightsError, match="expected a unigram model"):
        from_sentencepiece(path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="files are damaged"):
        load_tokenizer(tmp_path, SIGLIP, 12)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(WeightsError, match="two parts in each merge, got 'a b c'"):
        load_tokenizer(tmp_path, SIGLIP, 12)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(OptionError, match="clean: expected one of none, lower"):
        TokenizerSettings(max_length=4, clean="strip")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="padding_side"):
        TokenizerSettings(max_length=4, padding_side="middle")  # type: ignore[arg-type]
    assert Tokenizer
