"""Which frames are chosen, and how motion is measured."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from encoders_core.errors import InputError, OptionError
from encoders_core.video.motion import difference_motion, flow_motion
from encoders_core.video.sampling import Sampling, at_rate, choose, similarity, spread, thumbnail


def scene(seed: int, length: int = 1) -> Tensor:
    """The same random picture `length` times, (T, 32, 32)."""
    return torch.rand(32, 32, generator=torch.Generator().manual_seed(seed)).expand(length, -1, -1)


def no_look() -> Tensor:
    raise AssertionError("uniform sampling does not look")


def pick(strategy: str, thumbnails: Tensor, limit: int = 99, **thresholds: float) -> list[int]:
    return choose(Sampling(strategy=strategy, **thresholds), len(thumbnails), limit, lambda: thumbnails)  # type: ignore[arg-type]


def test_uniform_takes_all_of_a_short_clip_and_spreads_over_a_long_one() -> None:
    assert choose(Sampling(), 5, 8, no_look) == [0, 1, 2, 3, 4]
    assert choose(Sampling(), 10, 4, no_look) == [0, 3, 6, 9]
    assert choose(Sampling(), 10, 1, no_look) == [0]


def test_adaptive_takes_what_differs_from_the_last_one_taken() -> None:
    clip = torch.cat((scene(1, 6), scene(2, 3), scene(1, 3)))
    assert pick("adaptive", clip) == [0, 6, 9]


def test_adaptive_threshold_decides_how_much_must_differ() -> None:
    still, moved = scene(1, 1), 0.7 * scene(1, 1) + 0.3 * scene(2, 1)
    clip = torch.cat((still, moved))
    alike = float(similarity(still, moved)[0])
    assert 0.3 < alike < 0.95
    assert pick("adaptive", clip, adaptive_threshold=alike - 0.05) == [0]
    assert pick("adaptive", clip, adaptive_threshold=alike + 0.05) == [0, 1]


def test_adaptive_sees_slow_drift_that_neighbours_hide() -> None:
    steps = torch.linspace(0, 1, 40)[:, None, None]
    clip = (1 - steps) * scene(1, 40) + steps * scene(2, 40)
    assert float(similarity(clip[1:], clip[:-1]).min()) > 0.9
    assert len(pick("adaptive", clip)) >= 3


def test_adaptive_over_the_limit_is_thinned_evenly() -> None:
    clip = torch.cat([scene(index) for index in range(10)])
    assert pick("adaptive", clip, limit=4) == [0, 3, 6, 9]


def test_key_frames_are_one_typical_frame_a_shot() -> None:
    shot = torch.cat((scene(2, 4), 0.8 * scene(2, 1) + 0.2 * scene(9, 1)))
    assert pick("key_frames", torch.cat((scene(1, 3), shot, scene(3, 4)))) in ([0, 3, 8], [1, 4, 9])


def test_key_frames_over_the_limit_are_of_the_longest_shots() -> None:
    clip = torch.cat((scene(1, 2), scene(2, 9), scene(3, 1), scene(4, 6)))
    assert pick("key_frames", clip, limit=2) == [2, 12]


def test_key_frame_threshold_decides_what_a_cut_is() -> None:
    clip = torch.cat((scene(1, 3), (0.6 * scene(1, 1) + 0.4 * scene(2, 1)).expand(3, -1, -1)))
    alike = float(similarity(clip[2], clip[3]))
    assert len(pick("key_frames", clip, key_frame_threshold=alike - 0.05)) == 1
    assert len(pick("key_frames", clip, key_frame_threshold=alike + 0.05)) == 2


@given(st.integers(1, 200), st.integers(1, 64), st.booleans())
def test_spread_is_increasing_within_the_clip_and_of_the_asked_length(length: int, limit: int, exactly: bool) -> None:
    picked = spread(list(range(length)), limit, exactly=exactly)
    assert picked == sorted(picked)
    assert len(picked) == (limit if exactly else min(limit, length))
    assert picked[0] == 0
    assert len(picked) == 1 or picked[-1] == length - 1


@given(st.integers(1, 300), st.floats(1, 120), st.floats(1, 120))
def test_rate_keeps_duration_and_never_leaves_the_clip(length: int, source: float, target: float) -> None:
    kept = at_rate(length, source, target)
    assert all(0 <= a < b < length for a, b in pairwise(kept)) or len(kept) == 1
    assert len(kept) == (length if source <= target else max(1, round(length * target / source)))


def test_similarity_falls_with_light_contrast_and_structure() -> None:
    picture = scene(1)[0]
    assert float(similarity(picture, picture)) == pytest.approx(1)
    for other in (0.3 * picture, 0.5 + 0.2 * (picture - 0.5), picture.flip(0), torch.zeros(32, 32)):
        assert float(similarity(picture, other)) < 0.9
    assert float(similarity(torch.zeros(4, 4), torch.zeros(4, 4))) == pytest.approx(1)


def test_thumbnail_is_the_mean_over_its_area() -> None:
    frames = torch.rand(2, 3, 64, 96)
    assert thumbnail(frames).shape == (2, 32, 32)
    white = thumbnail(torch.ones(1, 3, 64, 96))
    torch.testing.assert_close(white, torch.ones(1, 32, 32))


def test_empty_clip_and_bad_thresholds_are_errors() -> None:
    with pytest.raises(InputError, match="at least one frame"):
        choose(Sampling(), 0, 4, no_look)
    with pytest.raises(OptionError, match="uniform, adaptive, key_frames"):
        Sampling(strategy="random")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="key_frame_threshold"):
        Sampling(key_frame_threshold=0)


def moving_square(pixels_a_frame: int, length: int = 4) -> Tensor:
    texture = np.random.default_rng(0).random((64, 64 + 64), dtype=np.float32)
    smooth = (texture + np.roll(texture, 1, 0) + np.roll(texture, 1, 1) + np.roll(texture, 2, 1)) / 4
    shifts = [pixels_a_frame * index for index in range(length)]
    return torch.stack([torch.from_numpy(smooth[:, 32 - shift : 96 - shift].copy()) for shift in shifts])


def test_flow_measures_pixels_and_difference_grey_levels() -> None:
    flow = flow_motion(moving_square(2))
    assert flow.shape == (4,)
    assert float(flow[1:].mean()) == pytest.approx(2, abs=0.5)
    assert float(flow[0]) == float(flow[1])
    assert float(flow_motion(moving_square(0)).max()) < 0.05
    brighter = torch.stack((torch.zeros(8, 8), torch.full((8, 8), 10 / 255)))
    torch.testing.assert_close(difference_motion(brighter), torch.tensor([10.0, 10.0]))


def test_single_frame_does_not_move() -> None:
    assert flow_motion(torch.rand(1, 16, 16)).tolist() == [0]
    assert difference_motion(torch.rand(1, 16, 16)).tolist() == [0]
