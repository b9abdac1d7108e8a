"""Pictures of every kind come in as the same tensors, and what is no picture is named."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoders_core.errors import InputError, OptionError
from encoders_core.image_transform import ImageTransform, resize_pixels
from encoders_core.images import as_batch, is_single, load_images, warn_of_unit_values
from encoders_core.weights.layouts_preprocessing import (
    CLIP_MEAN,
    default_transform,
    from_open_clip,
    from_preprocessor_config,
    from_timm,
)

Image = pytest.importorskip("PIL.Image", reason="picture files need Pillow")


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_path_pil_array_and_tensor_are_the_same_picture(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds: list[Any] = [path, str(path), Image.fromarray(pixels), pixels, tensor, tensor.permute(1, 2, 0)]
    loaded = load_images(kinds)
    assert all(torch.equal(one, tensor) for one in loaded)
    assert all(torch.equal(load_images(kind)[0], tensor) for kind in kinds)


def test_batches_are_split_and_singles_are_not(pixels: NDArray[np.uint8]) -> None:
    assert len(load_images(np.stack([pixels] * 4))) == 4
    assert len(load_images(torch.zeros(5, 3, 8, 8, dtype=torch.uint8))) == 5
    assert len(load_images(image for image in [pixels, pixels])) == 2
    assert as_batch([]) == []
    assert is_single("a.png")
    assert is_single(pixels)
    assert is_single(Image.fromarray(pixels))
    assert not is_single([pixels])


def test_bgr_frames_become_rgb(pixels: NDArray[np.uint8]) -> None:
    (rgb,) = load_images(pixels[:, :, ::-1], channel_order="bgr")
    assert torch.equal(rgb, torch.from_numpy(pixels).permute(2, 0, 1))


def test_grey_alpha_and_palette_pictures_become_rgb(pixels: NDArray[np.uint8]) -> None:
    grey = Image.fromarray(pixels).convert("L")
    for picture in (grey, grey.convert("P"), grey.convert("LA"), grey.convert("RGBA"), grey.convert("1")):
        assert load_images(picture)[0].shape == (3, 20, 30)
    assert torch.equal(load_images(np.asarray(grey))[0], load_images(grey)[0])
    assert load_images(np.dstack([pixels, pixels[:, :, :1]]))[0].shape == (3, 20, 30)
    assert load_images(grey, channels=1)[0].shape == (1, 20, 30)


def test_a_photograph_is_turned_upright(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held at a right angle
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert load_images(tmp_path / "a.png")[0].shape == (3, 30, 20)


def test_floats_are_model_input_unless_said_otherwise(
    pixels: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    unit = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    assert torch.equal(load_images(unit - 0.5)[0], unit - 0.5)
    assert not caplog.records
    warn_of_unit_values.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load_images([unit, unit])[0], unit)
    assert caplog.text.count("value_range='unit'") == 1
    caplog.clear()
    assert torch.equal(load_images(unit, value_range="normalized")[0], unit)
    assert not caplog.records
    assert torch.equal(load_images(unit, value_range="unit")[0], torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("nowhere.png", "no picture file 'nowhere.png'"),
        ("https://host/a.jpg?token=secret", "download it first"),
        (np.zeros((20, 30, 3), dtype=np.int32), "uint8 pixels or floats, got torch.int32"),
        (np.zeros((20, 30, 7), dtype=np.uint8), "1, 3 or 4 channels"),
        (np.zeros(5, dtype=np.uint8), "two or three dimensions"),
        ([np.zeros((1, 2, 3, 4), dtype=np.uint8)], "two or three dimensions"),
        (object(), "got object"),
        ({"a": 1}, "got str|no picture file"),
    ],
)
def test_what_is_no_picture_is_named(bad: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as raised:
        load_images(bad)
    assert "secret" not in str(raised.value)


def test_a_damaged_file_and_deep_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(InputError, match="damaged or no picture"):
        load_images(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="mode 'I;16'"):
        load_images(Image.fromarray(np.zeros((4, 4), dtype=np.uint16)))
    with pytest.raises(InputError, match="from 0 to 1, got"):
        load_images(torch.full((3, 4, 4), 2.0), value_range="unit")


def test_unknown_words_are_named() -> None:
    with pytest.raises(OptionError, match="channel_order: expected one of rgb, bgr"):
        load_images([], channel_order="gbr")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="interpolation: expected one of nearest"):
        ImageTransform(interpolation="cubic")  # type: ignore[arg-type]


@given(height=st.integers(1, 90), width=st.integers(1, 90), fit=st.sampled_from(["squash", "crop", "letterbox"]))
@settings(max_examples=40, deadline=None)
def test_any_picture_becomes_the_size_of_the_model(height: int, width: int, fit: Any) -> None:
    transform = ImageTransform(size_hw=(24, 16), fit=fit)
    batch = transform([torch.full((3, height, width), 255, dtype=torch.uint8)])
    assert batch.shape == (1, 3, 24, 16)
    assert batch.max() == 1.0


def test_pictures_of_mixed_sizes_keep_their_order() -> None:
    shades = [torch.full((3, 4 + 2 * (i % 3), 8), 20 * i, dtype=torch.uint8) for i in range(7)]
    batch = ImageTransform(size_hw=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)(shades)
    assert torch.equal((batch[:, 0, 4, 4] * 255).round(), torch.arange(7) * 20.0)


def test_area_is_the_mean_of_the_covered_pixels() -> None:
    cv2 = pytest.importorskip("cv2", reason="INTER_AREA is compared with OpenCV's")
    picture = np.random.default_rng(1).integers(0, 256, (301, 200, 3), dtype=np.uint8)
    theirs = cv2.resize(picture, (61, 97), interpolation=cv2.INTER_AREA)
    ours = resize_pixels(torch.from_numpy(picture).permute(2, 0, 1)[None], (97, 61), "area")[0].permute(1, 2, 0)
    assert np.abs(ours.numpy().astype(int) - theirs).max() <= 1


def test_letterbox_pads_with_zeros_and_keeps_proportions() -> None:
    resized = ImageTransform(size_hw=(8, 8), fit="letterbox").resize(torch.full((1, 3, 4, 8), 9, dtype=torch.uint8))
    assert (resized[0, 0, 2:6] == 9).all()
    assert (resized[0, 0, :2] == 0).all()
    assert (resized[0, 0, 6:] == 0).all()


def test_timm_and_open_clip_configurations_are_understood() -> None:
    default = ImageTransform()
    timm = from_timm(
        {
            "input_size": [3, 224, 224],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": [0.4] * 3,
        },
        default,
    )
    assert (timm.fit, timm.resize_px, timm.interpolation, timm.mean) == ("crop", 248, "bicubic", (0.4, 0.4, 0.4))
    assert from_timm({"input_size": [3, 96, 96], "interpolation": "area"}, default).fit == "squash"
    clip = from_open_clip({"mean": CLIP_MEAN, "resize_mode": "squash"}, default)
    assert (clip.fit, clip.interpolation, clip.mean) == ("squash", "bicubic", CLIP_MEAN)
    assert default_transform("dinov2_with_registers", (112, 112)).resize_px == 128


@pytest.mark.parametrize("config", [{"size": {"longest_edge": 9}}, {"resample": 5}, {"resample": 4}])
def test_preprocessing_that_is_not_built_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="not supported"):
        from_preprocessor_config(config, ImageTransform())


def test_camera_pipelines_get_the_same_wish() -> None:
    spec = ImageTransform(size_hw=(96, 128), fit="crop", interpolation="area").input_spec()
    assert (spec.size_hw, spec.fit, spec.scaler, spec.mean) == ((96, 128), "crop", "area", (0.5, 0.5, 0.5))
    with pytest.raises(OptionError, match="a camera cannot deliver"):
        ImageTransform(interpolation="lanczos").input_spec()
