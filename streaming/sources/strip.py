"""The time-code strip of the test scene, under anybody's picture: for measuring latency through a real stream.

Re-encode a clip with `timecode.write_strip` below the picture, serve it, and `captured_at` is what the strip says.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import av

from streaming.errors import SourceError
from streaming.frames import CaptureTime
from streaming.sources.base import Picture, Source, StreamInfo
from streaming.sources.planes import plane_view
from streaming.sources.timecode import MIN_WIDTH_PX, STRIP_PX, TimeCode, read_strip

STRIP_ERROR_US: Final = 100  # from the reading of the clock to the first stroke of the drawing


class StripSource:
    """A `Source` around another: `captured` is the time code in its lowest 16 rows, which are not part of the picture.

    A picture whose code cannot be read keeps the time that the inner source gave it. Reads 8-bit planar YUV.
    """

    def __init__(self, inner: Source) -> None:
        self._inner = inner

    @property
    def last_packet_ns(self) -> int:
        """See `Source`."""
        return self._inner.last_packet_ns

    @property
    def repaired_pts(self) -> int:
        """See `Source`."""
        return self._inner.repaired_pts

    def open(self) -> StreamInfo:
        """See `Source`. Raises SourceError("codec") for a picture that is too small to hold a strip."""
        info = self._inner.open()
        if info.width and (info.width < MIN_WIDTH_PX or info.height <= STRIP_PX):
            raise SourceError(
                "codec",
                f"timecode_strip: expected a picture of at least {MIN_WIDTH_PX}x{STRIP_PX + 1}, "
                f"got {info.width}x{info.height}",
            )
        return replace(info, strip_px=STRIP_PX)

    def pictures(self) -> Iterator[Picture]:
        """See `Source`."""
        for picture in self._inner.pictures():
            code = None if picture.image is None else read_time_code(picture.image)
            if code is not None:
                picture.captured = CaptureTime(code.captured_at_us, "scene", STRIP_ERROR_US)
            yield picture

    def close(self) -> None:
        """See `Source`."""
        self._inner.close()


def read_time_code(image: av.VideoFrame) -> TimeCode | None:
    """The time code in the last 16 rows of a decoded picture, or None when it is damaged or there is none."""
    if image.width < MIN_WIDTH_PX or image.height < STRIP_PX:
        return None
    return read_strip(plane_view(image.planes[0], (image.height, image.width))[-STRIP_PX:])
