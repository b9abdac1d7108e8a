"""What a compressed picture says of itself before it is decoded: the headers of its NAL units, H.264 and HEVC."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

GATED_CODECS: Final = frozenset({"h264", "hevc"})
_H264_PARAMETERS: Final = frozenset({7, 8, 13, 15})
_H264_SLICES: Final = range(1, 6)
_H264_IDR: Final = 5
_HEVC_PARAMETERS: Final = frozenset({32, 33, 34})
_HEVC_SLICES: Final = range(32)
_HEVC_IDR: Final = frozenset({19, 20})


@dataclass(frozen=True, slots=True)
class AccessUnit:
    """`restart`: nothing after it needs anything before it (IDR). `disposable`: no other picture needs it."""

    restart: bool
    disposable: bool
    parameters: bool
    """It carries parameter sets, which later pictures may need."""


def access_unit(data: bytes, codec: str, length_bytes: int) -> AccessUnit:
    """The packet of one picture -> what its headers say; `length_bytes` as of `nal_length_bytes`."""
    headers = list(_headers(data, length_bytes))
    if codec == "h264":
        types = [header & 31 for header in headers]
        slices = [(kind, header >> 5 & 3) for kind, header in zip(types, headers, strict=True) if kind in _H264_SLICES]
        return AccessUnit(
            restart=bool(slices) and all(kind == _H264_IDR for kind, _ in slices),
            disposable=bool(slices) and not any(reference for _, reference in slices),
            parameters=not _H264_PARAMETERS.isdisjoint(types),
        )
    types = [header >> 1 & 63 for header in headers]
    slices_hevc = [kind for kind in types if kind in _HEVC_SLICES]
    restart = bool(slices_hevc) and _HEVC_IDR.issuperset(slices_hevc)
    # Which HEVC pictures are disposable depends on the temporal layers above them: none counts as such.
    return AccessUnit(restart, disposable=False, parameters=not _HEVC_PARAMETERS.isdisjoint(types))


def nal_length_bytes(codec: str, extradata: bytes | None) -> int:
    """Size of the length before each NAL unit, as in MP4; 0: start codes, as in RTSP and raw streams."""
    if not extradata or extradata[0] != 1:
        return 0
    place = 4 if codec == "h264" else 21
    return (extradata[place] & 3) + 1 if len(extradata) > place else 0


def _headers(data: bytes, length_bytes: int) -> Iterator[int]:
    """The first byte of each NAL unit; what is not well-formed ends it."""
    if length_bytes:
        at = 0
        while at + length_bytes < len(data):
            yield data[at + length_bytes]
            at += length_bytes + int.from_bytes(data[at : at + length_bytes], "big")
        return
    at = data.find(b"\0\0\1")
    while 0 <= at < len(data) - 3:
        yield data[at + 3]
        at = data.find(b"\0\0\1", at + 3)
