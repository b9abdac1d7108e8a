"""Attention of some rows: the compiled loop against PyTorch's."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoders_core.realtime.compiling import COMPILED
from encoders_core.realtime.tokens import attention
from encoders_core.realtime.tokens.attention import attend, plain_attend

needs_numba = pytest.mark.skipif(not COMPILED, reason="numba is not installed: attention is PyTorch's")


def exact(queries: Any, rows: NDArray[np.int64], kv: Any, heads: int) -> NDArray[np.float64]:
    """In double precision, straight from the formula."""
    q, k, v = (
        part.reshape(len(part), heads, kv.shape[1] // 2 // heads).transpose(1, 0, 2).astype(np.float64)
        for part in (queries[rows], *np.split(kv, 2, axis=1))
    )
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2])
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    looked: NDArray[np.float64] = (weights / weights.sum(axis=2, keepdims=True)) @ v
    return looked.transpose(1, 0, 2).reshape(len(rows), kv.shape[1] // 2)


def drawn(seed: int, rows: int, dim: int, scale: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    made = random.standard_normal((rows, 3 * dim)).astype(np.float32) * np.float32(scale)
    return np.ascontiguousarray(made[:, :dim]), np.ascontiguousarray(made[:, dim:])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, NDArray[np.int64], Any, int]:
    """Queries, some of their rows (none, all or any between), keys and values, heads; for the loop or too odd for it."""
    count, heads = draw(st.integers(1, 90)), draw(st.integers(1, 3))
    width, scale = draw(st.sampled_from([8, 16, 32, 48, 64, 20])), draw(st.sampled_from([0.1, 1.0, 3.0]))
    queries, kv = drawn(draw(st.integers(0, 2**32)), count, heads * width, scale)
    rows = np.array(sorted(draw(st.sets(st.integers(0, count - 1)))), np.int64)
    return queries, rows, kv, heads


@needs_numba
@given(case=cases())
@settings(deadline=None, max_examples=80)
def test_any_rows_of_any_shape_equal_the_formula(case: Any) -> None:
    looked = attend(*case)

    assert looked.dtype == np.float32
    np.testing.assert_allclose(looked, exact(*case), atol=3e-5)


@needs_numba
def test_the_compiled_loop_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "plain_attend", None)
    queries, kv = drawn(0, 197, 192)

    assert attend(queries, np.arange(3), kv, 3).shape == (3, 192)


@needs_numba
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_a_whole_picture_is_as_near_to_the_formula_as_pytorch(scale: float) -> None:
    """Eight times larger queries and keys: scores of hundreds, nearly all weight on one row."""
    queries, kv = drawn(1, 197, 384, scale)
    every = np.arange(197)
    truth = exact(queries, every, kv, 6)

    errors = [np.abs(one(queries, every, kv, 6) - truth).max() for one in (attend, plain_attend)]

    assert errors[0] <= 2 * errors[1] + 1e-6


@needs_numba
@pytest.mark.parametrize("score", [-1e4, 1e4])
def test_scores_far_beyond_what_an_exponential_takes_choose_one_row(score: float) -> None:
    queries, kv = drawn(2, 20, 32)
    queries[:, 0], kv[:, 0] = score, 1.0
    chosen = 5
    kv[chosen, 0] += np.sign(score)

    np.testing.assert_allclose(attend(queries, np.arange(20), kv, 1), np.tile(kv[chosen, 32:], (20, 1)), rtol=1e-6)


@needs_numba
def test_what_is_no_number_is_seen_by_the_rows_that_look_at_it() -> None:
    queries, kv = drawn(3, 40, 64)
    queries[7] = np.nan

    looked = attend(queries, np.arange(40), kv, 1)

    assert np.isnan(looked[7]).all()
    assert np.isfinite(np.delete(looked, 7, axis=0)).all()
    kv[3, 5] = np.nan
    assert np.isnan(attend(queries, np.arange(40), kv, 1)).all()


def test_the_plain_way_equals_the_formula() -> None:
    queries, kv = drawn(4, 37, 32)
    rows = np.array([0, 5, 36])

    with torch.inference_mode():
        looked = plain_attend(queries, rows, kv, 2)

    np.testing.assert_allclose(looked, exact(queries, rows, kv, 2), atol=1e-5)
