"""Video towers against transformers: a random model saved with `save_pretrained` and loaded by us, same tensors in."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders_core.errors import OptionError, WeightsError
from encoders_core.video_encoder import VideoEncoder

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
}


def videomae(t: ModuleType) -> Any:
    return t.VideoMAEModel(t.VideoMAEConfig(patch_size=8, num_frames=4, **SMALL))


def videomae_normed(t: ModuleType) -> Any:
    return t.VideoMAEModel(t.VideoMAEConfig(patch_size=8, num_frames=4, use_mean_pooling=False, **SMALL))


def videomae_pretraining(t: ModuleType) -> Any:
    decoder = {"decoder_num_attention_heads": 2, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    config = t.VideoMAEConfig(patch_size=8, num_frames=4, decoder_intermediate_size=32, **decoder, **SMALL)
    return t.VideoMAEForPreTraining(config)


def videomae_without_bias(t: ModuleType) -> Any:
    return t.VideoMAEModel(t.VideoMAEConfig(patch_size=8, num_frames=4, qv_bias=False, **SMALL))


def vivit(t: ModuleType) -> Any:
    return t.VivitModel(t.VivitConfig(tubelet_size=[2, 8, 8], num_frames=4, **SMALL))


def vivit_classifier(t: ModuleType) -> Any:
    return t.VivitForVideoClassification(t.VivitConfig(tubelet_size=[2, 8, 8], num_frames=4, **SMALL))


def timesformer(t: ModuleType) -> Any:
    return t.TimesformerModel(t.TimesformerConfig(patch_size=8, num_frames=4, **SMALL))


def timesformer_joint(t: ModuleType) -> Any:
    config = t.TimesformerConfig(patch_size=8, num_frames=4, attention_type="joint_space_time", **SMALL)
    return t.TimesformerModel(config)


FAMILIES: dict[str, Callable[[ModuleType], Any]] = {
    function.__name__: function
    for function in (
        *(videomae, videomae_normed, videomae_pretraining, videomae_without_bias),
        *(vivit, vivit_classifier, timesformer, timesformer_joint),
    )
}


def spread(model: Any) -> Any:
    """Weights far from their small and zero beginnings, so that every one of them is seen in the output."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.1)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1.0
    return model


def clip(frames: int = 4, side: int = 32) -> Tensor:
    return torch.randn(2, frames, 3, side, side)


def trunk(model: Any) -> Any:
    return getattr(model, model.base_model_prefix, model)


@pytest.mark.parametrize("family", FAMILIES)
def test_tower_equals_transformers(family: str, transformers: ModuleType, tmp_path: Path) -> None:
    model = spread(FAMILIES[family](transformers).eval())
    model.save_pretrained(tmp_path)
    ours, x = VideoEncoder.from_pretrained(tmp_path), clip()
    expected = trunk(model)(x).last_hidden_state
    token, maps = ours.tower.model(x)
    tokens = maps.flatten(1, 3)
    if token is not None:
        torch.testing.assert_close(token, expected[:, 0], atol=1e-5, rtol=0)
        expected = expected[:, 1:]
    if "timesformer" in family:  # theirs run along time within each place
        expected = expected.unflatten(1, (16, 4)).transpose(1, 2).flatten(1, 2)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)
    assert ours.trained
    assert not ours.training


@pytest.mark.parametrize("family", ["videomae", "vivit_classifier", "timesformer"])
def test_encode_is_the_familys_own_summary(family: str, transformers: ModuleType, tmp_path: Path) -> None:
    model = spread(FAMILIES[family](transformers).eval())
    model.save_pretrained(tmp_path)
    ours, x = VideoEncoder.from_pretrained(tmp_path), clip()
    tokens = trunk(model)(x).last_hidden_state
    expected = tokens.mean(1) if family == "videomae" else tokens[:, 0]
    torch.testing.assert_close(ours.encode(x, normalize_output=False).features, expected, atol=1e-5, rtol=0)


def test_videomae_classifier_normalises_behind_the_mean(transformers: ModuleType, tmp_path: Path) -> None:
    config = transformers.VideoMAEConfig(patch_size=8, num_frames=4, **SMALL)
    model = spread(transformers.VideoMAEForVideoClassification(config).eval())
    model.save_pretrained(tmp_path)
    ours, x = VideoEncoder.from_pretrained(tmp_path), clip()
    logits = model.classifier(ours.encode(x, normalize_output=False).features)
    torch.testing.assert_close(logits, model(x).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["videomae", "vivit", "timesformer"])
def test_saved_by_us_loads_as_it_was(family: str, transformers: ModuleType, tmp_path: Path) -> None:
    spread(FAMILIES[family](transformers).eval()).save_pretrained(tmp_path / "theirs")
    ours, x = VideoEncoder.from_pretrained(tmp_path / "theirs"), clip()
    ours.save_pretrained(tmp_path / "ours")
    again = VideoEncoder.from_pretrained(tmp_path / "ours")
    assert torch.equal(again.encode(x).features, ours.encode(x).features)
    assert (again.config, again.transform, again.trained) == (ours.config, ours.transform, True)


def test_any_number_of_frames_is_brought_to_the_towers(transformers: ModuleType, tmp_path: Path) -> None:
    spread(videomae(transformers).eval()).save_pretrained(tmp_path)
    ours = VideoEncoder.from_pretrained(tmp_path)
    long, short = ours.encode(clip(10)), ours.encode(clip(2))
    assert long.frame_indices.tolist() == [[0, 3, 6, 9]] * 2
    assert short.frame_indices.tolist() == [[0, 0, 0, 1]] * 2
    x = clip(10)
    expected = ours.encode(x[:, [0, 3, 6, 9]]).features
    torch.testing.assert_close(ours.encode(x).features, expected)


def test_vivit_at_another_size_resizes_positions_in_every_step(transformers: ModuleType, tmp_path: Path) -> None:
    spread(vivit(transformers).eval()).save_pretrained(tmp_path)
    ours = VideoEncoder.from_pretrained(tmp_path)
    assert ours.encode(clip(side=48)).features.shape == (2, 32)
    table = ours.tower.model._over_time(ours.tower.model.pos_embed[0, 1:], (4, 4))
    assert torch.equal(table.flatten(0, 1), ours.tower.model.pos_embed[0, 1:])


def test_preprocessing_of_frames_equals_transformers(transformers: ModuleType, tmp_path: Path) -> None:
    spread(videomae(transformers).eval()).save_pretrained(tmp_path)
    processor = transformers.models.videomae.image_processing_pil_videomae.VideoMAEImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(tmp_path)
    ours = VideoEncoder.from_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (4, 60, 80, 3), dtype=np.uint8)
    theirs = processor(list(frames), return_tensors="pt").pixel_values[0]
    mine = ours.transform([torch.from_numpy(frame).permute(2, 0, 1) for frame in frames])
    assert float((theirs - mine).abs().max()) <= 1.001 / 255 / min(ours.transform.std)
    features = ours.encode(frames).features
    assert float(torch.cosine_similarity(features, ours.encode(theirs[None]).features)) >= 0.9999


def test_foreign_video_file_is_named(transformers: ModuleType, tmp_path: Path) -> None:
    model = vivit(transformers)
    model.layers = model.layers[:1]
    del model.layers[0].mlp
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="no blocks"):
        VideoEncoder.from_pretrained(tmp_path)


def test_temporal_model_on_top_of_a_tower(transformers: ModuleType, tmp_path: Path) -> None:
    spread(vivit(transformers).eval()).save_pretrained(tmp_path)
    ours, x = VideoEncoder.from_pretrained(tmp_path), clip()
    assert ours.config.pooling == "cls_token"
    ours.configure_temporal_processing({"temporal_modeling": {"type": "gru"}})
    assert ours.config.pooling == "attention"
    result = ours.encode(x, normalize_output=False, return_temporal_attention=True, return_layer_attention=True)
    torch.testing.assert_close(result.features, ours.tower.model(x)[1].mean((1, 2, 3)), atol=1e-5, rtol=0)
    assert result.temporal_attention is not None
    assert result.layer_attention is not None
    assert result.temporal_attention.shape == (2, 2)
    assert result.layer_attention.shape[-2:] == (2, 2)
    with pytest.raises(OptionError, match="attention, mean, max, lstm, got 'cls_token'"):
        ours.encode(x, "cls_token")


def test_motion_of_a_tubelet_is_the_mean_of_its_frames(transformers: ModuleType, tmp_path: Path) -> None:
    spread(videomae(transformers).eval()).save_pretrained(tmp_path)
    ours = VideoEncoder.from_pretrained(tmp_path)
    levels = {"motion_attention": True, "temporal_pooling": "attention_weighted"}
    ours.configure_temporal_processing({"motion_modeling": levels})
    still = np.full((4, 32, 32, 3), 50, np.uint8)
    still[2:] = 80
    result = ours.encode(still, return_temporal_attention=True)
    assert result.motion is not None
    torch.testing.assert_close(result.motion, torch.tensor([[0.0, 15.0]]), atol=0.1, rtol=0)
    assert int(result.temporal_attention[0].argmax()) == 1  # type: ignore[index]
