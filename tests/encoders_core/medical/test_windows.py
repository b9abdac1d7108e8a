"""Windows and look-up tables: DICOM's own formulas, held against pydicom's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders_core.errors import OptionError
from encoders_core.medical.windows import Table, Window, full_range

pydicom = pytest.importorskip("pydicom", reason="DICOM needs: pip install 'camvec[medical]'")


def by_pydicom(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    from pydicom.pixels.processing import apply_windowing

    dataset = pydicom.Dataset()
    dataset.PhotometricInterpretation, dataset.PixelRepresentation, dataset.BitsStored = "MONOCHROME2", 1, 16
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = center, width, function
    with np.errstate(over="ignore"):
        out = apply_windowing(values, dataset)
    return (out + 32768) / 65535  # its output spans the stored range


@given(
    center=st.integers(-1000, 1000),
    width=st.integers(2, 3000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_window_equals_pydicom(center: int, width: int, function: str) -> None:
    values = np.linspace(-2000, 2000, 101, dtype=np.float32)
    window = Window(center, width, function)  # type: ignore[arg-type]
    np.testing.assert_allclose(window(values), by_pydicom(values, center, width, function), atol=2e-5)


def test_window_of_one_value_is_a_threshold() -> None:
    assert Window(10, 1)(np.array([9, 9.4, 9.6, 10], np.float32)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("center", "width"), [(0, 0.5), (0, 0), (float("nan"), 10), (0, float("inf")), (0, -5)])
def test_window_that_cannot_be_is_refused(center: float, width: float) -> None:
    with pytest.raises(OptionError, match="window: expected a finite center and a width"):
        Window(center, width)


def test_unknown_function_names_the_known() -> None:
    with pytest.raises(OptionError, match="LINEAR, LINEAR_EXACT, SIGMOID"):
        Window(0, 10, "GAMMA")  # type: ignore[arg-type]


def test_table_holds_its_ends() -> None:
    table = Table(-2, np.array([0.1, 0.2, 0.9], np.float32))
    np.testing.assert_allclose(table(np.array([-100, -2, -1, 0, 100], np.float32)), [0.1, 0.1, 0.2, 0.9, 0.9])


def test_full_range_spreads_and_keeps_flat_pictures_black() -> None:
    assert full_range(np.array([[-5, 0], [5, 15]], np.float32)).tolist() == [[0, 0.25], [0.5, 1]]
    assert full_range(np.full((2, 2), 7, np.float32)).tolist() == [[0, 0], [0, 0]]
