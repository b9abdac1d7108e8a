"""DICOM through pydicom: frames as what their pixels measure, with the file's own window. Nothing of the patient is kept.

Only the elements below are read from a file or copied from a dataset; errors quote none of their values.
"""

import dataclasses
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from encoders_core.errors import EncoderError, InputError
from encoders_core.medical.windows import Floats, Table, ToGrey, Window

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_PYDICOM: Final = "reading DICOM needs pydicom: pip install 'camvec[medical]' (or: pip install pydicom)"
_KEPT: Final = (
    *("Modality", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{color}PaletteColorLookupTable{part}" for color in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
)
_MOST_SAMPLES: Final = 2**28
"""Of a frame: the largest mammograms and slides have a quarter of it; a few bytes of JPEG 2000 can claim more."""
_MOST_STRETCHED: Final = 20.0
"""Thick slices seen from the side have pixels ten times as high as wide; more is a damaged header."""
_DECODERS: Final = "pip install python-gdcm, pyjpegls or another plugin of pydicom"


@dataclass(frozen=True, repr=False)
class Picture:
    """One picture as numbers: grey (H, W) as measured, or colour (H, W, 3) from 0 to 1, float32."""

    values: Floats
    to_grey: ToGrey | None = None
    """The window that came with it."""
    inverted: bool = False
    """Whether low values are bright (MONOCHROME1)."""
    pixel_height: float = 1.0
    """Of one pixel, over its width."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def square_hw(self) -> tuple[int, int]:
        """Rows and columns of the same picture with square pixels, of the finer of its two spacings."""
        rows, columns = self.size_hw
        return round(rows * max(1.0, self.pixel_height)), round(columns * max(1.0, 1 / self.pixel_height))

    def __repr__(self) -> str:
        return f"Picture({self.values.shape}, inverted={self.inverted})"


class DicomImage:
    """The frames of one DICOM object, decoded when they are asked for: see `load_dicom_image`."""

    def __init__(self, dataset: Any) -> None:
        self._data = _attempt("it is damaged or no DICOM picture", lambda: _kept(dataset))
        if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(self._data.dir()):
            raise InputError("the DICOM object has no pixels: a report, a plan, or another thing than a picture")
        self.frame_count = _attempt("its size or number of frames is none", lambda: _frame_count(self._data))

    @property
    def modality(self) -> str:
        """CT, MR, CR, US, ...; empty where the file does not say."""
        return str(self._data.get("Modality", ""))

    @property
    def photometric(self) -> str:
        """MONOCHROME1, MONOCHROME2, RGB, ..."""
        return str(self._data.get("PhotometricInterpretation", ""))

    def __repr__(self) -> str:
        return f"DicomImage({self.modality or 'unknown'}, {self.photometric}, {self.frame_count} frames)"

    def frame(self, index: int = 0) -> Picture:
        """One frame, from 0. Raises InputError where it cannot be decoded or is no picture."""
        if not 0 <= index < self.frame_count:
            raise InputError(f"frame: expected 0 to {self.frame_count - 1}, got {index}")
        picture = dataclasses.replace(self._picture(self._stored(index), index), pixel_height=self._pixel_height(index))
        if not np.isfinite(picture.values).all():
            raise InputError("its values are not all finite")
        return picture

    def _picture(self, stored: NDArray[Any], index: int) -> Picture:
        if self.photometric == "PALETTE COLOR":
            stored = _attempt("its palette cannot be applied", lambda: self._coloured(stored))
            return Picture(_unit(stored, 8 * stored.dtype.itemsize))
        if self.photometric.startswith(("RGB", "YBR")) and stored.ndim == 3:
            return Picture(_unit(stored, int(self._data.get("BitsStored", 8))))
        if not self.photometric.startswith("MONOCHROME") or stored.ndim != 2:
            raise InputError("expected a grey, palette or RGB picture, got another photometric interpretation")
        return self._grey(stored, index)

    def content(self) -> NDArray[np.uint8]:
        """Everything that `frame` depends on, for a cache of features."""
        text = _attempt("it cannot be written down", self._data.to_json)
        return np.frombuffer(f"{self._data.original_encoding} {text}".encode(), np.uint8)

    def _grey(self, stored: NDArray[Any], index: int) -> Picture:
        values = _attempt("its rescaling cannot be applied", lambda: self._measured(stored, index))
        return Picture(values, self._window(index), inverted=self.photometric == "MONOCHROME1")

    def _stored(self, index: int) -> NDArray[Any]:
        from pydicom.pixels.utils import pixel_array  # noqa: PLC0415  optional

        syntax = getattr(self._data.file_meta.get("TransferSyntaxUID"), "name", "no transfer syntax said")
        stored: NDArray[Any] = _attempt(
            f"its pixels ({syntax}) are cut short, damaged, or need a decoder that is not installed: {_DECODERS}",
            lambda: pixel_array(self._data, index=index),
        )
        return stored

    def _measured(self, stored: NDArray[Any], index: int) -> Floats:
        """Stored values -> measured ones (Hounsfield units for CT); padding becomes the lowest of the others."""
        padded = self._padding(stored)
        group = self._group(index, "PixelValueTransformationSequence")
        values = stored.astype(np.float32)
        if tables := group.get("ModalityLUTSequence"):
            values = self._table(tables[0], unit=False)(values)
        elif "RescaleSlope" in group or "RescaleIntercept" in group:
            slope, intercept = group.get("RescaleSlope"), group.get("RescaleIntercept")
            values = values * float(1 if slope is None else slope) + np.float32(intercept or 0)
        if padded is not None and padded.any() and not padded.all():
            values[padded] = values[~padded].min()
        return values

    def _padding(self, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
        if (value := self._data.get("PixelPaddingValue")) is None:
            return None
        limit = self._data.get("PixelPaddingRangeLimit", value)
        low, high = sorted((int(value), int(limit)))
        return np.asarray((stored >= low) & (stored <= high))

    def _window(self, index: int) -> ToGrey | None:
        """The first of the tables, else the first of the windows; None without either, or where it cannot be."""
        try:
            return _attempt("its window cannot be applied", lambda: self._said_window(index))
        except EncoderError as exc:
            logger.warning("a DICOM picture is shown over the range of its own values: %s", exc)
            return None

    def _said_window(self, index: int) -> ToGrey | None:
        group = self._group(index, "FrameVOILUTSequence")
        if tables := group.get("VOILUTSequence"):
            return self._table(tables[0], unit=True)
        center, width = (_first(group.get(name)) for name in ("WindowCenter", "WindowWidth"))
        if center is None or width is None:
            return None
        return Window(center, width, group.get("VOILUTFunction") or "LINEAR")

    def _pixel_height(self, index: int) -> float:
        """Distance of the rows over that of the columns, as the frame says it; 1 where nothing can be made of it."""
        measures = self._group(index, "PixelMeasuresSequence").get("PixelSpacing")
        said = (self._data.get(name) for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"))
        pair = next((one for one in (measures, *said, self._data.get("PixelAspectRatio")) if one), (1, 1))
        try:
            ratio = float(pair[0]) / float(pair[1])
        except (TypeError, ValueError, ZeroDivisionError, IndexError):
            ratio = 0.0
        if 1 / _MOST_STRETCHED <= ratio <= _MOST_STRETCHED:
            return ratio
        logger.warning("a DICOM picture is taken to have square pixels: its header says sizes that no pixel has")
        return 1.0

    def _table(self, item: Any, *, unit: bool) -> Table:
        count, first, bits = (int(value) for value in item.LUTDescriptor)
        data, little = item.LUTData, self._data.original_encoding[1] is not False
        entries = np.frombuffer(data, "<u2" if little else ">u2") if isinstance(data, bytes) else np.asarray(data)
        return Table(first, entries[: count or 65536].astype(np.float32) / (2**bits - 1 if unit else 1))

    def _group(self, index: int, name: str) -> Any:
        """Where the elements of a kind stand: with the frame, with all frames, or at the top."""
        for sequence, place in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
            groups = self._data.get(sequence) or []
            if place < len(groups) and (found := groups[place].get(name)):
                return found[0]
        return self._data

    def _coloured(self, stored: NDArray[Any]) -> NDArray[Any]:
        from pydicom.pixels.processing import apply_color_lut  # noqa: PLC0415  optional

        return apply_color_lut(stored, self._data)[..., :3]


def load_dicom_image(path: str | os.PathLike[str]) -> DicomImage:
    """A DICOM file, of one frame or many, for `MedicalEncoder.encode`; nothing of the patient is read.

    Raises InputError where it cannot be read or holds no pixels; the message names neither path nor content.
    """
    pydicom = _pydicom()
    if not Path(path).is_file():
        raise InputError("no such DICOM file")

    def read() -> Any:
        with Path(path).open("rb") as file:
            return pydicom.dcmread(file, force=has_dicom_name(path), specific_tags=list(_KEPT))

    return DicomImage(_attempt("it is damaged or no DICOM file", read))


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file says so, by its mark or, in old files without one, by its name."""
    if not Path(path).is_file():
        return has_dicom_name(path)
    with Path(path).open("rb") as file:
        return file.read(132)[128:] == b"DICM" or has_dicom_name(path)


def has_dicom_name(path: str | os.PathLike[str]) -> bool:
    """Whether the name ends as those of DICOM files do."""
    return Path(path).suffix.lower() in (".dcm", ".dicom", ".ima")


def _pydicom() -> Any:
    try:
        import pydicom  # noqa: PLC0415  optional
    except ImportError as exc:
        raise InputError(_PYDICOM) from exc
    return pydicom


def _kept(dataset: Any) -> Any:
    """A dataset of the same pixels that knows nothing else."""
    kept = _pydicom().Dataset()
    for name in _KEPT:
        if name in dataset:
            kept[name] = dataset[name]
    kept.file_meta = _pydicom().dataset.FileMetaDataset()
    if syntax := getattr(dataset, "file_meta", {}).get("TransferSyntaxUID"):
        kept.file_meta.TransferSyntaxUID = syntax
    kept.set_original_encoding(*dataset.original_encoding)
    return kept


def _frame_count(data: Any) -> int:
    """What the header says, where it can be true. Raises InputError for a size or number that only a damaged file has."""
    count, samples = int(data.get("NumberOfFrames") or 1), int(data.get("SamplesPerPixel") or 1)
    size = int(data.Rows) * int(data.Columns) * samples
    if not 0 < size <= _MOST_SAMPLES:
        raise InputError(f"expected frames of 1 to {_MOST_SAMPLES} values, the header says {size}")
    pixels = data.get("PixelData") or data.get("FloatPixelData") or data.get("DoubleFloatPixelData") or b""
    encapsulated = getattr(data.file_meta.get("TransferSyntaxUID"), "is_encapsulated", False)
    bits = 64 if encapsulated else size * int(data.get("BitsAllocated", 8)) // 2  # 4:2:2 takes less than it says
    if not 1 <= count <= max(1, 8 * len(pixels) // max(1, bits)):
        raise InputError("the header says more frames than the file can hold")
    return count


def _attempt(problem: str, read: Callable[[], Value]) -> Value:
    """What `read` gives, or InputError with `problem`: pydicom's own words, and its warnings, quote the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read()
        except EncoderError:
            raise
        except Exception as exc:  # noqa: BLE001  a damaged file can raise anything
            kind = type(exc).__name__
    raise InputError(f"{problem} ({kind})")  # outside of `except`, so that the quoting error does not travel along


def _first(value: Any) -> float | None:
    if value is None or isinstance(value, str | bytes | int | float):
        return None if value in (None, "") else float(value)
    return float(value[0]) if len(value) else None


def _unit(stored: NDArray[Any], bits: int) -> Floats:
    return np.asarray(stored[..., :3] / np.float32(2**bits - 1), np.float32)
