"""Layers over few rows: the compiled product against the formula, and PyTorch's where it does not fit."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from encoders_core.models.layers import LayerScale, Mlp, SwiGLU
from encoders_core.models.packed_linear import PackedLinear
from encoders_core.realtime.compiling import COMPILED
from encoders_core.realtime.tokens import row_product
from encoders_core.realtime.tokens.row_product import NOTHING, Room, RowLayer, Shelf, linear_rows, mlp_rows

needs_numba = pytest.mark.skipif(not COMPILED, reason="numba is not installed: products are PyTorch's")


def rows_of(count: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def linear(inputs: int, outputs: int, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).eval()


def exact(layer: nn.Module, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """PyTorch's own in double precision."""
    with torch.inference_mode():
        doubled: NDArray[np.float64] = layer.double()(torch.from_numpy(rows).double()).numpy()
    layer.float()
    return doubled


def through(layer: RowLayer, rows: NDArray[np.float32], count: int, outputs: int, hidden: int = 0) -> Any:
    return layer(rows, count, Room.of(count, outputs, hidden), NOTHING).copy()


@needs_numba
@given(
    count=st.integers(0, 70),
    inputs=st.integers(1, 70),
    panels=st.integers(1, 4),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_any_number_of_rows_through_any_layer_equals_the_formula(
    count: int, inputs: int, panels: int, bias: bool, seed: int
) -> None:
    layer, rows = linear(inputs, row_product.WIDE * panels, bias=bias, seed=seed), rows_of(count, inputs, seed)

    got = through(linear_rows(layer, Shelf(layer)), rows, count, layer.out_features)

    assert got.shape == (count, layer.out_features)
    np.testing.assert_allclose(got, exact(layer, rows[:count]), atol=2e-6)


@needs_numba
def test_a_row_is_the_same_to_the_bit_whatever_is_beside_it() -> None:
    layer, rows = linear(384, 384), rows_of(100, 384)
    product = linear_rows(layer, Shelf(layer))
    together = through(product, rows, 100, 384)

    for first, count in ((0, 1), (3, 1), (0, 7), (20, 13), (64, 36)):
        alone = np.vstack((rows[first : first + count], np.full((12, 384), np.nan, np.float32)))
        np.testing.assert_array_equal(through(product, alone, count, 384), together[first : first + count])


@needs_numba
@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "quick_gelu", "relu"])
def test_activations_equal_pytorchs_far_from_zero_too(act: str) -> None:
    size = row_product.WIDE
    mlp = Mlp(size, size, act=act).eval()
    nn.init.eye_(mlp.fc1.weight)
    nn.init.eye_(mlp.fc2.weight)
    for layer in (mlp.fc1, mlp.fc2):
        nn.init.zeros_(layer.bias)
    numbers = np.concatenate((np.linspace(-60, 60, 640 - 8), [-1e-3, -1e-6, 0, 1e-6, 1e-3, -1e4, 1e4, 1e-30]))
    rows = numbers.astype(np.float32).reshape(-1, size)

    got = through(mlp_rows(mlp, Shelf(mlp), nn.Identity()), rows, len(rows), size, size)

    np.testing.assert_allclose(got, exact(mlp, rows), rtol=1e-6, atol=5e-7)


@needs_numba
@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "quick_gelu", "relu"])
def test_what_is_no_number_stays_none(act: str) -> None:
    mlp = Mlp(64, 128, act=act).eval()
    rows = rows_of(20, 64)
    rows[7, 3] = np.nan

    got = through(mlp_rows(mlp, Shelf(mlp), nn.Identity()), rows, 20, 64, 128)

    assert np.isnan(got[7]).all()
    assert np.isfinite(np.delete(got, 7, axis=0)).all()


@pytest.mark.parametrize("act", ["gelu", "quick_gelu", "silu"])
@pytest.mark.parametrize("dim", [64, 24])
def test_feed_forwards_with_a_scale_behind_them(act: str, dim: int) -> None:
    """Some through the compiled product, some with an activation or a width that it does not take."""
    mlp, scale, rows = Mlp(dim, 2 * dim, act=act).eval(), LayerScale(dim, 0.3), rows_of(33, dim)

    with torch.inference_mode():
        got = through(mlp_rows(mlp, Shelf(mlp), scale), rows, 33, dim, 2 * dim)

    np.testing.assert_allclose(got, exact(nn.Sequential(mlp, scale), rows), atol=2e-6)


def test_a_gated_feed_forward() -> None:
    mlp, scale, rows = SwiGLU(64, 128).eval(), LayerScale(64, 2.0), rows_of(20, 64)

    with torch.inference_mode():
        got = through(mlp_rows(mlp, Shelf(mlp), scale), rows, 20, 64)

    np.testing.assert_allclose(got, exact(nn.Sequential(mlp, scale), rows), atol=2e-6)


@pytest.mark.parametrize("part", [slice(64), slice(64, None)])
def test_part_of_a_layer(part: slice) -> None:
    layer, rows = linear(64, 192), rows_of(9, 64)

    got = through(linear_rows(layer, Shelf(layer), part), rows, 9, 128)

    np.testing.assert_allclose(got, exact(layer, rows[:9])[:, part], atol=2e-6)


@pytest.mark.parametrize("act", [None, "gelu"])
def test_packed_layers_compute_as_they_do_elsewhere(act: str | None) -> None:
    """In bfloat16 through oneDNN, which the compiled product would be more exact than."""
    mlp, rows = Mlp(64, 128, act="gelu").eval(), rows_of(30, 64)
    mlp.fc1, mlp.fc2 = PackedLinear.of(mlp.fc1, act, torch.bfloat16), PackedLinear.of(mlp.fc2, None, torch.bfloat16)
    if act:
        mlp.act = nn.Identity()

    with torch.inference_mode():
        got = through(mlp_rows(mlp, Shelf(mlp), nn.Identity()), rows, 30, 64, 128)
        np.testing.assert_allclose(got, mlp(torch.from_numpy(rows)).numpy(), atol=1e-6)


def test_a_packed_layer_in_float32_keeps_its_activation() -> None:
    mlp, rows = Mlp(64, 128, act="gelu").eval(), rows_of(30, 64)
    expected = exact(mlp, rows)
    mlp.fc1, mlp.act = PackedLinear.of(mlp.fc1, "gelu"), nn.Identity()

    got = through(mlp_rows(mlp, Shelf(mlp), nn.Identity()), rows, 30, 64, 128)

    np.testing.assert_allclose(got, expected, atol=2e-6)


@needs_numba
@pytest.mark.parametrize("count", [1, 13, 90])
@pytest.mark.parametrize("asked", [0, 1, 2, 40])
def test_what_memory_is_asked_for_changes_nothing_wherever_it_lies(count: int, asked: int) -> None:
    layer, rows, own = linear(64, 96), rows_of(count, 64), np.zeros(70_000, np.float32)
    asks = np.array([[own.ctypes.data, own.nbytes], [0, 10], [2**62, 10**9], [8, 0]] * 10, np.int64)[:asked]
    room = Room.of(count, 96, 0)

    got = linear_rows(layer, Shelf(layer))(rows, count, room, asks if asked else NOTHING)

    np.testing.assert_allclose(got, exact(layer, rows[:count]), atol=2e-6)


@needs_numba
def test_the_compiled_product_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_product, "_plain", None)
    layer, mlp = linear(192, 384), Mlp(192, 768).eval()

    linear_rows(layer, Shelf(layer))
    mlp_rows(mlp, Shelf(mlp), nn.Identity())
