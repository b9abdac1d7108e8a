"""Frames as rows of patches: the bits that normalising and unfolding give; and which patches have changed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoders_core.models.layers import PatchEmbed
from encoders_core.preprocessing import InputSpec, normalise
from encoders_core.realtime.tokens import patch_rows as module
from encoders_core.realtime.tokens.patch_rows import changed_patches, patch_rows, plain_fold, plain_renew


def frame_of(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


channels = st.tuples(*[st.floats(0.01, 0.99)] * 3)


@given(side=st.integers(1, 20), grid=st.tuples(st.integers(1, 4), st.integers(1, 4)), mean=channels, std=channels)
@settings(deadline=None, max_examples=60)
def test_rows_are_normalised_patches_to_the_bit(
    side: int, grid: tuple[int, int], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    frame = frame_of(grid[0] * side, grid[1] * side)
    spec = InputSpec(frame.shape[:2], mean=mean, std=std)
    expected = PatchEmbed(side, 3, 1).unfold(normalise(torch.from_numpy(frame)[None], spec))[0].numpy()

    np.testing.assert_array_equal(patch_rows(frame, spec, side), expected)
    np.testing.assert_array_equal(plain_fold(frame, module._table(mean, std), side, np.arange(len(expected))), expected)


@given(data=st.data(), side=st.integers(1, 8), grid=st.tuples(st.integers(1, 4), st.integers(1, 4)))
@settings(deadline=None, max_examples=60)
def test_some_patches_are_the_same_rows(data: st.DataObject, side: int, grid: tuple[int, int]) -> None:
    frame, spec = frame_of(grid[0] * side, grid[1] * side), InputSpec((grid[0] * side, grid[1] * side))
    chosen = np.array(data.draw(st.lists(st.integers(0, grid[0] * grid[1] - 1))), np.int64)

    np.testing.assert_array_equal(patch_rows(frame, spec, side, chosen), patch_rows(frame, spec, side)[chosen])


@given(seed=st.integers(0, 999), side=st.integers(1, 20), grid=st.tuples(st.integers(1, 4), st.integers(1, 4)))
@settings(deadline=None, max_examples=80)
def test_both_writings_find_the_same_changes(seed: int, side: int, grid: tuple[int, int]) -> None:
    random, shape = np.random.default_rng(seed), (grid[0] * side, grid[1] * side)
    before, patches = frame_of(*shape, seed=seed), grid[0] * grid[1]
    frame = np.clip(before + random.integers(-2, 3, before.shape), 0, 255).astype(np.uint8)
    limits = random.uniform(-0.2, 1, patches).astype(np.float32) * np.float32(3 * side)
    forced = random.integers(0, patches, random.integers(0, 3))

    mine, theirs = before.copy(), before.copy()
    found = changed_patches(frame, mine, limits, forced, side)

    np.testing.assert_array_equal(found, plain_renew(frame, theirs, limits, forced, side))
    np.testing.assert_array_equal(mine, theirs)


def test_a_patch_has_changed_when_it_is_further_than_its_limit() -> None:
    before, side = frame_of(8, 16) // 2, 4
    frame, limits = before.copy(), np.full(8, 5.0, np.float32)
    frame[0, 0] += np.array([3, 4, 0], np.uint8)  # patch 0: exactly 5
    frame[5, 9, 2] += 6  # patch 6
    kept = before.copy()

    assert changed_patches(frame, kept, limits, np.array([3]), side).tolist() == [3, 6]
    assert np.array_equal(kept[4:8, 8:12], frame[4:8, 8:12])
    assert np.array_equal(kept[:4, :4], before[:4, :4])
    assert changed_patches(frame, kept, np.zeros(8, np.float32), np.zeros(0, np.int64), side).tolist() == [0]
    assert changed_patches(frame, kept, np.zeros(8, np.float32), np.zeros(0, np.int64), side).tolist() == []


@pytest.mark.parametrize("view", [np.s_[::-1], np.s_[:, ::-1], np.s_[::2, ::2]])
def test_a_frame_may_lie_in_any_way(view: tuple[slice, ...]) -> None:
    frame, spec = frame_of(32, 32)[view], InputSpec((32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))

    np.testing.assert_array_equal(patch_rows(frame, spec, 8), patch_rows(frame.copy(), spec, 8))
