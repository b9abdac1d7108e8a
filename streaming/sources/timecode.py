"""The machine-readable time code under the test scene's picture: which frame this is and when it was made.

Two rows of 64 black or white cells, 8 pixels tall and 8 wide (4 in pictures narrower than 512): one cell is one
transform block of H.264, so each bit lives in a single DC coefficient and survives any bitrate at which a picture is
left at all. Big-endian: frame index (32 bits), Unix microseconds (64), CRC-32 of these (32).
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

STRIP_PX: Final = 16
MIN_WIDTH_PX: Final = 256

_FIELDS: Final = struct.Struct(">IQ")
_CRC: Final = struct.Struct(">I")
_ROWS: Final = 2
_COLUMNS: Final = 64
_CELL_ROWS: Final = STRIP_PX // _ROWS
_BLACK, _WHITE, _THRESHOLD = 40, 215, 128


@dataclass(frozen=True, slots=True)
class TimeCode:
    """Frame number `index` and the moment it was taken, in Unix microseconds."""

    index: int
    captured_at_us: int


def write_strip(strip: NDArray[np.uint8], index: int, captured_at_us: int) -> None:
    """Fill `strip`, (16, W) luma or (16, W, 3) RGB uint8, W >= 256, in place; index below 2**32."""
    payload = _FIELDS.pack(index, captured_at_us)
    payload += _CRC.pack(zlib.crc32(payload))
    bits = np.unpackbits(np.frombuffer(payload, np.uint8)).reshape(_ROWS, _COLUMNS)
    levels = np.where(bits, np.uint8(_WHITE), np.uint8(_BLACK))
    cell = _cell_px(strip.shape[1])
    code = levels.repeat(_CELL_ROWS, axis=0).repeat(cell, axis=1)
    strip[...] = 128
    strip[:, : _COLUMNS * cell] = code if strip.ndim == 2 else code[:, :, None]


def read_strip(luma: NDArray[np.uint8]) -> TimeCode | None:
    """(16, W) uint8 luma, full or limited range -> TimeCode, or None when it is damaged or none."""
    cell = _cell_px(luma.shape[1])
    rows = luma[:STRIP_PX, : _COLUMNS * cell].reshape(_ROWS, _CELL_ROWS, -1).sum(axis=1, dtype=np.uint16)
    cells = rows.reshape(_ROWS, _COLUMNS, cell).sum(axis=2, dtype=np.uint16)
    payload = np.packbits(cells > _THRESHOLD * _CELL_ROWS * cell).tobytes()
    fields, crc = payload[: _FIELDS.size], payload[_FIELDS.size :]
    if _CRC.unpack(crc)[0] != zlib.crc32(fields):
        return None
    return TimeCode(*_FIELDS.unpack(fields))


def _cell_px(width: int) -> int:
    if width < MIN_WIDTH_PX:
        raise ValueError(f"a time code needs a picture at least {MIN_WIDTH_PX} pixels wide, got {width}")
    return 8 if width >= _COLUMNS * 8 else 4
