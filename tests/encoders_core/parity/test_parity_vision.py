"""Image towers against transformers: a random model saved with `save_pretrained` and loaded by us, same tensors in."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders_core.vision_encoder import VisionEncoder

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}


def vit(t: ModuleType) -> Any:
    return t.ViTModel(t.ViTConfig(**SMALL))


def vit_classifier(t: ModuleType) -> Any:
    return t.ViTForImageClassification(t.ViTConfig(**SMALL))


def deit(t: ModuleType) -> Any:
    return t.DeiTModel(t.DeiTConfig(**SMALL))


def dinov2(t: ModuleType) -> Any:
    return t.Dinov2Model(t.Dinov2Config(**SMALL))


def dinov2_swiglu(t: ModuleType) -> Any:
    return t.Dinov2Model(t.Dinov2Config(use_swiglu_ffn=True, **SMALL))


def dinov2_registers(t: ModuleType) -> Any:
    return t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(num_register_tokens=3, **SMALL))


def clip(t: ModuleType) -> Any:
    return t.CLIPModel(t.CLIPConfig(vision_config=SMALL, text_config=TEXT, projection_dim=24))


def clip_tower(t: ModuleType) -> Any:
    return t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(projection_dim=24, hidden_act="gelu", **SMALL))


def clip_trunk(t: ModuleType) -> Any:
    return t.CLIPVisionModel(t.CLIPVisionConfig(**SMALL))


def siglip(t: ModuleType) -> Any:
    return t.SiglipModel(t.SiglipConfig(vision_config=SMALL, text_config=TEXT))


def siglip_tower(t: ModuleType) -> Any:
    return t.SiglipVisionModel(t.SiglipVisionConfig(**SMALL))


FAMILIES: dict[str, Callable[[ModuleType], Any]] = {
    function.__name__: function
    for function in (
        *(vit, vit_classifier, deit, dinov2, dinov2_swiglu, dinov2_registers),
        *(clip, clip_tower, clip_trunk, siglip, siglip_tower),
    )
}


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest, transformers: ModuleType, tmp_path: Path) -> tuple[Any, VisionEncoder]:
    model = spread(FAMILIES[request.param](transformers).eval())
    model.save_pretrained(tmp_path)
    return model, VisionEncoder.from_pretrained(tmp_path)


def spread(model: torch.nn.Module) -> Any:
    """Weights far from their starting values: biases, norms and tables that are zeros or ones would hide a swap."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def reference(model: Any, x: Tensor, **options: Any) -> Tensor:
    """The vector that users of transformers take as the feature of a picture."""
    if hasattr(model, "get_image_features"):
        features = model.get_image_features(pixel_values=x, **options)
        return features if isinstance(features, Tensor) else features.pooler_output
    if hasattr(model, "classifier"):
        return model.vit(x, **options).last_hidden_state[:, 0]
    output = model(x, **options)
    if getattr(output, "image_embeds", None) is not None:
        return output.image_embeds
    is_bert_like = type(model).__name__ in ("ViTModel", "DeiTModel")  # their pooler is a head of its own
    return output.last_hidden_state[:, 0] if is_bert_like else output.pooler_output


def test_parity_of_features(pair: tuple[Any, VisionEncoder]) -> None:
    model, encoder = pair
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(encoder(x), reference(model, x), atol=1e-5, rtol=0)


def test_parity_of_tokens_and_attention(pair: tuple[Any, VisionEncoder]) -> None:
    model, encoder = pair
    x, trunk = torch.randn(2, 3, 32, 32), getattr(pair[0], "vision_model", getattr(model, "vit", model))
    trunk.set_attn_implementation("eager")
    output = trunk(x, output_attentions=True)
    result = encoder.encode(x, return_attention_weights=True, return_patch_features=True)
    theirs = torch.stack(output.attentions, dim=1)
    torch.testing.assert_close(result.attention_weights, theirs, atol=1e-5, rtol=0)
    tokens = output.last_hidden_state
    if type(model).__name__.startswith("CLIP"):  # there the final norm is applied to the class token alone
        tokens = encoder.model.norm(tokens)
    patches = result.patch_features.flatten(1, 2)
    torch.testing.assert_close(patches, tokens[:, -patches.shape[1] :], atol=1e-5, rtol=0)


def test_parity_at_another_size(pair: tuple[Any, VisionEncoder], tmp_path: Path) -> None:
    model, encoder = pair
    x = torch.randn(2, 3, 48, 40)
    is_dino = type(model).__name__.startswith("Dinov2")  # it always interpolates
    theirs = reference(model, x, **({} if is_dino else {"interpolate_pos_encoding": True}))
    torch.testing.assert_close(encoder(x), theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        VisionEncoder.from_pretrained(tmp_path, image_size=(48, 40))(x), theirs, atol=1e-5, rtol=0
    )


def test_parity_survives_save_and_load(pair: tuple[Any, VisionEncoder], tmp_path: Path) -> None:
    _, encoder = pair
    encoder.save_pretrained(tmp_path / "ours")
    again = VisionEncoder.from_pretrained(tmp_path / "ours")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(x), encoder(x), atol=1e-6, rtol=0)
    assert again.transform == encoder.transform
    assert again.config == encoder.config


def test_parity_in_openai_names(transformers: ModuleType, tmp_path: Path) -> None:
    """The same CLIP under the names of the released files: projection transposed, Q, K and V in one."""
    model = spread(clip(transformers).eval())
    torch.save({"state_dict": openai_names(model)}, tmp_path / "clip.pt")
    encoder = VisionEncoder.from_pretrained(tmp_path / "clip.pt", act="quick_gelu", num_heads=2)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(x), reference(model, x), atol=1e-5, rtol=0)


def openai_names(model: Any) -> dict[str, Tensor]:
    """The image tower of a transformers CLIP as OpenAI and open_clip name it."""
    vision = model.vision_model
    state = {
        "visual.conv1.weight": vision.embeddings.patch_embedding.weight,
        "visual.class_embedding": vision.embeddings.class_embedding,
        "visual.positional_embedding": vision.embeddings.position_embedding.weight,
        "visual.proj": model.visual_projection.weight.T,
        "logit_scale": model.logit_scale,
        "token_embedding.weight": model.text_model.embeddings.token_embedding.weight,
    }
    norms = {"ln_pre": vision.pre_layrnorm, "ln_post": vision.post_layernorm}
    for index, layer in enumerate(vision.encoder.layers):
        base, attention = f"transformer.resblocks.{index}.", layer.self_attn
        norms |= {f"{base}ln_1": layer.layer_norm1, f"{base}ln_2": layer.layer_norm2}
        norms |= {f"{base}mlp.c_fc": layer.mlp.fc1, f"{base}mlp.c_proj": layer.mlp.fc2}
        norms |= {f"{base}attn.out_proj": attention.out_proj}
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        state[f"visual.{base}attn.in_proj_weight"] = torch.cat([part.weight for part in parts])
        state[f"visual.{base}attn.in_proj_bias"] = torch.cat([part.bias for part in parts])
    for name, module in norms.items():
        state |= {f"visual.{name}.weight": module.weight, f"visual.{name}.bias": module.bias}
    return {key: value.detach().clone() for key, value in state.items()}
