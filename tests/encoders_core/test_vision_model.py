"""The ViT module itself: shapes, rows, gradients, export, every manner of `VitConfig`."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from encoders_core.errors import InputError, OptionError
from encoders_core.models.layers import Attention, Block, PatchDropout
from encoders_core.models.positions import resize_positions, sincos_2d
from encoders_core.models.vit import VisionTransformer, VitConfig

TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {},
    "vit_mean": {"pool": "mean", "fc_norm": True},
    "vit_no_class": {"class_token": False, "pool": "max"},
    "clip": {"norm_pre": True, "patch_bias": False, "act": "quick_gelu", "num_classes": 24, "head_bias": False},
    "siglip": {"class_token": False, "pool": "map", "act": "gelu_tanh"},
    "dinov2": {"init_values": 1.0, "reg_tokens": 3, "no_embed_class": True},
    "dinov2_giant": {"init_values": 1e-5, "swiglu": True, "mlp_hidden": 88},
    "post_norm": {"pre_layer_norm": False, "num_classes": 8, "final_activation": "tanh"},
    "sinusoidal": {"position": "sinusoidal"},
    "no_positions": {"position": "none", "no_embed_class": True},
}


def tiny(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(VitConfig(**(TINY | changes))).eval()


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> VisionTransformer:
    return tiny(**FAMILIES[request.param])


def images(batch: int = 2, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def test_forward_gives_one_finite_vector_an_image(model: VisionTransformer) -> None:
    features = model(images())
    assert features.shape == (2, model.config.output_dim)
    assert features.isfinite().all()


def test_forward_equals_features_then_head(model: VisionTransformer) -> None:
    x = images()
    torch.testing.assert_close(model(x), model.forward_head(model.forward_features(x)), atol=1e-6, rtol=0)


def test_backward_reaches_every_trained_parameter(model: VisionTransformer) -> None:
    model.train()(images()).square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # A key's bias cancels in softmax, but queries, keys and values share one parameter: all must have gradients.
    assert missing == []


def test_state_dict_round_trip_on_meta(model: VisionTransformer) -> None:
    with torch.device("meta"):
        other = VisionTransformer(model.config)
    other.load_state_dict(model.state_dict(), assign=True, strict=True)
    assert torch.equal(other.eval()(images()), model(images()))


def test_deepcopy_hooks_and_determinism(model: VisionTransformer) -> None:
    seen: list[torch.Size] = []
    other = copy.deepcopy(model)
    other.blocks[0].register_forward_hook(lambda _m, _i, output: seen.append(output.shape))
    assert torch.equal(other(images()), model(images()))
    assert len(seen) == 1


@pytest.mark.parametrize("family", ["vit", "clip", "siglip", "dinov2"])
def test_export_with_dynamic_batch(family: str) -> None:
    model = tiny(**FAMILIES[family])
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (images(3),), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(images(5)), model(images(5)), atol=1e-6, rtol=0)


def test_compile_has_no_graph_breaks() -> None:
    model = tiny()
    compiled: Any = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images(3)), model(images(3)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("swiglu", [True, False])
def test_block_on_a_subset_of_rows_equals_the_whole(*, pre_norm: bool, swiglu: bool) -> None:
    torch.manual_seed(0)
    block = Block(32, 4, mlp_hidden=48, swiglu=swiglu, init_values=0.5, pre_norm=pre_norm).eval()
    x, rows = torch.randn(2, 9, 32), torch.tensor([0, 3, 8])
    torch.testing.assert_close(block(x[:, rows], context=x), block(x)[:, rows], atol=1e-6, rtol=0)


def test_attention_weights_are_those_that_attention_uses() -> None:
    torch.manual_seed(0)
    attention, x = Attention(32, 4), torch.randn(2, 9, 32)
    weights, (_, _, v) = attention.weights(x), attention.heads(x)
    by_hand = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(by_hand, attention(x), atol=1e-6, rtol=0)


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), batch=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_any_size_in_whole_patches_is_accepted(rows: int, columns: int, batch: int) -> None:
    model = tiny(depth=1)
    size = (8 * rows, 8 * columns)
    assert model.forward_features(images(batch, size)).shape == (batch, 1 + rows * columns, 32)


@pytest.mark.parametrize("bad", [(2, 3, 30, 32), (2, 1, 32, 32), (3, 32, 32)])
def test_wrong_shapes_are_refused_in_words(bad: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected images \(B, 3, H, W\).*multiples of 8"):
        tiny()(torch.zeros(bad))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"act": "gleu"}, "unknown activation 'gleu'.*gelu_tanh"),
        ({"pool": "avg"}, "pool: expected one of cls, mean"),
        ({"num_heads": 5}, "5 heads divide"),
        ({"img_size": 33}, "multiples of patch_size 8"),
        ({"class_token": False}, "pooling by class token"),
        ({"attn_drop": 1.0}, "attn_drop: expected a share"),
        ({"depth": 0}, "depth: expected a positive"),
        ({"position_resize": "cubic"}, "position_resize"),
    ],
)
def test_a_wrong_configuration_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        tiny(**changes)


def test_reconfigure_cannot_invent_an_attention_pool() -> None:
    with pytest.raises(OptionError, match="attention pool"):
        tiny().reconfigure(pool="map")


def test_patch_dropout_keeps_the_prefix_and_works_in_training_only() -> None:
    drop, x = PatchDropout(0.5, prefix=2), torch.arange(2 * 10 * 1).float().reshape(2, 10, 1)
    kept = drop.train()(x)
    assert kept.shape == (2, 6, 1)
    assert torch.equal(kept[:, :2], x[:, :2])
    assert (kept[:, 1:] > kept[:, :-1]).all(), "patches stay in order"
    assert drop.eval()(x) is x


def test_position_resize_methods_differ_and_keep_the_prefix() -> None:
    table = torch.randn(1, 1 + 16, 8)
    methods = ("bicubic_antialias", "bicubic", "bicubic_offset", "bilinear", "nearest")
    resized = [resize_positions(table, (4, 4), (3, 2), 1, method) for method in methods]
    assert all(one.shape == (1, 7, 8) and torch.equal(one[:, :1], table[:, :1]) for one in resized)
    assert len({tuple(one.flatten().tolist()) for one in resized}) == len(methods)
    assert resize_positions(table, (4, 4), (4, 4), 1, "bicubic") is table


def test_sinusoids_tell_rows_from_columns() -> None:
    table = sincos_2d((3, 5), 16)
    assert table.shape == (15, 16)
    assert table.unique(dim=0).shape[0] == 15
    grid = table.reshape(3, 5, 16)
    assert torch.equal(grid[0, :, :8], grid[2, :, :8]), "the first half depends on x alone"
    assert torch.equal(grid[:, 0, 8:], grid[:, 4, 8:]), "the second half depends on y alone"


def test_a_fixed_table_is_not_trained() -> None:
    names = [name for name, p in tiny(position="sinusoidal").named_parameters() if not p.requires_grad]
    assert names == ["pos_embed"]


def test_modules_are_plain_and_named_as_in_timm() -> None:
    keys = set(tiny(init_values=1.0, reg_tokens=1, num_classes=4, norm_pre=True).state_dict())
    assert {"patch_embed.proj.weight", "cls_token", "reg_token", "pos_embed", "norm_pre.weight", "norm.bias"} <= keys
    assert {"blocks.1.attn.qkv.weight", "blocks.1.ls2.gamma", "blocks.1.mlp.fc2.bias", "head.weight"} <= keys
    assert not any(isinstance(module, nn.Sequential) for module in tiny().modules())
