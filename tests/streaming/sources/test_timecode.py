import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.sources.scene import SceneParams
from streaming.sources.scene_process import SceneEncoder
from streaming.sources.strip import read_time_code
from streaming.sources.timecode import STRIP_PX, TimeCode, read_strip, write_strip
from tests.streaming.sources.scene_gear import decoded

NOW_US = 1_790_000_000_123_456
indexes = st.integers(0, 2**32 - 1)
moments = st.integers(0, 2**64 - 1)


def strip(index: int = 7, captured_at_us: int = NOW_US, width: int = 640) -> np.ndarray:
    luma = np.empty((STRIP_PX, width), np.uint8)
    write_strip(luma, index, captured_at_us)
    return luma


@given(indexes, moments, st.integers(256, 4000))
def test_strip_comes_back_as_written(index: int, captured_at_us: int, width: int) -> None:
    assert read_strip(strip(index, captured_at_us, width)) == TimeCode(index, captured_at_us)


@given(indexes, moments, st.sets(st.integers(0, 127), min_size=1))
def test_strip_with_wrong_cells_is_refused(index: int, captured_at_us: int, cells: set[int]) -> None:
    luma = strip(index, captured_at_us)
    for cell in cells:
        row, column = divmod(cell, 64)
        luma[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] ^= 255
    assert read_strip(luma) is None


@given(st.integers(0, 2**32 - 1))
def test_strip_under_noise_and_limited_range_is_read(seed: int) -> None:
    rng = np.random.default_rng(seed)
    limited = 16 + strip() * (219 / 255) + rng.normal(0, 40, (STRIP_PX, 640))
    assert read_strip(np.clip(limited, 0, 255).astype(np.uint8)) == TimeCode(7, NOW_US)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_strip_that_is_none_is_refused(level: int) -> None:
    assert read_strip(np.full((STRIP_PX, 640), level, np.uint8)) is None


def test_strip_of_a_narrow_picture_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="at least 256 pixels wide, got 128"):
        strip(width=128)


@pytest.mark.parametrize("crf", [23, 40, 51])
@pytest.mark.parametrize("size", ["256x144", "640x360", "642x358"])
def test_strip_survives_h264_down_to_its_worst_quality(size: str, crf: int) -> None:
    params = SceneParams.parse(f"scene:busy?crf={crf}&size={size}&noise=6")
    encoder = SceneEncoder(params)
    height, width = params.size_hw
    rng = np.random.default_rng(1)
    coded = rng.integers(0, 256, (height + STRIP_PX, width, 3), np.uint8)
    data = b""
    for index in range(12):
        write_strip(coded[-STRIP_PX:], index, NOW_US + 97_531 * index)
        data += encoder.encode(coded, index)
        coded = np.roll(coded, 16, axis=1)
    pictures = decoded(data + encoder.finish())
    assert [read_time_code(each) for each in pictures] == [TimeCode(n, NOW_US + 97_531 * n) for n in range(12)]


def test_strip_of_a_picture_that_has_none_is_refused() -> None:
    image = av.VideoFrame.from_ndarray(np.zeros((376 * 3 // 2, 640), np.uint8), "yuv420p")
    assert read_time_code(image) is None
