"""MedicalEncoder: the specification's options, one by one, on pydicom's own files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders_core import (
    EncoderWithFallback,
    MedicalEncoder,
    VisionEncoder,
    load_dicom_image,
    memory_efficient_encoding,
)
from encoders_core.errors import InputError, OptionError

pydicom = pytest.importorskip("pydicom", reason="DICOM needs: pip install 'camvec[medical]'")
Image = pytest.importorskip("PIL.Image")

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
CT, MR = FILES / "CT_small.dcm", FILES / "MR_small.dcm"
SMALL: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "num_layers": 2, "hidden_dim": 32, "num_heads": 2, "output_dim": 16, "seed": 1,
}  # fmt: skip
SPECIFIED: dict[str, dict[str, Any]] = {
    "preprocessing": {
        "normalize_method": "z_score",
        "window_level_adjustment": True,
        "noise_reduction": "bilateral_filter",
    },
    "architecture": {
        "attention_to_detail": True,
        "multi_scale_features": True,
        "region_of_interest_detection": True,
    },
    "output": {"preserve_spatial_info": True, "confidence_estimation": True},
}


def make(config: dict[str, Any] | None = None, **changes: Any) -> MedicalEncoder:
    return VisionEncoder.create_specialized("medical_imaging", config, **(SMALL | changes))


def with_option(section: str, key: str, value: object) -> MedicalEncoder:
    return make({section: {key: value}})


def features(encoder: MedicalEncoder, picture: Any = MR, **options: Any) -> Tensor:
    return encoder.encode(picture, **options).features


def test_the_specified_block_gives_all_that_it_asks_for() -> None:
    result = make(SPECIFIED).encode(load_dicom_image(CT), enhance_contrast=True, return_attention_maps=True)
    assert result.features.shape == (1, 16)
    assert result.grid_hw == (8, 8), "twice the size"
    assert result.patch_features is not None
    assert result.patch_features.shape == (1, 8, 8, 32)
    assert result.attention_maps is not None
    assert result.attention_maps.sum() == pytest.approx(1.0, abs=1e-5)
    assert result.confidence is not None
    assert 0 < float(result.confidence) <= 1
    assert result.regions is not None
    (regions,) = result.regions
    assert regions
    assert all(0 <= r.left < r.right <= 128 and 0 <= r.top < r.bottom <= 128 for r in regions)
    assert 0 < sum(region.score for region in regions) <= 1


# --- preprocessing -----------------------------------------------------------------------------------------------


def test_normalize_method_decides_what_the_model_sees() -> None:
    z, spread, plain = (
        with_option("preprocessing", "normalize_method", m).preprocess(MR) for m in ("z_score", "min_max", "none")
    )
    assert float(z.mean()) == pytest.approx(0, abs=0.05)
    assert float(z.std()) == pytest.approx(1, abs=0.1)
    assert -1 <= float(spread.min()) < float(spread.max()) <= 1, "the model's mean and deviation of 0.5 follow"
    window = (load_dicom_image(MR).frame().values - 599.5) / 1599 + 0.5
    assert float(plain.max()) <= (window.max() - 0.5) / 0.5 + 1e-5
    assert not torch.allclose(spread, plain)


def test_z_score_does_not_care_for_scale_and_offset_of_what_was_measured() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (40, 40)).astype(np.uint16)
    encoder = make()
    torch.testing.assert_close(encoder.preprocess(values), encoder.preprocess(values * 3.0 + 500), atol=1e-4, rtol=0)


def test_window_level_adjustment_shows_the_files_own_window() -> None:
    on, off = (
        make({"preprocessing": {"window_level_adjustment": w, "normalize_method": "none"}}) for w in (True, False)
    )
    values = load_dicom_image(MR).frame().values  # 127 to 2145, window 600 +- 800: the bright end is cut off
    top = np.unravel_index(values.argmax(), values.shape)
    assert values[top] > 1400
    assert float(off.preprocess(MR).max()) <= 1.0
    assert (on.preprocess(MR) > 0.999).sum() > (off.preprocess(MR) > 0.999).sum(), (
        "everything above the window is white"
    )
    torch.testing.assert_close(on.preprocess(CT), off.preprocess(CT))  # a file without a window: its own range


def test_a_window_can_be_said() -> None:
    encoder = make({"preprocessing": {"normalize_method": "none"}})
    bone, soft = (encoder.preprocess(CT, window=window) for window in ((400, 1800), (40, 400)))
    assert not torch.allclose(bone, soft, atol=0.1)
    assert not torch.allclose(features(encoder, CT, window=(400, 1800)), features(encoder, CT), atol=1e-4)
    with pytest.raises(OptionError, match="window has no effect while window_level_adjustment is off"):
        with_option("preprocessing", "window_level_adjustment", value=False).encode(CT, window=(40, 400))
    with pytest.raises(OptionError, match="window: expected a finite center and a width of at least 1"):
        encoder.encode(CT, window=(40, 0))
    with pytest.raises(InputError, match="a window is for grey pictures"):
        encoder.encode(FILES / "SC_rgb_rle.dcm", window=(40, 400))


def test_noise_reduction_smoothes() -> None:
    noise = np.random.default_rng(0).normal(1000, 10, (32, 32))
    noise[:, 16:] += 1000
    off, on = (
        make({"preprocessing": {"noise_reduction": how, "normalize_method": "none"}}).preprocess(noise)
        for how in (None, "bilateral_filter")
    )
    assert on[..., :14].std() < 0.6 * off[..., :14].std()


def test_deep_grey_is_not_rounded_to_8_bits() -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    x = make({"preprocessing": {"normalize_method": "min_max"}}).preprocess(ramp)
    assert len(x[0, 0].unique()) == 1024


def test_enhance_contrast_changes_what_is_seen() -> None:
    encoder = make({"preprocessing": {"normalize_method": "none"}})
    faint = np.full((64, 64), 500.0)
    faint[::4] += 20
    faint[0, 0], faint[0, 1] = 0, 1000
    plain, strong = (encoder.preprocess(faint, enhance_contrast=on) for on in (False, True))
    assert strong.std() > 1.5 * plain.std()
    assert not torch.allclose(features(encoder), features(encoder, enhance_contrast=True), atol=1e-4)


def test_pictures_keep_their_proportions() -> None:
    x = make({"preprocessing": {"normalize_method": "min_max"}}).preprocess(np.eye(20, 40) + 1.0)
    assert (x[..., :8, :] == -1).all(), "black above"
    assert (x[..., -8:, :] == -1).all(), "black below"


def disc(rows: int, **elements: Any) -> Any:
    """A dataset of 40 columns and `rows` rows; with square millimetres a disc fills it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    y, x = np.meshgrid((np.arange(rows) + 0.5) * 40 / rows - 20, np.arange(40) - 19.5, indexing="ij")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = rows, 40, 16, 12, 11
    dataset.PixelData = (1000 * (np.hypot(x, y) < 15)).astype("<u2").tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def with_measures(spacing: list[float]) -> Any:
    measures, group = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = spacing
    group.PixelMeasuresSequence = pydicom.Sequence([measures])
    return pydicom.Sequence([group])


@pytest.mark.parametrize(
    "elements",
    [
        {"PixelSpacing": [0.5, 0.25]},
        {"ImagerPixelSpacing": [2, 1]},
        {"PixelAspectRatio": [2, 1]},
        {"PixelSpacing": [0.5, 0.25], "PixelAspectRatio": [1, 1]},
        {"SharedFunctionalGroupsSequence": with_measures([3, 1.5])},
    ],
)
def test_pixels_that_are_not_square_are_made_so(elements: dict[str, Any]) -> None:
    encoder = make({"preprocessing": {"normalize_method": "min_max"}})
    square, flat, said = (encoder.preprocess(one) for one in (disc(40), disc(20), disc(20, **elements)))
    assert (said - square).abs().mean() < 0.1
    assert (flat - square).abs().mean() > 0.3
    wide = encoder.preprocess(disc(80, PixelSpacing=[0.5, 1]))
    assert (wide - square).abs().mean() < 0.1


def test_regions_are_told_in_the_files_own_pixels() -> None:
    encoder = with_option("architecture", "region_of_interest_detection", value=True)
    square, tall = (encoder.encode(one) for one in (disc(40), disc(20, PixelSpacing=[2, 1])))
    assert tall.region_boxes is not None
    assert square.region_boxes is not None
    torch.testing.assert_close(tall.region_boxes * torch.tensor([1.0, 2.0, 1.0, 2.0]), square.region_boxes)
    assert tall.region_boxes.any()


@pytest.mark.parametrize("spacing", [[0, 1], [1, 0], [-1, 1], [1, 1000], [1]])
def test_spacing_that_no_pixel_has_is_said_and_left(spacing: list[float], caplog: pytest.LogCaptureFixture) -> None:
    encoder = make()
    assert torch.equal(encoder.preprocess(disc(20, PixelSpacing=spacing)), encoder.preprocess(disc(20)))
    assert "square pixels" in caplog.text


# --- architecture ------------------------------------------------------------------------------------------------


def test_attention_to_detail_sees_what_is_too_small_otherwise() -> None:
    stripes = np.zeros((64, 64))
    stripes[:, ::2] = 1.0  # one pixel wide: at half the size an even grey
    even = np.full((64, 64), 0.5)
    even[0, 0], even[0, 1] = 0.0, 1.0

    def difference(on: bool) -> float:
        encoder = make({"architecture": {"attention_to_detail": on}, "preprocessing": {"normalize_method": "none"}})
        return float((encoder.preprocess(stripes) - encoder.preprocess(even)).abs().mean())

    assert difference(on=True) > 5 * difference(on=False)
    assert with_option("architecture", "attention_to_detail", value=True).encode(MR).grid_hw == (8, 8)
    assert make().encode(MR).grid_hw == (4, 4)


def test_multi_scale_features_are_the_mean_over_two_sizes() -> None:
    encoder = with_option("architecture", "multi_scale_features", value=True)
    result = encoder.encode(MR, normalize_output=False)
    assert result.scale_features is not None
    torch.testing.assert_close(result.scale_features.norm(dim=-1), torch.ones(1, 2))
    torch.testing.assert_close(result.features, result.scale_features.mean(dim=1))
    torch.testing.assert_close(result.scale_features[:, 0], make().encode(MR).features, atol=1e-6, rtol=0)
    assert not torch.allclose(result.scale_features[:, 0], result.scale_features[:, 1], atol=1e-4)
    torch.testing.assert_close(encoder(encoder.preprocess(MR)), result.features, atol=1e-6, rtol=0)
    assert make().encode(MR).scale_features is None


def test_regions_of_interest_lie_where_the_model_looks() -> None:
    encoder = with_option("architecture", "region_of_interest_detection", value=True)
    result = encoder.encode([MR, CT], return_attention_maps=True)
    assert result.regions is not None
    assert result.attention_maps is not None
    for regions, attention, size in zip(result.regions, result.attention_maps, (64, 128), strict=True):
        row, column = divmod(int(attention.argmax()), 4)
        x, y = (column + 0.5) * size / 4, (row + 0.5) * size / 4
        assert any(r.left < x < r.right and r.top < y < r.bottom for r in regions)
    assert make().encode(MR).regions is None


# --- output ------------------------------------------------------------------------------------------------------


def test_spatial_info_is_kept_when_asked_for() -> None:
    kept = with_option("output", "preserve_spatial_info", value=True).encode(MR)
    asked = make().encode(MR, return_patch_features=True)
    assert kept.patch_features is not None
    assert asked.patch_features is not None
    torch.testing.assert_close(kept.patch_features, asked.patch_features)
    assert make().encode(MR).patch_features is None


def test_confidence_is_the_mean_cosine_of_four_views() -> None:
    encoder = with_option("output", "confidence_estimation", value=True)
    result = encoder.encode(MR, normalize_output=False)
    x = encoder.preprocess(MR)
    views = [encoder(view) for view in encoder.views(x)]
    assert len(views) == 4
    expected = torch.stack([torch.cosine_similarity(result.features, view) for view in views]).mean()
    assert result.confidence is not None
    assert float(result.confidence) == pytest.approx(float(expected.detach()), abs=1e-5)
    flat = encoder.encode(np.zeros((16, 16))).confidence
    assert flat is not None
    assert float(flat) == pytest.approx(1.0, abs=1e-5), "all views of nothing are the same"
    assert make().encode(MR).confidence is None
    assert make().encode(MR, return_confidence=True).confidence is not None


def test_attention_maps_are_the_rollout() -> None:
    result = make().encode(MR, return_attention_maps=True, return_attention_weights=True)
    assert result.attention_maps is not None
    assert result.attention_rollout is not None
    torch.testing.assert_close(result.attention_maps, result.attention_rollout)
    assert make().encode(MR, return_attention_maps=True).attention_weights is None


# --- pictures of every kind --------------------------------------------------------------------------------------


def test_a_file_a_dataset_and_its_values_are_one_picture(tmp_path: Path) -> None:
    encoder = make()
    expected = features(encoder, CT)
    values = load_dicom_image(CT).frame().values
    Image.fromarray((values + 1024).astype(np.uint16)).save(tmp_path / "deep.png")
    for same in (str(CT), pydicom.dcmread(CT), load_dicom_image(CT), values, torch.from_numpy(values), [CT]):
        torch.testing.assert_close(features(encoder, same), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(features(encoder, tmp_path / "deep.png"), expected, atol=1e-6, rtol=0)


def test_frames_and_slices_are_rows_that_say_where_they_are_from() -> None:
    result = make().encode([CT, FILES / "rtdose.dcm", np.random.default_rng(0).random((3, 20, 20))], batch_size=4)
    assert result.features.shape == (1 + 15 + 3, 16)
    assert result.picture_indices.tolist() == [0] + [1] * 15 + [2] * 3
    assert result.frame_indices.tolist() == [0, *range(15), *range(3)]
    alone = make().encode(FILES / "rtdose.dcm")
    torch.testing.assert_close(result.features[1:16], alone.features, atol=1e-6, rtol=0)
    assert make(SPECIFIED).encode([], return_attention_maps=True).features.shape == (0, 16)


def test_colours_and_grey_models() -> None:
    grey = make(in_channels=1)
    for picture in (CT, FILES / "SC_rgb_rle.dcm", np.zeros((9, 9, 3), np.uint8)):
        assert features(grey, picture).shape == (1, 16)
        assert features(make(), picture).shape == (1, 16)
    photo = np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8)
    torch.testing.assert_close(features(make(), photo[..., ::-1], channel_order="bgr"), features(make(), photo))
    torch.testing.assert_close(features(make(), Image.fromarray(photo)), features(make(), photo))


def test_model_input_needs_to_be_said() -> None:
    encoder = make()
    x = encoder.preprocess([CT, MR])
    torch.testing.assert_close(features(encoder, x, value_range="normalized"), features(encoder, [CT, MR]))
    with pytest.raises(OptionError, match="have no effect on model input"):
        encoder.encode(x, value_range="normalized", enhance_contrast=True)
    with pytest.raises(OptionError, match="value_range: expected 'auto'"):
        encoder.encode(CT, value_range="unit")
    with pytest.raises(InputError, match="preprocessing is off"):
        make(enable_preprocessing=False).encode(CT)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ([CT, np.full((4, 4), np.nan)], "picture 2: expected finite values"),
        (np.zeros((0, 4)), "picture 1: expected a picture of numbers"),
        (np.zeros((4, 4, 3)) - 1.0, "colours from 0 to 1"),
        (np.array([["a"]]), "picture of numbers"),
        ([object()], "picture 1: expected a path, a DICOM image"),
        ("Secret_Name.png", "^picture 1: no such file$"),
    ],
)
def test_what_is_no_picture_is_named_by_its_place(picture: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make().encode(picture)


def test_a_path_that_cannot_be_read_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "Secret_Name.dcm")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError, match=r"^picture 1: it cannot be read \(PermissionError\)$") as caught:
        make().encode(CT)
    assert caught.value.__context__ is None


def test_encode_image_gives_one_vector_a_picture() -> None:
    encoder = make()
    assert np.asarray(encoder.encode_image(CT)).shape == (16,)
    many = encoder.encode_image([CT, MR], normalize_embeddings=True, enhance_contrast=True)
    np.testing.assert_allclose(many, encoder.encode([CT, MR], enhance_contrast=True).features, atol=1e-6)
    with pytest.raises(InputError, match="picture 2 has more than one frame: use encode"):
        encoder.encode_image([CT, FILES / "rtdose.dcm"])
    with pytest.raises(OptionError, match=r"unknown key 'enhance'.*valid: batch_size.*enhance_contrast, window"):
        encoder.encode_image(CT, enhance=True)


# --- options and files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"preprocesing": {}}, "unknown key 'preprocesing'.*valid: preprocessing, architecture, output"),
        ({"preprocessing": {"normalise": "z_score"}}, "valid: normalize_method, window_level_adjustment"),
        ({"preprocessing": {"normalize_method": "zscore"}}, "expected one of 'z_score', 'min_max', 'none'"),
        ({"preprocessing": {"noise_reduction": "median"}}, "expected one of None, 'bilateral_filter'"),
        ({"architecture": {"attention_to_detail": 1}}, "attention_to_detail: expected bool"),
        ({"output": {"confidence": True}}, r"did you mean 'confidence_estimation'\?"),
    ],
)
def test_options_that_do_not_fit_are_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        make(config)


def test_unknown_specialization_names_the_known() -> None:
    with pytest.raises(OptionError, match="specialization: expected one of 'medical_imaging', got 'satellite'"):
        VisionEncoder.create_specialized("satellite")


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    encoder = make(SPECIFIED)
    encoder.save_pretrained(tmp_path)
    again = VisionEncoder.create_specialized("medical_imaging", source=tmp_path)
    assert (again.settings, again.transform) == (encoder.settings, encoder.transform)
    torch.testing.assert_close(features(again), features(encoder), atol=1e-6, rtol=0)
    other = MedicalEncoder.from_pretrained(tmp_path, config={"output": {"preserve_spatial_info": True}})
    assert not other.settings.attention_to_detail


def test_trained_weights_come_from_any_checkpoint_of_pictures(tmp_path: Path) -> None:
    plain = VisionEncoder(**SMALL)
    plain.save_pretrained(tmp_path)
    medical = VisionEncoder.create_specialized("medical_imaging", SPECIFIED, source=tmp_path, image_size=64)
    assert medical.transform.fit == "letterbox", "nothing is cut off"
    assert medical.encode(CT).grid_hw == (16, 16)
    x = torch.randn(1, 3, 32, 32)
    unscaled = MedicalEncoder.from_pretrained(tmp_path)
    torch.testing.assert_close(unscaled(x), plain(x), atol=1e-6, rtol=0)


# --- with the rest of the package --------------------------------------------------------------------------------


def test_chunks_and_cache_give_the_same_rows() -> None:
    encoder, pictures = make(SPECIFIED), [CT, MR, FILES / "rtdose.dcm", load_dicom_image(CT)]
    plain = encoder.encode(pictures, enhance_contrast=True)
    batches = {"chunk_size": 4, "overlap_chunks": True}
    encoder.apply_memory_optimizations({"batch_processing": batches, "caching": {"cache_size_mb": 16}})
    for _ in range(2):
        again = encoder.encode(pictures, enhance_contrast=True)
        torch.testing.assert_close(again.features, plain.features, atol=1e-5, rtol=0)
        assert again.picture_indices.tolist() == plain.picture_indices.tolist()
        torch.testing.assert_close(again.region_boxes, plain.region_boxes)
    assert encoder.memory is not None
    assert encoder.memory.cache is not None
    assert encoder.memory.cache.hits == 18
    assert not torch.allclose(encoder.encode(pictures).features, plain.features, atol=1e-4), "another way of reading"
    bounded = memory_efficient_encoding(make(SPECIFIED), pictures, enhance_contrast=True)
    torch.testing.assert_close(bounded.features, plain.features, atol=1e-5, rtol=0)


def test_optimised_for_a_device_it_reads_as_before() -> None:
    encoder = make(SPECIFIED)
    fast = encoder.optimize_for_device({"memory_layout": "contiguous"})
    torch.testing.assert_close(features(fast), features(encoder))


def test_the_fallback_does_not_pretend_to_read_as_it_does() -> None:
    with pytest.raises(OptionError, match="got MedicalEncoder"):
        EncoderWithFallback(encoder=make())


def test_bfloat16_and_models_without_pooling() -> None:
    half = make(SPECIFIED, dtype=torch.bfloat16).encode(CT, return_attention_maps=True)
    assert torch.cosine_similarity(half.features, make(SPECIFIED).encode(CT).features).min() > 0.99
    assert half.attention_maps is not None
    assert half.attention_maps.dtype == torch.float32
    tokens = with_option("architecture", "multi_scale_features", value=True)
    tokens.configure_advanced_settings({"output_projection": {"use_pooling": False}})
    with pytest.raises(OptionError, match="multi_scale_features averages one vector a picture"):
        tokens.encode(CT)


def test_gradients_pass_and_training_mode_survives() -> None:
    encoder = make(SPECIFIED).train()
    encoder(encoder.preprocess(CT)).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    encoder.encode(CT)
    assert encoder.training
