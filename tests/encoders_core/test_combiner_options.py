"""`configure_fusion`: each option does something, and nothing else is accepted."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders_core.errors import OptionError
from encoders_core.multimodal_combiner import FUSION_OPTIONS, MultimodalCombiner

DIMS = {"text": 24, "image": 16}


def combiner(**options: Any) -> MultimodalCombiner:
    return MultimodalCombiner(DIMS, output_dim=32, **({"seed": 0} | options))


def features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "text": torch.randn(2, 5, 24, generator=generator),
        "image": torch.randn(2, 3, 16, generator=generator),
    }


def combined(model: MultimodalCombiner) -> Tensor:
    return model.combine(features()).combined


def configured(section: str, **options: Any) -> MultimodalCombiner:
    model = combiner()
    model.configure_fusion({section: options})
    return model


def sharp(model: MultimodalCombiner) -> MultimodalCombiner:
    """Weights large enough for attention to choose."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(8.0)
        fusion: Any = model.model.fusion
        nn.init.normal_(fusion.latent, generator=torch.Generator().manual_seed(2))
    return model


def test_the_block_of_the_specification_changes_every_option() -> None:
    model = combiner()
    model.configure_fusion(
        {
            "attention_fusion": {
                "num_attention_heads": 8,
                "attention_dropout": 0.1,
                "temperature": 1.0,
                "learnable_temperature": True,
            },
            "cross_modal_attention": {"enable": True, "symmetric": True, "residual_connections": True},
            "output_processing": {"layer_norm": True, "dropout": 0.1, "final_projection": True},
        }
    )
    assert (model.config.num_heads, model.config.attention_dropout, model.config.dropout) == (8, 0.1, 0.1)
    assert model.config.learnable_temperature


def test_num_attention_heads_splits_the_scores() -> None:
    model = configured("attention_fusion", num_attention_heads=2)
    scores = model.combine(features(), return_attention_scores=True).attention_scores
    assert scores is not None
    assert scores["text->image"].shape == (2, 2, 5, 3)
    assert scores["fused->text"].shape == (2, 2, 5)


@pytest.mark.parametrize(
    ("section", "key"), [("attention_fusion", "attention_dropout"), ("output_processing", "dropout")]
)
def test_dropout_acts_in_training_mode_only(section: str, key: str) -> None:
    model = configured(section, **{key: 0.5})
    torch.testing.assert_close(combined(model), combined(combiner()))
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(combined(model), combined(model), atol=1e-4)
    assert torch.equal(combined(combiner().train()), combined(combiner()))


def entropy(model: MultimodalCombiner, pair: str) -> float:
    scores = model.combine(features(), return_attention_scores=True).attention_scores
    assert scores is not None
    weights = scores[pair].detach()
    return float(-(weights * weights.clamp(min=1e-12).log()).sum(-1).mean())


@pytest.mark.parametrize("pair", ["text->image", "fused->text"])
def test_temperature_softens_attention(pair: str) -> None:
    hot, cold = (sharp(configured("attention_fusion", temperature=t)) for t in (4.0, 0.25))
    assert entropy(cold, pair) < 0.9 * entropy(hot, pair)


@pytest.mark.parametrize("learnable", [True, False])
def test_learnable_temperature_gets_a_gradient(learnable: bool) -> None:
    model = configured("attention_fusion", temperature=2.0, learnable_temperature=learnable)
    torch.testing.assert_close(model.model.log_temperature.exp(), torch.tensor(2.0), check_device=False)
    combined(model).square().sum().backward()
    assert (model.model.log_temperature.grad is not None) is learnable


def test_a_learnt_temperature_survives_other_changes() -> None:
    model = configured("attention_fusion", learnable_temperature=True)
    nn.init.constant_(model.model.log_temperature, 0.7)
    model.configure_fusion({"output_processing": {"dropout": 0.1}})
    assert model.model.log_temperature.item() == pytest.approx(0.7)


def test_cross_attention_off_leaves_only_the_fusion() -> None:
    model = configured("cross_modal_attention", enable=False)
    scores = model.combine(features(), return_attention_scores=True).attention_scores
    assert scores is not None
    assert scores.keys() == {"fused->text", "fused->image"}
    assert not any("cross" in name for name in model.state_dict())
    assert not torch.allclose(combined(model), combined(combiner()), atol=1e-5)


def test_cross_attention_on_brings_it_back() -> None:
    model = combiner(enable_cross_attention=False)
    before = combined(model)
    model.configure_fusion({"cross_modal_attention": {"enable": True}})
    assert not torch.allclose(combined(model), before, atol=1e-5)
    scores = model.combine(features(), return_attention_scores=True).attention_scores
    assert scores is not None
    assert "text->image" in scores


def test_one_sided_attention_goes_from_the_first_named_to_the_later() -> None:
    model = configured("cross_modal_attention", symmetric=False)
    scores = model.combine(features(), return_attention_scores=True).attention_scores
    assert scores is not None
    assert "text->image" in scores
    assert "image->text" not in scores
    assert not torch.allclose(combined(model), combined(combiner()), atol=1e-5)


def test_without_residual_a_modality_is_what_it_saw() -> None:
    model = configured("cross_modal_attention", residual_connections=False)
    assert not torch.allclose(combined(model), combined(combiner()), atol=1e-3)
    alone = {"text": features()["text"]}
    torch.testing.assert_close(model.combine(alone).combined, combiner().combine(alone).combined)


def test_layer_norm_sets_the_scale() -> None:
    model = configured("output_processing", final_projection=False)
    torch.testing.assert_close(combined(model).var(dim=-1, correction=0), torch.ones(2), atol=1e-2, rtol=0)
    model.configure_fusion({"output_processing": {"layer_norm": False}})
    assert combined(model).var(dim=-1).max() < 0.5


def test_final_projection_turns_the_features() -> None:
    without = configured("output_processing", final_projection=False)
    whole = combiner()
    projected = whole.model.head(combined(without))
    torch.testing.assert_close(projected, combined(whole))


def test_what_is_not_named_keeps_its_very_parameters() -> None:
    model = combiner()
    before = dict(model.named_parameters())
    model.configure_fusion({"attention_fusion": {"num_attention_heads": 4}, "output_processing": {"layer_norm": False}})
    after = dict(model.named_parameters())
    assert before.keys() - after.keys() == {"model.norm.weight", "model.norm.bias"}
    assert all(after[name] is before[name] for name in after)


def test_new_parts_are_repeatable() -> None:
    models = [combiner(enable_cross_attention=False) for _ in range(2)]
    for model in models:
        model.configure_fusion({"cross_modal_attention": {"enable": True}})
    assert torch.equal(combined(models[0]), combined(models[1]))


def test_attention_options_without_attention_are_said_to_do_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = combiner(fusion_method="concat", enable_cross_attention=False)
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        model.configure_fusion({"attention_fusion": {"temperature": 2.0}})
    assert "attention_fusion has nothing to act on" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"atention_fusion": {}}, f"unknown key 'atention_fusion'.*valid: {', '.join(FUSION_OPTIONS)}"),
        ({"attention_fusion": {"heads": 8}}, "valid: num_attention_heads, attention_dropout, temperature"),
        ({"attention_fusion": {"num_attention_heads": 5}}, "expected a divisor of output_dim 32, got 5"),
        ({"attention_fusion": {"num_attention_heads": 0}}, "expected a divisor of output_dim 32, got 0"),
        ({"attention_fusion": {"attention_dropout": 1.0}}, "attention_dropout: expected 0 to below 1, got 1.0"),
        ({"attention_fusion": {"temperature": 0}}, "temperature: expected a positive number"),
        ({"attention_fusion": {"learnable_temperature": 1}}, "expected bool, got 1"),
        ({"cross_modal_attention": True}, "expected a dictionary of options, got bool"),
        ({"output_processing": {"dropout": -0.1}}, "dropout: expected 0 to below 1"),
    ],
)
def test_options_that_do_not_fit_change_nothing(config: dict[str, Any], message: str) -> None:
    model = combiner()
    before = model.config
    with pytest.raises(OptionError, match=message):
        model.configure_fusion({"output_processing": {"layer_norm": False}} | config)
    assert model.config is before
