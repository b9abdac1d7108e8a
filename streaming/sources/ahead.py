"""Conversion in the reader's thread, of pictures that can go on at once: a hop to another thread costs more than it does."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic_ns, thread_time_ns

from streaming.frames import FrameSpec
from streaming.sources.base import Converted, Picture, Source, StreamInfo
from streaming.sources.convert import convert


def _not_told(_stage: str, _cpu_ns: int) -> None:
    pass


class ConvertedAhead:
    """A `Source` around another: a picture is `converted` as `wanted()` says, or not at all when that is None.

    `wanted` is called from the reader's thread for each picture; it is None when the picture could not be sent now, so
    that overload still stops pictures before they are converted. `spent` is told what CPU each `source` (demuxing and
    decoding of one picture) and each `convert` took.
    """

    def __init__(
        self,
        inner: Source,
        wanted: Callable[[], FrameSpec | None],
        spent: Callable[[str, int], None] = _not_told,
    ) -> None:
        self._inner, self._wanted, self._spent = inner, wanted, spent
        self._strip_px = 0

    @property
    def last_packet_ns(self) -> int:
        """See `Source`."""
        return self._inner.last_packet_ns

    @property
    def repaired_pts(self) -> int:
        """See `Source`."""
        return self._inner.repaired_pts

    def open(self) -> StreamInfo:
        """See `Source`."""
        info = self._inner.open()
        self._strip_px = info.strip_px
        return info

    def pictures(self) -> Iterator[Picture]:
        """See `Source`."""
        from_ns = thread_time_ns()
        for picture in self._inner.pictures():
            spec = None if picture.image is None else self._wanted()
            decoded_ns = thread_time_ns()
            self._spent("source", decoded_ns - from_ns)
            if spec is not None:
                with suppress(ValueError):  # whoever converts it again is told
                    picture.converted = converted(picture, spec, self._strip_px)
                self._spent("convert", thread_time_ns() - decoded_ns)
            yield picture
            from_ns = thread_time_ns()

    def close(self) -> None:
        """See `Source`."""
        self._inner.close()


def converted(picture: Picture, spec: FrameSpec, strip_px: int) -> Converted:
    """A picture as the model wants it. Raises ValueError for one that cannot be converted."""
    started_ns = monotonic_ns()
    if picture.image is None:
        raise ValueError("expected a picture, got a damaged one")
    pixels = convert(picture.image, spec, strip_px=strip_px)
    return Converted(spec, pixels, (monotonic_ns() - started_ns) // 1000)
