"""Packed linear layers: the same numbers as the plain ones, and no surprise when weights change or gradients flow."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from encoders_core.errors import OptionError
from encoders_core.models import eager_linear
from encoders_core.models.layers import Mlp
from encoders_core.models.packed_linear import PackedLinear, packing_obstacle

ACTIVATIONS: dict[str | None, Any] = {
    None: lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}

pytestmark = pytest.mark.skipif(packing_obstacle() is not None, reason=str(packing_obstacle()))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 64), (197, 64), (2, 3, 64), (64,), (0, 64)])
def test_packed_equals_plain(act: str | None, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 48, bias=act != "relu"), torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(PackedLinear.of(linear, act)(x), ACTIVATIONS[act](linear(x)), atol=1e-5, rtol=1e-5)


def test_packed_follows_its_weights_copies_and_lets_gradients_through() -> None:
    linear, x = nn.Linear(64, 48), torch.randn(5, 64)
    packed = PackedLinear.of(linear, "gelu")
    assert packed.weight is linear.weight
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(packed(x), F.gelu(linear(x)), atol=1e-5, rtol=1e-5)
            linear.weight.mul_(2).add_(0.1)
        assert torch.equal(copy.deepcopy(packed)(x), packed(x))
    packed(x).sum().backward()
    assert linear.weight.grad is not None


def test_packed_in_bfloat16_is_close_and_float_outside() -> None:
    if packing_obstacle(torch.bfloat16) is not None:
        pytest.skip(str(packing_obstacle(torch.bfloat16)))
    torch.manual_seed(0)
    linear, x = nn.Linear(256, 128), torch.randn(7, 256)
    with torch.no_grad():
        got, expected = PackedLinear.of(linear, compute=torch.bfloat16)(x), linear(x)
    assert got.dtype == torch.float32
    assert 0 < (got - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize("shape", [(1, 3072), (197, 3072), (2, 99, 3072)])
def test_eager_linear_equals_plain_whatever_it_runs_through(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer, x = eager_linear.Linear(3072, 128), torch.randn(shape) / 8.0
    monkeypatch.setattr(eager_linear, "prefers_onednn", lambda: True)
    expected = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected), "with gradients it is torch's"
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
        if len(shape) == 3:
            assert not torch.equal(layer(x), expected), "oneDNN rounds in another order"
    monkeypatch.setattr(eager_linear, "prefers_onednn", lambda: False)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_columns_together_are_the_same_layer_and_a_smaller_product_takes_onednn(
    act: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(eager_linear, "prefers_onednn", lambda: True)
    layer, x = eager_linear.Linear(256, 128), torch.randn(3, 50, 256)
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        expected = layer(x, act)
        assert torch.equal(expected, ACTIVATIONS[act](F.linear(x, layer.weight, layer.bias))), "too small for rows"
        assert eager_linear.lay_out(layer) == 1
        assert layer.weight.stride() == (1, 128)
        assert all(torch.equal(layer.state_dict()[key], before[key]) for key in before)
        torch.testing.assert_close(layer(x, act), expected, atol=1e-5, rtol=1e-5)
        assert not torch.equal(layer(x, act), expected), "oneDNN rounds in another order"
        half = eager_linear.linear(x, layer.weight[64:], layer.bias[64:], act)
    torch.testing.assert_close(half, expected[..., 64:], atol=1e-5, rtol=1e-5)
    layer.load_state_dict(before)
    assert layer.weight.stride() == (1, 128), "loading keeps the layout"
    layer(x, act).sum().backward()
    assert layer.weight.grad is not None


def test_activation_is_part_of_the_product_unless_somebody_watches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, x, fused, seen = Mlp(64, 128).eval(), torch.randn(50, 64), list[str | None](), list[torch.Tensor]()
    plain = eager_linear.linear
    monkeypatch.setattr(eager_linear, "linear", lambda x, w, b, act: (fused.append(act), plain(x, w, b, act))[1])
    with torch.no_grad():
        features = mlp(x)
        mlp.act.register_forward_hook(lambda _, __, out: seen.append(out))
        torch.testing.assert_close(mlp(x), features, atol=1e-5, rtol=1e-5)
    assert fused == ["gelu", None, None, None]
    assert seen[0].shape == (50, 128)


def test_packed_refuses_what_it_cannot_fuse() -> None:
    with pytest.raises(OptionError, match=r"expected an activation of .*gelu_tanh"):
        PackedLinear.of(nn.Linear(2, 2), "silu")
