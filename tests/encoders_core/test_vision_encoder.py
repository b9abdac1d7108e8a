"""VisionEncoder as the specification and users of timm and sentence-transformers know it."""

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor

from encoders_core.errors import InputError, OptionError
from encoders_core.results import EncodingResult, VisionResult, attention_rollout, join
from encoders_core.vision_encoder import VisionEncoder

SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "num_layers": 2,
    "hidden_dim": 64,
    "num_heads": 4,
    "output_dim": 24,
}


def make(**changes: Any) -> VisionEncoder:
    return VisionEncoder(**(SMALL | {"seed": 1} | changes))


@pytest.fixture
def encoder() -> VisionEncoder:
    return make()


def images(batch: int = 3, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(2))


def photos(count: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(4)
    return [rng.integers(0, 256, (40 + 3 * i, 50, 3), dtype=np.uint8) for i in range(count)]


# --- construction ------------------------------------------------------------------------------------------------


def test_random_weights_are_said_and_repeatable(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        one, same, other = make(seed=5), make(seed=5), make(seed=6)
    assert "the weights are random" in caplog.text
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is untouched"
    assert not one.trained
    assert torch.equal(one(images()), same(images()))
    assert not torch.equal(one(images()), other(images()))


def test_constructor_words_have_their_effect() -> None:
    encoder = make(
        output_dim=None, in_channels=1, mlp_ratio=2.0, act="quick_gelu", dtype=torch.float64, image_size=(32, 16)
    )
    assert encoder.get_embedding_dimension() == encoder.output_dim == encoder.embed_dim == 64
    assert encoder.config.grid_hw == (4, 2)
    assert encoder.dtype == torch.float64
    assert encoder.encode(np.zeros((9, 9), dtype=np.uint8)).features.shape == (1, 64)
    assert encoder.model.layers[0].mlp.fc1.out_features == 128


def test_preprocessing_off_takes_model_input_only() -> None:
    encoder = make(enable_preprocessing=False)
    assert encoder.encode(images()).features.shape == (3, 24)
    with pytest.raises(InputError, match="preprocessing is off"):
        encoder.encode(photos(1))


# --- encode ------------------------------------------------------------------------------------------------------


def test_encode_gives_what_was_asked_and_nothing_else(encoder: VisionEncoder) -> None:
    plain = encoder.encode(images())
    assert (plain.attention_weights, plain.patch_features, plain.confidence, plain.attention_rollout) == (None,) * 4
    full = encoder.encode(images(), return_attention_weights=True, return_patch_features=True, return_confidence=True)
    assert full.attention_weights is not None
    assert full.attention_weights.shape == (3, 2, 4, 17, 17)
    torch.testing.assert_close(full.attention_weights.sum(-1), torch.ones(3, 2, 4, 17))
    assert full.patch_features is not None
    assert full.patch_features.shape == (3, 4, 4, 64)
    assert full.confidence is not None
    assert full.confidence.shape == (3,)
    torch.testing.assert_close(full.features, plain.features, atol=1e-6, rtol=0)


def test_normalize_output_gives_unit_length(encoder: VisionEncoder) -> None:
    raw = encoder.encode(images(), normalize_output=False).features
    torch.testing.assert_close(encoder.encode(images()).features, F.normalize(raw, dim=-1))
    assert not torch.allclose(raw.norm(dim=-1), torch.ones(3))


def test_encode_leaves_training_mode_and_needs_no_gradients(encoder: VisionEncoder) -> None:
    encoder.train()
    features = encoder.encode(images()).features
    assert encoder.training
    assert not features.requires_grad
    linear = torch.nn.Linear(24, 1)
    linear(features).sum().backward()  # the features may enter training elsewhere
    assert encoder(images()).requires_grad


def test_numbers_that_make_no_sense_are_named(encoder: VisionEncoder) -> None:
    with pytest.raises(OptionError, match="batch_size: expected a positive number, got 0"):
        encoder.encode(images(), batch_size=0)
    with pytest.raises(OptionError, match="output_dim: expected a positive number"):
        make(output_dim=0)


def test_encode_is_without_chance_even_in_training_mode() -> None:
    encoder = configured("transformer_blocks", feedforward_dropout=0.5).train()
    assert torch.equal(encoder.encode(images()).features, encoder.encode(images()).features)


def test_modes_of_submodules_survive_encode(encoder: VisionEncoder) -> None:
    encoder.train()
    encoder.model.layers[0].eval()  # frozen by the user
    encoder.encode(images())
    assert encoder.model.training
    assert not encoder.model.layers[0].training


def test_batches_of_any_size_agree(encoder: VisionEncoder) -> None:
    whole = encoder.encode(images(7)).features
    torch.testing.assert_close(encoder.encode(images(7), batch_size=3).features, whole, atol=1e-6, rtol=0)
    assert encoder.encode([]).features.shape == (0, 24)
    assert encoder.encode(images(1)[0]).features.shape == (1, 24)


def test_other_sizes_and_mixed_pictures(encoder: VisionEncoder) -> None:
    assert encoder.encode(images(2, (64, 40)), return_patch_features=True).grid_hw == (8, 5)
    assert encoder.encode([*photos(2), images(1)[0]]).features.shape == (3, 24)
    with pytest.raises(InputError, match="pictures of one size"):
        encoder.encode([images(1)[0], images(1, (64, 64))[0]])
    with pytest.raises(InputError, match="multiples of 8"):
        encoder.encode(images(1, (33, 32)))


def test_channel_order_and_value_range_reach_the_pixels(encoder: VisionEncoder) -> None:
    (photo,) = photos(1)
    expected = encoder.encode(photo).features
    torch.testing.assert_close(encoder.encode(photo[..., ::-1], channel_order="bgr").features, expected)
    unit = torch.from_numpy(photo).permute(2, 0, 1) / 255
    torch.testing.assert_close(encoder.encode(unit, value_range="unit").features, expected)


def test_confidence_is_higher_where_views_agree(encoder: VisionEncoder) -> None:
    flat, noise = torch.zeros(1, 3, 32, 32), images(1)
    confidence = encoder.encode(torch.cat((flat, noise)), return_confidence=True).confidence
    assert confidence is not None
    assert confidence[0] == pytest.approx(1.0, abs=1e-5), "all views of one grey are the same"
    assert 0.0 <= confidence[1] < 0.999


def test_rollout_follows_the_attention() -> None:
    identity = torch.eye(5).expand(1, 3, 2, 5, 5)
    torch.testing.assert_close(attention_rollout(identity), torch.eye(5)[None])
    first, second = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    by_hand = torch.tensor([[0.5, 0.5], [0.5, 0.5]])  # (second + 1) / 2 @ (first + 1) / 2, heads all alike
    stacked = torch.stack((first, second))[None, :, None].expand(1, 2, 3, 2, 2)
    torch.testing.assert_close(attention_rollout(stacked), by_hand[None])
    uneven = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    torch.testing.assert_close(attention_rollout(uneven.expand(1, 1, 1, 2, 2)), (uneven + torch.eye(2))[None] / 2)
    weights = torch.zeros(1, 1, 1, 5, 5)
    weights[..., 3] = 1.0  # everybody looks at the third patch
    result = VisionResult(features=torch.zeros(1, 2), attention_weights=weights, grid_hw=(2, 2), prefix=1)
    assert result.attention_rollout is not None
    assert result.attention_rollout[0].tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_rollout_of_a_model_without_class_token_sums_to_one() -> None:
    encoder = make()
    encoder.configure_advanced_settings({"output_projection": {"pooling_type": "mean"}})
    rollout = encoder.encode(images(), return_attention_weights=True).attention_rollout
    assert rollout is not None
    torch.testing.assert_close(rollout.sum(dim=(1, 2)), torch.ones(3))


# --- results -----------------------------------------------------------------------------------------------------


def test_results_join_and_act_as_their_features(encoder: VisionEncoder) -> None:
    results = [encoder.encode(batch, return_confidence=True) for batch in images(6).split(2)]
    joined = torch.cat(results, dim=0)  # type: ignore[arg-type]
    assert isinstance(joined, VisionResult)
    assert len(joined) == 6
    assert joined.confidence is not None
    torch.testing.assert_close(joined.features, encoder.encode(images(6)).features, atol=1e-6, rtol=0)
    assert torch.concat(results).features.shape == (6, 24)  # type: ignore[arg-type, attr-defined]
    assert torch.stack(results).shape == (3, 2, 24)  # type: ignore[arg-type]
    assert torch.equal(torch.cat([results[0], torch.ones(1, 24)])[:2], results[0].features)  # type: ignore[list-item]
    assert np.asarray(results[0]).shape == (2, 24)
    assert repr(results[0]).startswith("VisionResult(features=(2, 24) float32, attention_weights=None")
    assert torch.equal(pickle.loads(pickle.dumps(results[0])).features, results[0].features)


def test_results_that_do_not_fit_are_not_joined(encoder: VisionEncoder) -> None:
    plain, rich = encoder.encode(images()), encoder.encode(images(), return_confidence=True)
    with pytest.raises(InputError, match="confidence is there in some"):
        join([plain, rich])
    with pytest.raises(InputError, match="grid_hw differs"):
        join([plain, encoder.encode(images(1, (40, 32)))])
    with pytest.raises(InputError, match="along the batch"):
        torch.cat([plain, plain], dim=1)  # type: ignore[list-item]
    with pytest.raises(InputError, match="results of one kind"):
        join([plain, EncodingResult(features=plain.features)])


# --- encode_image ------------------------------------------------------------------------------------------------


def test_encode_image_follows_sentence_transformers(encoder: VisionEncoder) -> None:
    many = encoder.encode_image(photos(5), batch_size=2)
    assert isinstance(many, np.ndarray)
    assert (many.shape, many.dtype) == ((5, 24), np.float32)
    one = encoder.encode_image(photos(1)[0])
    assert one.shape == (24,)  # type: ignore[union-attr]
    np.testing.assert_allclose(one, many[0], atol=1e-6)
    assert encoder.encode_image([]).shape == (0, 24)  # type: ignore[union-attr]
    tensor = encoder.encode_image(photos(2), convert_to_tensor=True)
    assert isinstance(tensor, Tensor)
    rows = encoder.encode_image(photos(2), convert_to_numpy=False)
    assert isinstance(rows, list)
    assert rows[0].shape == (24,)
    unit = encoder.encode_image(photos(2), normalize_embeddings=True, truncate_dim=8)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0, atol=1e-6)
    assert unit.shape == (2, 8)  # type: ignore[union-attr]
    similar = encoder.similarity(many, many)
    torch.testing.assert_close(similar.diagonal(), torch.ones(5))


def test_encode_image_refuses_what_it_does_not_know(encoder: VisionEncoder) -> None:
    with pytest.raises(
        OptionError, match=r"unknown key 'normalise_embeddings' \(did you mean 'normalize_embeddings'\?\)"
    ):
        encoder.encode_image(photos(1), normalise_embeddings=True)
    with pytest.raises(OptionError, match="truncate_dim: expected 1 to 24, got 25"):
        encoder.encode_image(photos(1), truncate_dim=25)
    with pytest.raises(OptionError, match="batch_size"):
        encoder.encode_image(photos(1), batch_size=0)
    with pytest.raises(InputError, match="one width"):
        encoder.similarity(np.zeros((1, 3), dtype=np.float32), np.zeros((1, 4), dtype=np.float32))


def test_a_progress_bar_goes_to_stderr(encoder: VisionEncoder, capfd: pytest.CaptureFixture[str]) -> None:
    encoder.encode_image(photos(3), batch_size=1)
    assert capfd.readouterr() == ("", ""), "no terminal, no bar"
    encoder.encode_image(photos(3), batch_size=1, show_progress_bar=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Encoding" in err


# --- configure_advanced_settings ---------------------------------------------------------------------------------

SPECIFIED: dict[str, dict[str, Any]] = {
    "patch_embedding": {"learnable_position": True, "sinusoidal_position": False, "patch_dropout": 0.1},
    "transformer_blocks": {"attention_dropout": 0.1, "feedforward_dropout": 0.1, "pre_layer_norm": True},
    "output_projection": {"use_pooling": True, "pooling_type": "cls_token", "final_activation": "tanh"},
}


def configured(section: str, **options: Any) -> VisionEncoder:
    encoder = make()
    encoder.configure_advanced_settings({section: options})
    return encoder


def test_the_specified_block_changes_only_what_it_says(encoder: VisionEncoder) -> None:
    before = encoder(images())
    encoder.configure_advanced_settings(SPECIFIED)
    torch.testing.assert_close(encoder(images()), before.tanh())


def test_positions_sinusoidal_fixed_learnable_or_none() -> None:
    shuffled = images()[:, :, :, torch.tensor([*range(8, 32), *range(8)])]  # whole patches change places

    def moved(encoder: VisionEncoder) -> bool:
        return not torch.allclose(encoder(images()), encoder(shuffled), atol=1e-6)

    fixed = configured("patch_embedding", learnable_position=False, sinusoidal_position=True)
    both = configured("patch_embedding", sinusoidal_position=True)
    none = configured("patch_embedding", learnable_position=False)
    assert fixed.model.pos_embed is not None
    assert both.model.pos_embed is not None
    assert torch.equal(fixed.model.pos_embed, both.model.pos_embed)
    assert (fixed.model.pos_embed.requires_grad, both.model.pos_embed.requires_grad) == (False, True)
    assert moved(make())
    assert moved(fixed)
    assert not moved(none)
    assert none.model.pos_embed is None


@pytest.mark.parametrize(
    ("section", "option"),
    [
        ("patch_embedding", "patch_dropout"),
        ("transformer_blocks", "attention_dropout"),
        ("transformer_blocks", "feedforward_dropout"),
    ],
)
def test_dropouts_act_in_training_only(section: str, option: str) -> None:
    encoder, x = configured(section, **{option: 0.5}), images()
    assert torch.equal(encoder(x), make()(x))
    encoder.train()
    torch.manual_seed(0)
    assert not torch.allclose(encoder(x), encoder(x))
    off = configured(section, **{option: 0.0}).train()
    assert torch.equal(off(x), off(x))


def test_post_layer_norm_is_another_network(caplog: pytest.LogCaptureFixture) -> None:
    post = configured("transformer_blocks", pre_layer_norm=False)
    assert not torch.allclose(post(images()), make()(images()))
    post.trained = True
    with caplog.at_level(logging.WARNING):
        post.configure_advanced_settings({"transformer_blocks": {"pre_layer_norm": True}})
    assert "train them again" in caplog.text
    assert torch.equal(post(images()), make()(images()))


def test_pooling_types_pool() -> None:
    encoder, x = make(output_dim=None), images()
    tokens = encoder.model.forward_features(x)
    expected = {"cls_token": tokens[:, 0], "mean": tokens[:, 1:].mean(dim=1), "max": tokens[:, 1:].amax(dim=1)}
    for pooling, features in expected.items():
        encoder.configure_advanced_settings({"output_projection": {"pooling_type": pooling}})
        torch.testing.assert_close(encoder(x), features, atol=1e-6, rtol=0)


def test_without_pooling_every_token_is_a_feature() -> None:
    encoder = configured("output_projection", use_pooling=False)
    assert encoder.encode(images()).features.shape == (3, 17, 24)
    assert encoder.encode(images(), return_confidence=True).confidence is not None
    with pytest.raises(OptionError, match="use_pooling is off"):
        encoder.encode_image(photos(1))
    encoder.configure_advanced_settings({"output_projection": {"use_pooling": True}})
    torch.testing.assert_close(encoder(images()), make()(images()))


def test_final_activation_bounds_the_features() -> None:
    sigmoid = configured("output_projection", final_activation="sigmoid")
    assert ((sigmoid(images()) > 0) & (sigmoid(images()) < 1)).all()
    sigmoid.configure_advanced_settings({"output_projection": {"final_activation": None}})
    assert torch.equal(sigmoid(images()), make()(images()))


def test_settings_survive_save_and_load(tmp_path: Path) -> None:
    encoder = make()
    encoder.configure_advanced_settings(
        {"patch_embedding": {"learnable_position": False, "sinusoidal_position": True, "patch_dropout": 0.2}}
        | {"transformer_blocks": {"pre_layer_norm": False}}
        | {"output_projection": {"pooling_type": "max", "final_activation": "tanh"}}
    )
    encoder.save_pretrained(tmp_path)
    again = VisionEncoder.from_pretrained(tmp_path)
    assert again.config == encoder.config
    torch.testing.assert_close(again(images()), encoder(images()), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"patch_embeding": {}},
            r"unknown key 'patch_embeding' \(did you mean 'patch_embedding'\?\); valid: patch_emb",
        ),
        ({"patch_embedding": {"dropout": 0.1}}, "patch_embedding: unknown key 'dropout'.*valid: learnable_position"),
        ({"patch_embedding": {"patch_dropout": "a"}}, "patch_dropout: expected float, got 'a'"),
        ({"patch_embedding": {"patch_dropout": 1.5}}, "patch_dropout: expected a share"),
        ({"transformer_blocks": {"pre_layer_norm": 1}}, "pre_layer_norm: expected bool, got 1"),
        ({"output_projection": {"pooling_type": "avg"}}, "expected one of 'cls_token', 'mean', 'max', got 'avg'"),
        ({"output_projection": {"final_activation": "tan"}}, "final_activation: expected one of None, 'gelu'"),
        ({"output_projection": "tanh"}, "expected a dictionary of options, got str"),
    ],
)
def test_wrong_settings_are_named_and_change_nothing(
    encoder: VisionEncoder, config: dict[str, Any], words: str
) -> None:
    before = encoder.config
    with pytest.raises(OptionError, match=words):
        encoder.configure_advanced_settings({"transformer_blocks": {"attention_dropout": 0.5}} | config)
    assert encoder.config == before


# --- a trained model ---------------------------------------------------------------------------------------------


def test_a_trained_model_means_something() -> None:
    folder = Path(os.environ.get("CAMVEC_MODELS", "")) / "vit-small-224"
    if not (folder / "config.json").is_file():
        pytest.skip("CAMVEC_MODELS names no folder with the small trained ViT, vit-small-224")
    encoder = VisionEncoder.from_pretrained(folder)
    assert encoder.trained
    assert encoder.transform.interpolation == "area"
    ys, xs = np.mgrid[0:224, 0:224]
    disc = np.where(((ys - 112) ** 2 + (xs - 112) ** 2 < 70**2)[..., None], [200, 40, 40], [30, 90, 40]).astype(
        np.uint8
    )
    moved = np.roll(disc, 3, axis=1)
    stripes = np.repeat(((xs // 8 % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    similar = encoder.similarity(*[encoder.encode_image([disc, moved, stripes])] * 2)
    assert similar[0, 1] > 0.95 > similar[0, 2]
