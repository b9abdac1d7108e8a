"""DICOM files read: pydicom's own files, and small ones written here."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders_core.errors import InputError
from encoders_core.medical.dicom import DicomImage, is_dicom, load_dicom_image
from encoders_core.medical.windows import Table, Window

pydicom = pytest.importorskip("pydicom", reason="DICOM needs: pip install 'camvec[medical]'")

FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def written(**elements: Any) -> Any:
    """A small dataset, 2 x 3, 12 bits of 16, whose stored values are 0, 100, ... 500."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PatientName, dataset.PatientID = "Secret^Name", "ID-4711"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 2, 3, 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = (np.arange(6, dtype="<u2") * 100).tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def lut(first: int, entries: list[int], bits: int) -> Any:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], entries
    return pydicom.Sequence([item])


def test_slope_and_intercept_give_hounsfield_units() -> None:
    stored = pydicom.dcmread(FILES / "CT_small.dcm").pixel_array
    picture = load_dicom_image(FILES / "CT_small.dcm").frame()
    assert picture.values.dtype == np.float32
    np.testing.assert_array_equal(picture.values, stored - 1024.0)
    assert picture.to_grey is None, "the file has no window"


def test_the_files_own_window_comes_along() -> None:
    picture = load_dicom_image(FILES / "MR_small.dcm").frame()
    assert picture.to_grey == Window(600, 1600)
    several = load_dicom_image(FILES / "examples_overlay.dcm").frame()
    assert several.to_grey == Window(450, 790), "of several the first"


def test_every_way_of_storing_gives_the_same_picture() -> None:
    plain = load_dicom_image(FILES / "MR_small.dcm").frame().values
    for name in ("MR_small_bigendian", "MR_small_implicit", "MR_small_RLE", "MR_small_jp2klossless"):
        np.testing.assert_array_equal(load_dicom_image(FILES / f"{name}.dcm").frame().values, plain)


def test_monochrome1_is_said_to_be_inverted() -> None:
    (path,) = sorted((FILES / "dicomdirtests").rglob("6154"))
    picture = load_dicom_image(path).frame()
    assert picture.inverted
    assert picture.values.max() == pytest.approx(2802 * 0.684 + 200, rel=1e-6)
    assert not load_dicom_image(FILES / "MR_small.dcm").frame().inverted


def test_frames_are_decoded_one_by_one() -> None:
    image = load_dicom_image(FILES / "rtdose.dcm")
    whole = pydicom.dcmread(FILES / "rtdose.dcm").pixel_array
    assert image.frame_count == 15
    np.testing.assert_array_equal(image.frame(14).values, whole[14].astype(np.float32))
    with pytest.raises(InputError, match="frame: expected 0 to 14, got 15"):
        image.frame(15)


def test_colours_come_as_rgb_from_0_to_1() -> None:
    wide = load_dicom_image(FILES / "SC_rgb_rle_16bit.dcm").frame().values
    narrow = load_dicom_image(FILES / "SC_rgb_rle.dcm").frame().values
    np.testing.assert_allclose(wide, narrow, atol=1e-6)
    converted = load_dicom_image(FILES / "SC_ybr_full_422_uncompressed.dcm").frame().values
    assert np.abs(converted - narrow).mean() < 0.01, "YBR becomes RGB"
    palette = load_dicom_image(FILES / "examples_palette.dcm").frame().values
    assert palette.shape == (350, 800, 3)
    assert 0 <= palette.min() < palette.max() <= 1


def test_a_voi_table_wins_over_a_window() -> None:
    dataset = written(WindowCenter=100, WindowWidth=50, VOILUTSequence=lut(200, [0, 51, 255], 8))
    to_grey = DicomImage(dataset).frame().to_grey
    assert isinstance(to_grey, Table)
    np.testing.assert_allclose(to_grey(np.array([0, 201, 999], np.float32)), [0, 0.2, 1])


def test_a_modality_table_replaces_rescaling() -> None:
    dataset = written(ModalityLUTSequence=lut(0, [*range(1000, 1501)], 16))
    np.testing.assert_array_equal(DicomImage(dataset).frame().values, [[1000, 1100, 1200], [1300, 1400, 1500]])


def test_padding_is_background_not_the_lowest_value() -> None:
    values = DicomImage(written(PixelPaddingValue=0)).frame().values
    assert values[0, 0] == 100
    ranged = DicomImage(written(PixelPaddingValue=300, PixelPaddingRangeLimit=500)).frame().values
    np.testing.assert_array_equal(ranged, [[0, 100, 200], [0, 0, 0]])


def test_frames_of_enhanced_files_have_their_own_window_and_rescaling() -> None:
    def group(center: float, slope: float) -> Any:
        item, window, rescale = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = center, 100
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, 0
        item.FrameVOILUTSequence = pydicom.Sequence([window])
        item.PixelValueTransformationSequence = pydicom.Sequence([rescale])
        return item

    pixels = np.arange(12, dtype="<u2").tobytes()
    groups = pydicom.Sequence([group(10, 1), group(20, 2)])
    image = DicomImage(written(NumberOfFrames=2, PixelData=pixels, PerFrameFunctionalGroupsSequence=groups))
    assert image.frame(0).to_grey == Window(10, 100)
    assert image.frame(1).to_grey == Window(20, 100)
    assert image.frame(1).values[0, 0] == 12
    shared = DicomImage(
        written(NumberOfFrames=2, PixelData=pixels, SharedFunctionalGroupsSequence=pydicom.Sequence([group(5, 3)]))
    )
    assert shared.frame(1).to_grey == Window(5, 100)
    assert shared.frame(1).values[0, 0] == 18


def test_a_window_that_cannot_be_is_said_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert DicomImage(written(WindowCenter=10, WindowWidth=0)).frame().to_grey is None
    assert "over the range of its own values" in caplog.text


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"NumberOfFrames": 10**9}, "more frames than the file can hold"),
        ({"NumberOfFrames": -1}, "more frames than the file can hold"),
        ({"Rows": 65535, "Columns": 65535}, "expected frames of 1 to 268435456 values"),
        ({"Columns": 0}, "expected frames of 1 to"),
        ({"RescaleSlope": "1e300", "RescaleIntercept": 0}, "not all finite"),
    ],
)
def test_headers_that_cannot_be_true_are_refused(elements: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DicomImage(written(**elements)).frame()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_a_picture_or_an_error_in_words(data: st.DataObject, tmp_path_factory: Any) -> None:
    content = bytearray((FILES / "MR_small.dcm").read_bytes())
    header = content.index(b"\xe0\x7f\x10\x00")  # where the pixels start
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(132, header + 16))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.dcm"
    path.write_bytes(content)
    values, said = np.zeros(1, np.float32), ""
    try:
        values = load_dicom_image(path).frame().values
    except InputError as error:
        said = told(error)
    assert "CompressedSamples" not in said
    assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rtplan.dcm", "has no pixels"),
        ("MR_truncated.dcm", r"cut short, damaged, or need a decoder.*\(ValueError\)"),
        ("JPEGLSNearLossless_16.dcm", "JPEG-LS.*pip install python-gdcm, pyjpegls"),
        ("nothing.dcm", "no such DICOM file"),
        ("README.txt", "damaged or no DICOM file"),
    ],
)
def test_what_cannot_be_read_says_why(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_dicom_image(FILES / name).frame()


def test_files_are_known_by_their_mark_or_name(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes((FILES / "MR_small.dcm").read_bytes())
    (tmp_path / "old.DCM").write_bytes(b"no mark")
    (tmp_path / "picture.png").write_bytes(b"no mark")
    assert is_dicom(tmp_path / "IM0001")
    assert is_dicom(tmp_path / "old.DCM")
    assert not is_dicom(tmp_path / "picture.png")


def test_without_pydicom_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(InputError, match=r"^reading DICOM needs pydicom: pip install 'camvec\[medical\]'"):
        load_dicom_image(FILES / "MR_small.dcm")


# --- nothing of the patient --------------------------------------------------------------------------------------


def told(error: BaseException) -> str:
    """Everything that an error and those behind it say."""
    said = []
    seen: BaseException | None = error
    while seen is not None:
        said.append(repr(seen))
        seen = seen.__cause__ or seen.__context__
    return "\n".join(said)


def test_nothing_of_the_patient_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        image = DicomImage(written(StudyDescription="Secret study", WindowCenter=1, WindowWidth=0))
        shown = f"{image!r} {image} {image.frame()!r} {vars(image)} {bytes(image.content())!r} {caplog.text}"
    assert "DicomImage(unknown, MONOCHROME2, 1 frames)" in shown
    assert "Secret" not in shown
    assert "4711" not in shown
    assert "CompressedSamples" not in str(vars(load_dicom_image(FILES / "CT_small.dcm")))


@pytest.mark.parametrize(
    "elements",
    [
        {"PixelData": b"Secret"},
        {"PhotometricInterpretation": "SECRET"},
        {"Rows": 0},
    ],
)
def test_errors_quote_nothing_of_the_file(elements: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        DicomImage(written(**elements)).frame()
    assert "secret" not in told(caught.value).lower()


def test_a_patients_name_in_a_path_is_not_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "Secret_Name.dcm"
    path.write_bytes(b"nothing of use")
    for broken in (path, tmp_path / "Secret_Missing.dcm"):
        with pytest.raises(InputError) as caught:
            load_dicom_image(broken).frame()
        assert "Secret" not in told(caught.value)
