"""Frames as rows of patches: the bits that normalising and unfolding give."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoders_core.models.layers import PatchEmbed
from encoders_core.preprocessing import InputSpec, normalise
from encoders_core.realtime.tokens import patch_rows as module
from encoders_core.realtime.tokens.patch_rows import patch_rows, plain_fold


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
    np.testing.assert_array_equal(plain_fold(frame, module._table(mean, std), side), expected)


@pytest.mark.parametrize("view", [np.s_[::-1], np.s_[:, ::-1], np.s_[::2, ::2]])
def test_a_frame_may_lie_in_any_way(view: tuple[slice, ...]) -> None:
    frame, spec = frame_of(32, 32)[view], InputSpec((32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))

    np.testing.assert_array_equal(patch_rows(frame, spec, 8), patch_rows(frame.copy(), spec, 8))
