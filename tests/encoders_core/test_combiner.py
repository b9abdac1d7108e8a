"""MultimodalCombiner: what comes in, what counts, what is missing, what comes out."""

import copy
import logging
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders_core.errors import InputError, OptionError, WeightsError, WeightsNotFoundError
from encoders_core.models.fusion import FusionMethod
from encoders_core.multimodal_combiner import MultimodalCombiner
from encoders_core.results import EncodingResult

DIMS = {"text": 24, "image": 16, "audio": 8}
METHODS = get_args(FusionMethod)


def combiner(method: Any = "attention", **options: Any) -> MultimodalCombiner:
    return MultimodalCombiner(DIMS, method, 32, **({"seed": 0} | options))


def features(batch: int = 2, tokens: int = 5, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "text": torch.randn(batch, tokens, 24, generator=generator),
        "image": torch.randn(batch, 16, generator=generator),
        "audio": torch.randn(batch, 8, generator=generator),
    }


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("cross", [True, False])
def test_combine_gives_one_vector_a_sample(method: str, cross: bool) -> None:
    result = combiner(method, enable_cross_attention=cross).combine(features(3))
    assert result.combined.shape == (3, 32)
    assert result.combined is result.features
    assert result.combined.isfinite().all()
    assert result.attention_scores is None


@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 7),
    method=st.sampled_from(METHODS),
    present=st.sets(st.sampled_from(sorted(DIMS)), min_size=1),
)
@settings(max_examples=30, deadline=None)
def test_combine_takes_any_subset_of_modalities(batch: int, tokens: int, method: str, present: set[str]) -> None:
    given_features = {name: value for name, value in features(batch, tokens).items() if name in present}
    result = combiner(method).combine(given_features)
    assert result.combined.shape == (batch, 32)
    assert result.combined.isfinite().all()


def test_methods_differ() -> None:
    found = [combiner(method).combine(features()).combined for method in METHODS]
    for i, first in enumerate(found):
        assert all(not torch.allclose(first, second, atol=1e-3) for second in found[i + 1 :])


def test_every_modality_reaches_the_result(method: str) -> None:
    model = combiner(method, enable_cross_attention=False)
    before = model.combine(features()).combined
    for name, value in features().items():
        changed = model.combine(features() | {name: value.flip(0)}).combined
        assert not torch.allclose(before, changed, atol=1e-4), name


def test_arrays_results_and_tensors_are_equal(method: str) -> None:
    model, tensors = combiner(method), features()
    expected = model.combine(tensors).combined
    others = {
        "text": tensors["text"].numpy(),
        "image": EncodingResult(features=tensors["image"]),
        "audio": tensors["audio"].double(),
    }
    torch.testing.assert_close(model.combine(others).combined, expected)


def test_order_of_the_inputs_does_not_matter(method: str) -> None:
    model, inputs = combiner(method), features()
    backwards = dict(reversed(inputs.items()))
    assert torch.equal(model.combine(backwards).combined, model.combine(inputs).combined)


def test_a_missing_modality_is_one_that_is_none_masked_or_without_weight(method: str) -> None:
    model, inputs = combiner(method, enable_cross_attention=False), features()
    without = {name: value for name, value in inputs.items() if name != "image"}
    expected = model.combine(without).combined
    torch.testing.assert_close(model.combine(without | {"image": None}).combined, expected)
    masked = model.combine(inputs, masks={"image": [False, False]}).combined
    torch.testing.assert_close(masked, expected)
    weightless = model.combine(inputs, modality_weights={"text": 1, "image": 0, "audio": 1}).combined
    if method in ("attention", "weighted_sum"):
        torch.testing.assert_close(weightless, expected)


@pytest.mark.parametrize("cross", [True, False])
def test_masks_say_sample_by_sample_what_is_there(method: str, cross: bool) -> None:
    model, inputs = combiner(method, enable_cross_attention=cross), features(2)
    mixed = model.combine(inputs, masks={"image": [True, False]}).combined
    whole = model.combine(inputs).combined
    without = model.combine({name: value for name, value in inputs.items() if name != "image"}).combined
    torch.testing.assert_close(mixed[0], whole[0])
    torch.testing.assert_close(mixed[1], without[1])


@pytest.mark.parametrize("cross", [True, False])
def test_padding_changes_nothing(method: str, cross: bool) -> None:
    model, inputs = combiner(method, enable_cross_attention=cross), features(2, tokens=5)
    padded = torch.cat((inputs["text"], torch.full((2, 3, 24), float("nan"))), dim=1)
    mask = torch.tensor([[True] * 5 + [False] * 3] * 2)
    got = model.combine(inputs | {"text": padded}, masks={"text": mask}).combined
    torch.testing.assert_close(got, model.combine(inputs).combined)


def test_batch_is_the_samples_one_by_one(method: str) -> None:
    model, inputs = combiner(method), features(3)
    whole = model.combine(inputs).combined
    for i in range(3):
        one = model.combine({name: value[i : i + 1] for name, value in inputs.items()}).combined
        torch.testing.assert_close(one[0], whole[i])


def test_weights_draw_the_result_to_a_modality(method: str) -> None:
    model, inputs = combiner(method, enable_cross_attention=False), features()
    alone = model.combine({"image": inputs["image"]}).combined
    near, far = (
        model.combine(inputs, modality_weights={"text": 1 - w, "image": w, "audio": 0}).combined for w in (0.99, 0.5)
    )
    if method in ("attention", "weighted_sum"):
        assert (near - alone).norm() < 0.2 * (far - alone).norm()
    assert not torch.allclose(near, far, atol=1e-3)


def test_weights_count_by_their_ratio(method: str) -> None:
    model, inputs = combiner(method), features()
    first = model.combine(inputs, modality_weights={"text": 0.2, "image": 0.2, "audio": 0.1}).combined
    second = model.combine(inputs, modality_weights={"text": 4, "image": 4, "audio": 2}).combined
    torch.testing.assert_close(first, second)


def test_equal_weights_are_no_weights(method: str) -> None:
    model, inputs = combiner(method), features()
    expected = model.combine(inputs).combined
    torch.testing.assert_close(model.combine(inputs, modality_weights=dict.fromkeys(DIMS, 0.3)).combined, expected)


def test_shares_are_where_the_attention_looks() -> None:
    weights = {"text": 0.5, "image": 0.3, "audio": 0.2}
    model = combiner(enable_cross_attention=False)
    fusion: Any = model.model.fusion
    torch.nn.init.zeros_(fusion.latent)  # nothing learnt to tell tokens apart
    torch.nn.init.zeros_(fusion.attn.qkv.bias)
    scores = model.combine(features(), weights, return_attention_scores=True).attention_scores
    assert scores is not None
    for name, share in weights.items():
        torch.testing.assert_close(scores[f"fused->{name}"].sum(-1), torch.full((2, 8), share))


def test_scores_name_every_pair_both_ways() -> None:
    scores = combiner().combine(features(2, 5), return_attention_scores=True).attention_scores
    assert scores is not None
    pairs = {f"{a}->{b}" for a in DIMS for b in DIMS if a != b}
    assert scores.keys() == pairs | {f"fused->{name}" for name in DIMS}
    assert scores["text->image"].shape == (2, 8, 5, 1)
    assert scores["image->text"].shape == (2, 8, 1, 5)
    for pair in pairs:
        torch.testing.assert_close(scores[pair].sum(-1), torch.ones(scores[pair].shape[:-1]))
    fused = torch.cat([scores[f"fused->{name}"] for name in DIMS], dim=-1)
    torch.testing.assert_close(fused.sum(-1), torch.ones(2, 8))


def test_scores_of_a_missing_context_are_zero() -> None:
    result = combiner().combine(features(), masks={"image": [True, False]}, return_attention_scores=True)
    assert result.attention_scores is not None
    assert result.attention_scores["text->image"][0].sum() > 0
    assert not result.attention_scores["text->image"][1].any()
    assert not result.attention_scores["fused->image"][1].any()


def test_scores_without_any_attention_are_an_empty_dict() -> None:
    model = combiner("concat", enable_cross_attention=False)
    assert model.combine(features(), return_attention_scores=True).attention_scores == {}


def test_written_out_attention_equals_the_fast_one(method: str) -> None:
    model, masks = combiner(method), {"text": [[True, True, True, False, False]] * 2, "image": [True, False]}
    plain = model.combine(features(), masks=masks, return_attention_scores=True).combined
    torch.testing.assert_close(model.combine(features(), masks=masks).combined, plain, atol=1e-5, rtol=1e-5)


def test_normalize_output_gives_unit_length() -> None:
    lengths = combiner().combine(features(), normalize_output=True).combined.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(2))


def test_results_join_with_cat() -> None:
    model = combiner()
    parts = [model.combine(features(2, seed=s), return_attention_scores=True) for s in (1, 2)]
    joined: Any = torch.cat(parts, dim=0)  # type: ignore[arg-type]
    assert joined.combined.shape == (4, 32)
    assert joined.attention_scores["text->image"].shape[0] == 4
    torch.testing.assert_close(joined.combined[2:], parts[1].combined)
    assert np.asarray(joined).shape == (4, 32)


def test_results_with_and_without_scores_do_not_join() -> None:
    model = combiner()
    parts = [model.combine(features(), return_attention_scores=flag) for flag in (True, False)]
    with pytest.raises(InputError, match="attention_scores is there in some of the results only"):
        torch.cat(parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("cross", [True, False])
def test_gradient_reaches_every_trained_parameter_and_every_input(method: str, cross: bool) -> None:
    model = combiner(method, enable_cross_attention=cross)
    model.configure_fusion({"attention_fusion": {"learnable_temperature": model.config.attends}})
    inputs = {name: value.requires_grad_() for name, value in features(2, 4).items()}
    model.train()(inputs).square().sum().backward()
    unreached = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert unreached == []
    assert all(value.grad is not None and value.grad.any() for value in inputs.values())


def test_gradient_is_finite_where_a_modality_is_missing(method: str) -> None:
    model = combiner(method)
    model.combine(features(), masks={"image": [True, False]}).combined.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_encode_is_combine_in_evaluation_mode_without_gradients() -> None:
    model = combiner()
    model.configure_fusion({"output_processing": {"dropout": 0.5}})
    expected = model.combine(features()).combined
    result = model.train().encode(features(), return_attention_scores=True)
    assert model.training
    assert not result.combined.requires_grad
    assert result.attention_scores
    torch.testing.assert_close(result.combined, expected)


def test_training_fits_a_toy(method: str) -> None:
    model = combiner(method).train()
    inputs, target = features(8), torch.randn(8, 32, generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = (model(inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_seed_makes_weights_repeatable_and_leaves_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    first, second, third = combiner(seed=3), combiner(seed=3), combiner(seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    same = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(first.combine(features()).combined, third.combine(features()).combined)


def test_save_and_load_give_the_same_features(method: str, tmp_path: Path) -> None:
    model = combiner(method)
    model.configure_fusion(
        {
            "attention_fusion": {"num_attention_heads": 4, "temperature": 0.5, "learnable_temperature": True},
            "cross_modal_attention": {"symmetric": False},
            "output_processing": {"layer_norm": False, "final_projection": False},
        }
    )
    model.trained = True
    model.save_pretrained(tmp_path)
    loaded = MultimodalCombiner.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.trained
    assert not loaded.training
    assert loaded.model.log_temperature.requires_grad
    assert torch.equal(loaded.combine(features()).combined, model.combine(features()).combined)


def test_load_refuses_what_is_no_combiner(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"expected one of model\.safetensors"):
        MultimodalCombiner.from_pretrained(tmp_path)
    combiner().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="not that of a MultimodalCombiner"):
        MultimodalCombiner.from_pretrained(tmp_path)


def test_load_lists_the_keys_of_other_weights(tmp_path: Path) -> None:
    combiner("concat").save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"method": "concat"', '"method": "attention"')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=r"missing: fusion\.attn") as caught:
        MultimodalCombiner.from_pretrained(tmp_path)
    assert "fusion.mix.weight" in caught.value.unexpected


def test_deepcopy_and_bfloat16_work(method: str) -> None:
    model = combiner(method)
    assert torch.equal(copy.deepcopy(model).combine(features()).combined, model.combine(features()).combined)
    assert combiner(method, dtype=torch.bfloat16).combine(features()).combined.dtype == torch.bfloat16


def test_export_with_a_dynamic_batch(method: str) -> None:
    model = combiner(method).model
    masks = {"text": torch.ones(2, 5, dtype=torch.bool), "image": torch.ones(2, 1, dtype=torch.bool)}
    tokens = {"text": features()["text"], "image": features()["image"][:, None]}
    batch = torch.export.Dim("batch", min=2, max=64)
    dims: Any = ({"text": {0: batch}, "image": {0: batch}}, {"text": {0: batch}, "image": {0: batch}}, {0: batch})
    program = torch.export.export(model, (tokens, masks, torch.full((2, 2), 0.5)), dynamic_shapes=dims)
    many = {"text": features(7)["text"], "image": features(7)["image"][:, None]}
    all_there = {"text": torch.ones(7, 5, dtype=torch.bool), "image": torch.ones(7, 1, dtype=torch.bool)}
    shares = torch.full((7, 2), 0.5)
    torch.testing.assert_close(program.module()(many, all_there, shares), model(many, all_there, shares))


def test_construction_says_that_the_weights_are_random(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not combiner().trained
    assert "weights are random" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"text": torch.zeros(2, 5, 25)},
            r"text: expected features \(B, 24\) or a sequence \(B, N, 24\), got \(2, 5, 25\)",
        ),
        ({"image": torch.zeros(16)}, r"image: expected features \(B, 16\).*got \(16,\)"),
        ({"text": torch.zeros(2, 0, 24)}, r"got \(2, 0, 24\)"),
        ({"image": torch.zeros(3, 16)}, r"one batch size for all modalities, got .*'image': 3"),
        ({"image": torch.zeros(2, 16, dtype=torch.int64)}, "image: expected floats, got torch.int64"),
        ({"imge": torch.zeros(2, 16)}, "unknown key 'imge'.*did you mean 'image'.*valid: text, image, audio"),
        ({"text": None, "image": None, "audio": None}, "at least one of text, image, audio, got none"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, OptionError), match=message):
        combiner().combine(features() | change)


def test_inputs_must_be_a_dictionary() -> None:
    with pytest.raises(InputError, match="expected a dictionary of features by modality, got Tensor"):
        combiner().combine(torch.zeros(2, 16))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"text": 1.0, "image": 1.0}, "no weight for audio"),
        ({"text": 1.0, "image": 1.0, "audio": 1.0, "smell": 1.0}, "unknown key 'smell'"),
        ({"text": -1.0, "image": 1.0, "audio": 1.0}, "at least 0 and one above it"),
        ({"text": 0.0, "image": 0.0, "audio": 0.0}, "at least 0 and one above it"),
        ({"text": float("nan"), "image": 0.0, "audio": 1.0}, "at least 0 and one above it"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        combiner().combine(features(), weights)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"text": torch.ones(2, 4)}, r"expected \(B, N\) = \(2, 5\) or \(B,\).*got \(2, 4\)"),
        ({"text": torch.full((2, 5), 0.5)}, "True or 1 where a token counts"),
        ({"smell": [True, True]}, "unknown key 'smell'"),
        ({name: [True, False] for name in DIMS}, "sample 1 has no modality left"),
    ],
)
def test_masks_that_do_not_fit_are_named(masks: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, OptionError), match=message):
        combiner().combine(features(), masks=masks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_dimensions": {}}, "at least one modality"),
        ({"input_dimensions": {"text": 0}}, "input_dimensions.text: expected a positive number, got 0"),
        ({"input_dimensions": {"a.b": 4}}, "expected a name like 'text'"),
        ({"fusion_method": "sum"}, "expected one of attention, concat, weighted_sum, mlp, got 'sum'"),
        ({"output_dim": 0}, "output_dim: expected a positive number"),
    ],
)
def test_constructor_names_what_does_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        MultimodalCombiner(**({"input_dimensions": DIMS} | arguments))
