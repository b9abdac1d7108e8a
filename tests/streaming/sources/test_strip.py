from pathlib import Path

import av
import numpy as np
import pytest

from streaming.config import load_text
from streaming.errors import SourceError
from streaming.sources import SourceConfig, open_source
from streaming.sources.strip import STRIP_ERROR_US
from streaming.sources.timecode import STRIP_PX, write_strip

START_US = 1_790_000_000_000_000


def clip(path: Path, *, size: tuple[int, int] = (320, 240), coded: range = range(5)) -> Path:
    """Five grey pictures; those numbered in `coded` have a time code in their lowest rows."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(5):
            rgb = np.full((size[1], size[0], 3), 100, np.uint8)
            if index in coded:
                write_strip(rgb[-STRIP_PX:], index, START_US + index)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def test_strip_is_the_time_of_capture_and_no_picture(tmp_path: Path) -> None:
    source = open_source(SourceConfig(str(clip(tmp_path / "clip.mp4")), strip=True))
    info = source.open()
    captured = [picture.captured for picture in source.pictures()]
    source.close()
    assert info.strip_px == STRIP_PX
    assert [time.at_us for time in captured] == [START_US + index for index in range(5)]
    assert {(time.clock, time.error_us) for time in captured} == {("scene", STRIP_ERROR_US)}


def test_strip_that_cannot_be_read_leaves_the_time_of_arrival(tmp_path: Path) -> None:
    source = open_source(SourceConfig(str(clip(tmp_path / "clip.mp4", coded=range(3))), strip=True))
    source.open()
    clocks = [picture.captured.clock for picture in source.pictures()]
    source.close()
    assert clocks == ["scene"] * 3 + ["arrival"] * 2


def test_strip_in_a_picture_too_small_for_it_is_refused(tmp_path: Path) -> None:
    source = open_source(SourceConfig(str(clip(tmp_path / "clip.mp4", size=(128, 96), coded=range(0))), strip=True))
    with pytest.raises(SourceError, match="at least 256x17, got 128x96"):
        source.open()
    source.close()


def test_strip_is_off_unless_the_camera_says_so() -> None:
    cameras = load_text("cameras: {a: a.mp4, b: {url: b.mp4, timecode_strip: true}}").cameras
    assert (cameras["a"].source().strip, cameras["b"].source().strip) == (False, True)
