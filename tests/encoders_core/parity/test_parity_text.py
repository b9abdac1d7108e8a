"""Text towers and tokenizers against transformers: small random models from disk, and the packaged MiniLM."""

import gzip
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor

from encoders_core import tokenizer_formats as formats
from encoders_core.errors import WeightsNotFoundError
from encoders_core.text_encoder import TextEncoder
from encoders_core.tokenizer import load_tokenizer
from encoders_core.weights.text import open_text, packaged_minilm

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 99,
    "max_position_embeddings": 16,
}
TEXTS = [
    "A cat sitting in a window",
    "it's  RAINING — café, naïve; 3.50€ (don't!)",
    "日本語 and emoji 😀",
    "",
    "mountain " * 40,
]


def spread(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def ids_with_end(end: int) -> Tensor:
    ids = torch.randint(3, 90, (3, 12))
    ids[0, 11], ids[1, 5], ids[1, 6:], ids[2, 8], ids[2, 9:] = end, end, end, end, 1
    return ids


@pytest.mark.parametrize("eos", [98, 2])
@pytest.mark.parametrize("whole", [True, False])
def test_parity_of_clip_text(transformers: ModuleType, tmp_path: Path, eos: int, whole: bool) -> None:
    t, text = transformers, TOWER | {"eos_token_id": eos, "bos_token_id": 97}
    vision = {key: TOWER[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    if whole:
        model = t.CLIPModel(
            t.CLIPConfig(text_config=text, vision_config=vision | {"image_size": 16}, projection_dim=24)
        )
    else:
        model = t.CLIPTextModelWithProjection(t.CLIPTextConfig(projection_dim=24, **text))
    spread(model).save_pretrained(tmp_path)
    encoder, ids = TextEncoder.from_pretrained(tmp_path), ids_with_end(98)
    theirs = model.get_text_features(ids).pooler_output if whole else model(ids).text_embeds
    torch.testing.assert_close(encoder(ids), theirs, atol=1e-5, rtol=0)
    assert encoder.config.eos_id == (None if eos == 2 else eos)
    assert (encoder.logit_scale is not None) == whole


@pytest.mark.parametrize("whole", [True, False])
def test_parity_of_siglip_text(transformers: ModuleType, tmp_path: Path, whole: bool) -> None:
    t, text = transformers, TOWER | {"projection_size": 32}
    vision = {key: TOWER[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    if whole:
        model = t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision | {"image_size": 16}))
    else:
        model = t.SiglipTextModel(t.SiglipTextConfig(**text))
    spread(model).save_pretrained(tmp_path)
    ids = torch.randint(3, 90, (3, 16))
    theirs = (model.get_text_features(ids) if whole else model(ids)).pooler_output
    encoder = TextEncoder.from_pretrained(tmp_path)
    torch.testing.assert_close(encoder(ids), theirs, atol=1e-5, rtol=0)
    assert (encoder.logit_bias is not None) == whole


def test_parity_of_bert_with_padding(transformers: ModuleType, tmp_path: Path) -> None:
    model = spread(transformers.BertModel(transformers.BertConfig(**TOWER)))
    model.save_pretrained(tmp_path)
    ids, mask = torch.randint(3, 90, (2, 12)), torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    theirs = model(ids, attention_mask=mask).last_hidden_state
    encoder = TextEncoder.from_pretrained(tmp_path)
    layers: list[Tensor] = []
    tokens = encoder.model.forward_features(ids, mask, layers)
    torch.testing.assert_close(tokens[mask], theirs[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder(ids, mask)[1], theirs[1, :7].mean(dim=0), atol=1e-5, rtol=0)
    assert (layers[0][1, :, :, 7:] == 0).all(), "nobody looks at padding"
    model.set_attn_implementation("eager")
    attentions = model(ids, attention_mask=mask, output_attentions=True).attentions
    torch.testing.assert_close(torch.stack(layers), torch.stack(attentions), atol=1e-5, rtol=0)


def test_parity_of_text_in_openai_names(transformers: ModuleType, tmp_path: Path) -> None:
    config = transformers.CLIPTextConfig(projection_dim=24, eos_token_id=98, **TOWER)
    model = spread(transformers.CLIPTextModelWithProjection(config))
    torch.save(openai_names(model), tmp_path / "clip.pt")
    encoder = TextEncoder.from_pretrained(tmp_path / "clip.pt", act="quick_gelu", num_heads=4)
    ids = ids_with_end(98)
    torch.testing.assert_close(encoder(ids), model(ids).text_embeds, atol=1e-5, rtol=0)


def openai_names(model: Any) -> dict[str, Tensor]:
    text = getattr(model, "text_model", model)
    state = {
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "text_projection": model.text_projection.weight.T,
        "visual.conv1.weight": torch.zeros(8, 3, 2, 2),
        "logit_scale": torch.zeros(()),
        "attn_mask": torch.zeros(16, 16),
    }
    modules = {"ln_final": text.final_layer_norm}
    for index, layer in enumerate(text.encoder.layers):
        base, attention = f"transformer.resblocks.{index}.", layer.self_attn
        modules |= {f"{base}ln_1": layer.layer_norm1, f"{base}ln_2": layer.layer_norm2}
        modules |= {f"{base}mlp.c_fc": layer.mlp.fc1, f"{base}mlp.c_proj": layer.mlp.fc2}
        modules |= {f"{base}attn.out_proj": attention.out_proj}
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        state[f"{base}attn.in_proj_weight"] = torch.cat([part.weight for part in parts])
        state[f"{base}attn.in_proj_bias"] = torch.cat([part.bias for part in parts])
    for name, module in modules.items():
        state |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {key: value.detach().clone() for key, value in state.items()}


# --- tokenizers --------------------------------------------------------------------------------------------------


def small_clip_vocabulary(folder: Path) -> None:
    """OpenAI's file of merges in small, and what transformers saves of the same vocabulary."""
    merges = [
        "a t</w>",
        "c at</w>",
        "i n",
        "in d",
        "ind o",
        "indo w</w>",
        "w indow</w>",
        "t h",
        "th e</w>",
        "o u",
        "3 5",
    ]
    with gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges]))
    vocab = formats.from_openai_merges(folder / "bpe_simple_vocab_16e6.txt.gz").get_vocab()
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")


def test_parity_of_the_clip_tokenizer(transformers: ModuleType, tmp_path: Path) -> None:
    small_clip_vocabulary(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    expected = [theirs(text, truncation=True, max_length=77)["input_ids"] for text in TEXTS]
    for source in ("vocab.json", "bpe_simple_vocab_16e6.txt.gz"):
        ours = load_tokenizer(tmp_path, "transformers CLIP (text)", 77)
        ids, mask = ours(TEXTS)
        assert ids.shape[1] == 77
        assert [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)] == expected
        (tmp_path / source).unlink()  # the second time from the merges alone
    theirs.save_pretrained(tmp_path / "json")
    ids, mask = load_tokenizer(tmp_path / "json", "transformers CLIP (text)", 77)(TEXTS)
    assert [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)] == expected


def test_parity_of_the_bert_tokenizer(transformers: ModuleType, tmp_path: Path) -> None:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "a",
        "cat",
        "sit",
        "##ting",
        "in",
        "window",
        "it",
        "'",
        "s",
        "cafe",
        "日",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 24, "do_lower_case": True}))
    vocab = {word: number for number, word in enumerate(words)}
    theirs = transformers.BertTokenizer(vocab=vocab, do_lower_case=True)
    expected = theirs(TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    ids, mask = load_tokenizer(tmp_path, "transformers BERT", 512)(TEXTS)
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"].bool())


# --- the packaged MiniLM -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Path:
    try:
        return packaged_minilm()
    except WeightsNotFoundError as exc:
        pytest.skip(str(exc))


def test_parity_of_minilm(transformers: ModuleType, minilm: Path) -> None:
    """Texts to vectors: tokenizer, network, mean over tokens and unit length, as sentence-transformers has it."""
    tokenizer, model = (
        transformers.AutoTokenizer.from_pretrained(minilm),
        transformers.BertModel.from_pretrained(minilm),
    )
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    tokens, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    theirs = F.normalize((tokens * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
    ours = TextEncoder.from_pretrained().encode_text(TEXTS)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


def test_minilm_is_read_as_a_whole(minilm: Path) -> None:
    found = open_text(minilm, {})
    assert found.config.normalized
    assert found.config.pool == "mean"
    assert found.tokenizer is not None
    assert found.tokenizer.settings.max_length == 256
