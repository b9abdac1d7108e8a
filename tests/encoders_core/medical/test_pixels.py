"""Noise, contrast, normalisation, and regions: each step by itself."""

import math

import numpy as np
import pytest
import torch

from encoders_core.errors import OptionError
from encoders_core.image_transform import ImageTransform
from encoders_core.medical.dicom import Picture
from encoders_core.medical.pixels import normalised, to_unit, with_contrast, without_noise
from encoders_core.medical.regions import MOST_REGIONS, Rollout, find_regions, otsu, region_tensors, to_picture
from encoders_core.medical.windows import Floats, Window
from encoders_core.results import attention_rollout


def noisy_edge() -> tuple[Floats, Floats]:
    clean = np.zeros((40, 40), np.float32)
    clean[:, 20:] = 0.8
    noise = np.random.default_rng(0).normal(0, 0.03, clean.shape)
    return clean, np.asarray(np.clip(clean + 0.1 + noise, 0, 1), np.float32)


def test_grey_goes_through_the_window_and_monochrome1_is_inverted() -> None:
    values = np.array([[0, 50, 100]], np.float32)
    own = Picture(values, Window(50, 101))
    assert to_unit(own, windowed=True).tolist() == [[pytest.approx(0.005), pytest.approx(0.505), 1.0]]
    assert to_unit(own, windowed=False).tolist() == [[0, 0.5, 1]]
    assert to_unit(own, windowed=True, window=(25, 2)).tolist() == [[0, 1, 1]]
    assert to_unit(Picture(values), windowed=True).tolist() == [[0, 0.5, 1]], "no window: its own range"
    assert to_unit(Picture(values, inverted=True), windowed=True).tolist() == [[1, 0.5, 0]]


def test_bilateral_filter_takes_noise_and_leaves_edges() -> None:
    clean, noisy = noisy_edge()
    smooth = without_noise(noisy)
    assert smooth[:, :18].std() < 0.5 * noisy[:, :18].std()
    assert (smooth[:, 20] - smooth[:, 19]).min() > 0.6
    assert smooth.shape == clean.shape
    colour = np.repeat(noisy[..., None], 3, axis=2)
    assert without_noise(colour).shape == (40, 40, 3)


def test_clahe_brings_out_what_is_faint() -> None:
    rng = np.random.default_rng(0)
    faint = np.asarray(0.5 + 0.02 * np.sin(np.arange(64) / 3)[None] + rng.normal(0, 0.002, (64, 64)), np.float32)
    strong = with_contrast(faint)
    assert strong.std() > 2 * faint.std()
    assert 0 <= strong.min() <= strong.max() <= 1
    colour = with_contrast(np.repeat(faint[..., None], 3, axis=2))
    assert colour.std() > 2 * faint.std()
    assert np.abs(colour - colour.mean(axis=2, keepdims=True)).max() < 0.02, "grey stays grey"


def test_normalisation_of_each_kind() -> None:
    unit = np.random.default_rng(0).uniform(0.2, 0.6, (16, 16)).astype(np.float32)
    z = normalised(unit, "z_score")
    assert z.mean() == pytest.approx(0, abs=1e-6)
    assert z.std() == pytest.approx(1, abs=1e-5)
    spread = normalised(unit, "min_max")
    assert (spread.min(), spread.max()) == (0, 1)
    assert normalised(unit, "none") is unit
    assert not normalised(np.full((4, 4), 0.3, np.float32), "z_score").any(), "a flat picture becomes zeros"


def test_without_opencv_the_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(OptionError, match=r"noise_reduction needs OpenCV: pip install 'camvec\[medical\]'"):
        without_noise(noisy_edge()[1])
    with pytest.raises(OptionError, match="enhance_contrast needs OpenCV"):
        with_contrast(noisy_edge()[1])


# --- regions -----------------------------------------------------------------------------------------------------


def attention() -> torch.Tensor:
    """Two bright spots, one of them stronger, over an even ground."""
    grid = torch.full((8, 8), 1.0)
    grid[1:3, 1:4] = 20.0
    grid[6, 6] = 15.0
    grid[5, 7] = 15.0  # touches over the corner
    return grid / grid.sum()


def test_regions_are_the_bright_pieces_strongest_first() -> None:
    found = find_regions(attention())
    assert [region[:4] for region in found] == [(1, 1, 4, 3), (6, 5, 8, 7)]
    assert found[0][4] == pytest.approx(120 / (56 + 120 + 30), rel=1e-5)


def test_an_even_map_has_no_regions_and_the_weakest_of_many_are_left_out() -> None:
    assert find_regions(torch.full((6, 6), 1 / 36)) == []
    many = torch.ones(9, 9)
    many[::2, ::2] = torch.arange(100, 125).reshape(5, 5).float()
    assert len(find_regions(many / many.sum())) == MOST_REGIONS


def test_otsu_parts_two_groups() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(0, 1, 50), np.random.default_rng(1).normal(10, 1, 20)])
    threshold = otsu(values)
    assert threshold is not None
    assert (values > threshold).sum() == 20


@pytest.mark.parametrize(
    ("transform", "hw", "expected"),
    [
        (ImageTransform(size_hw=(32, 32)), (64, 128), (32.0, 16.0, 64.0, 32.0)),
        (ImageTransform(size_hw=(32, 32), fit="letterbox"), (64, 128), (32.0, 0.0, 64.0, 32.0)),
        (ImageTransform(size_hw=(32, 32), fit="crop", resize_px=64), (64, 128), (56.0, 24.0, 64.0, 32.0)),
    ],
)
def test_boxes_come_back_to_the_pictures_pixels(
    transform: ImageTransform, hw: tuple[int, int], expected: tuple[float, ...]
) -> None:
    assert to_picture((1, 1, 2, 2), 8, transform, hw) == expected


@pytest.mark.parametrize("fit", ["squash", "letterbox", "crop"])
def test_a_box_encloses_what_was_bright_there(fit: str) -> None:
    picture = torch.zeros(1, 1, 60, 100)
    picture[..., 20:40, 45:60] = 1.0
    transform = ImageTransform(size_hw=(32, 32), fit=fit, mean=(0.0,), std=(1.0,))  # type: ignore[arg-type]
    seen = transform.resize(picture)[0, 0]
    rows, columns = torch.nonzero(seen > 0.5, as_tuple=True)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    found = to_picture(box, 1, transform, (60, 100))
    for got, true in zip(found, (45, 20, 60, 40), strict=True):
        assert abs(got - true) <= 100 / 32, f"{found}: within a pixel of the model's"


def test_what_lies_in_the_padding_is_no_region() -> None:
    grid = torch.full((4, 4), 0.01)
    grid[0, 0] = 0.5  # above a picture twice as wide as high
    boxes, scores = region_tensors(
        grid[None], 8, ImageTransform(size_hw=(32, 32), fit="letterbox"), [((50, 100), (50, 100))]
    )
    assert not scores.any()
    assert not boxes.any()


def test_rollout_layer_by_layer_equals_the_rollout_of_all() -> None:
    weights = torch.rand(2, 3, 4, 9, 9).softmax(dim=-1)
    for keep in (True, False):
        seen = Rollout(keep=keep)
        for layer in range(3):
            seen.append(weights[:, layer])
        torch.testing.assert_close(seen.rollout, attention_rollout(weights))
        assert len(seen) == (3 if keep else 0)
    assert math.isclose(float(seen.rollout[0, 0].sum()), 1.0, rel_tol=1e-5)
