from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest

from streaming.frames import CaptureTime, FrameSpec
from streaming.sources.ahead import ConvertedAhead, converted
from streaming.sources.base import Picture, StreamInfo
from streaming.sources.convert import convert

SPEC = FrameSpec((8, 8))


class Camera:
    """Two pictures of 32 x 40 with a strip of 8 rows, and a damaged one between them."""

    last_packet_ns = 7
    repaired_pts = 3

    def __init__(self) -> None:
        self.closed = False

    def open(self) -> StreamInfo:
        return StreamInfo("h264", 32, 40, 25.0, live=True, strip_px=8)

    def pictures(self) -> Iterator[Picture]:
        for index in range(3):
            yield picture(index, damaged=index == 1)

    def close(self) -> None:
        self.closed = True


def picture(index: int, *, damaged: bool = False) -> Picture:
    pixels = np.full((40, 32, 3), 40 * index, np.uint8)
    pixels[32:] = 255
    image = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
    image.time_base = Fraction(1, 25)
    time = CaptureTime(0, "arrival", 0)
    return Picture(None if damaged else image, index * 40_000, time, 0, 0, damaged=damaged)


def test_pictures_that_can_go_are_converted_and_damaged_ones_are_not() -> None:
    source = ConvertedAhead(Camera(), lambda: SPEC)
    assert source.open().strip_px == 8
    first, damaged, last = source.pictures()
    assert damaged.converted is None
    for each in (first, last):
        assert each.converted is not None
        assert each.converted.spec == SPEC
        np.testing.assert_array_equal(each.converted.pixels, convert(each.image, SPEC, strip_px=8))


def test_pictures_that_could_not_go_now_are_left_alone() -> None:
    answers = iter([None, SPEC])
    source = ConvertedAhead(Camera(), lambda: next(answers))
    source.open()
    assert [each.converted is not None for each in source.pictures()] == [False, False, True]


def test_picture_that_cannot_be_converted_is_handed_on_as_it_is() -> None:
    source = ConvertedAhead(Camera(), lambda: SPEC)
    source.open()
    source._strip_px = 40  # no row is left
    assert [each.converted for each in source.pictures()] == [None] * 3


def test_conversion_of_a_damaged_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="damaged"):
        converted(picture(0, damaged=True), SPEC, 0)


def test_figures_and_the_close_are_those_of_the_source() -> None:
    camera = Camera()
    source = ConvertedAhead(camera, lambda: SPEC)
    assert (source.last_packet_ns, source.repaired_pts) == (7, 3)
    source.close()
    assert camera.closed
