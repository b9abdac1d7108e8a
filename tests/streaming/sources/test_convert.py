import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest

from streaming.frames import FrameSpec
from streaming.sources import convert as convert_module
from streaming.sources.convert import convert
from tests.streaming.sources.convert_reference import area_average, planes_of, reference, rows_of, to_rgb

SPEC = FrameSpec((224, 224))
CLIPS = Path(os.environ.get("CAMVEC_CLIPS", "/nonexistent"))
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="CAMVEC_CLIPS names no folder with the real clips")

# The standards' own values of full-intensity colours: (matrix, full range), Y, Cb, Cr, RGB.
KNOWN = [
    ("bt601", False, (81, 90, 240), (255, 0, 0)),
    ("bt601", False, (145, 54, 34), (0, 255, 0)),
    ("bt601", False, (41, 240, 110), (0, 0, 255)),
    ("bt709", False, (63, 102, 240), (255, 0, 0)),
    ("bt709", False, (173, 42, 26), (0, 255, 0)),
    ("bt709", False, (32, 240, 118), (0, 0, 255)),
    ("bt601", True, (76, 85, 255), (255, 0, 0)),
    ("bt709", True, (54, 99, 255), (255, 0, 0)),
    ("bt601", False, (16, 128, 128), (0, 0, 0)),
    ("bt709", False, (235, 128, 128), (255, 255, 255)),
    ("bt709", True, (128, 128, 128), (128, 128, 128)),
]


def solid(yuv: tuple[int, int, int], width: int = 320, height: int = 240, name: str = "yuv420p") -> av.VideoFrame:
    image = av.VideoFrame(width, height, name)
    for plane, level in zip(image.planes, yuv, strict=True):
        rows_of(plane)[:] = level
    return image


def textured(width: int, height: int, name: str = "yuv420p", seed: int = 0) -> av.VideoFrame:
    """Edges, ramps and colour at several scales, in legal limited range."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    rgb = np.stack([128 + 100 * np.sin(rows / f + columns / g) for f, g in rng.uniform(8, 60, (3, 2))], axis=-1)
    rgb[height // 4 : height // 2, width // 3 : width // 2] -= 60
    grain = rng.normal(0, 6, (height, width, 1))
    frame = av.VideoFrame.from_ndarray(np.clip(rgb + grain, 0, 255).astype(np.uint8), "rgb24")
    return frame.reformat(format=name, dst_colorspace="itu601", dst_color_range="MPEG")


def pixel(image: av.VideoFrame, spec: FrameSpec = SPEC, **kwargs: int) -> list[int]:
    rgb = convert(image, spec, **kwargs)
    assert (rgb == rgb[0, 0]).all()
    return [int(level) for level in rgb[0, 0]]


# --- colour ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("matrix", "full", "yuv", "rgb"), KNOWN)
def test_convert_known_colour_within_two_levels(
    matrix: Literal["bt601", "bt709"], full: bool, yuv: tuple[int, int, int], rgb: tuple[int, int, int]
) -> None:
    spec = FrameSpec((32, 32), matrix=matrix, range="full" if full else "limited")
    assert np.abs(np.subtract(pixel(solid(yuv), spec), rgb)).max() <= 2


@pytest.mark.parametrize(("matrix", "full", "yuv", "_rgb"), KNOWN)
def test_convert_equals_the_formula_rounded(
    matrix: Literal["bt601", "bt709"], full: bool, yuv: tuple[int, int, int], _rgb: tuple[int, int, int]
) -> None:
    y, u, v = (np.full((1, 1), float(level)) for level in yuv)
    exact = np.clip(to_rgb(y, u, v, matrix, full=full)[0, 0], 0, 255)
    spec = FrameSpec((32, 32), matrix=matrix, range="full" if full else "limited")
    assert np.abs(pixel(solid(yuv), spec) - exact).max() <= 0.51


def test_convert_wrong_matrix_costs_up_to_fifteen_levels_on_moderate_colours() -> None:
    moderate = [(y, u, v) for y in (80, 120, 160) for u in (104, 128, 152) for v in (104, 128, 152)]
    right, wrong = FrameSpec((8, 8), matrix="bt709"), FrameSpec((8, 8), matrix="bt601")
    off = [np.abs(np.subtract(pixel(solid(yuv), right), pixel(solid(yuv), wrong))).max() for yuv in moderate]
    assert 10 <= max(off) <= 15


@pytest.mark.parametrize(
    ("height", "strip_px", "matrix"), [(718, 0, "bt601"), (720, 0, "bt709"), (720, 16, "bt601"), (736, 16, "bt709")]
)
def test_convert_untagged_matrix_follows_the_lines_of_the_picture(
    height: int, strip_px: int, matrix: Literal["bt601", "bt709"]
) -> None:
    image = solid((120, 100, 160), 1280, height)
    assert pixel(image, strip_px=strip_px) == pixel(image, FrameSpec((224, 224), matrix=matrix))


@pytest.mark.parametrize(("tag", "matrix"), [(1, "bt709"), (5, "bt601"), (6, "bt601")])
def test_convert_follows_the_matrix_tag(tag: int, matrix: Literal["bt601", "bt709"]) -> None:
    image = solid((120, 100, 160), 320, 240 if tag == 1 else 1080)
    image.colorspace = tag
    assert pixel(image) == pixel(image, FrameSpec((224, 224), matrix=matrix))


def test_convert_follows_the_range_tag_and_the_format() -> None:
    limited, full = FrameSpec((8, 8), range="limited"), FrameSpec((8, 8), range="full")
    image = solid((120, 100, 160))
    assert pixel(image) == pixel(image, limited) != pixel(image, full)
    image.color_range = 2
    assert pixel(image) == pixel(image, full)
    jpeg = solid((120, 100, 160), name="yuvj420p")
    assert pixel(jpeg) == pixel(jpeg, full) == pixel(image, full)
    assert pixel(jpeg, limited) == pixel(image, limited)


def test_convert_grey_is_grey() -> None:
    image = av.VideoFrame(64, 64, "gray")
    rows_of(image.planes[0])[:] = 90
    assert pixel(image) == [90, 90, 90]


# --- scaling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 360), (1280, 720)])
def test_convert_area_is_within_three_levels_of_the_reference(size: tuple[int, int]) -> None:
    image = textured(*size)
    error = np.abs(convert(image, FrameSpec((160, 160), matrix="bt601")) - reference(image, (160, 160), "bt601"))
    assert error.max() <= 3.0
    assert error.mean() <= 0.6


@pytest.mark.parametrize(("scaler", "mean"), [("bilinear", 1.6), ("bicubic", 1.6)])
def test_convert_other_scalers_are_antialiased_too(scaler: Literal["bilinear", "bicubic"], mean: float) -> None:
    image = textured(1280, 720)
    error = convert(image, FrameSpec((224, 224), scaler=scaler, matrix="bt601")) - reference(image, (224, 224), "bt601")
    assert np.abs(error).mean() <= mean
    # Without antialiasing the grain of 6 levels comes through whole.
    assert error.std() <= 3.0


@pytest.mark.parametrize("name", ["yuv422p", "yuv444p", "yuvj420p", "nv12", "yuyv422", "yuv420p10le", "rgb24", "bgra"])
def test_convert_every_format_gives_the_same_picture(name: str) -> None:
    image = textured(640, 360, "yuv444p")
    image.color_range, image.colorspace = 1, 6
    other = image.reformat(
        format=name,
        src_colorspace="itu601",
        dst_colorspace="itu601",
        src_color_range="MPEG",
        dst_color_range="JPEG" if name in ("yuvj420p", "rgb24", "bgra") else "MPEG",
    )
    error = np.abs(convert(other, SPEC).astype(int) - convert(image, SPEC))
    assert error.mean() <= 1.2


def test_convert_rgb_is_the_exact_average() -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (360, 640, 3), np.uint8)
    got = convert(av.VideoFrame.from_ndarray(rgb, "rgb24"), SPEC)
    assert np.abs(got - area_average(rgb.astype(float), (224, 224))).max() <= 1.5


@pytest.mark.parametrize("size_hw", [(224, 224), (96, 160), (223, 225), (1, 1)])
@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
def test_convert_gives_contiguous_uint8_of_the_size(
    size_hw: tuple[int, int], fit: Literal["squash", "crop", "letterbox"]
) -> None:
    for image in (textured(320, 240), textured(322, 182), textured(181, 321), solid((120, 128, 128), 16, 16)):
        rgb = convert(image, FrameSpec(size_hw, fit=fit))
        assert rgb.shape == (*size_hw, 3)
        assert rgb.dtype == np.uint8
        assert rgb.flags.c_contiguous


def test_convert_does_not_touch_the_picture() -> None:
    image = textured(320, 240)
    before, tags = planes_of(image), (image.colorspace, image.color_range, image.pts)
    for fit in ("squash", "crop", "letterbox"):
        convert(image, FrameSpec((64, 64), fit=fit), strip_px=16)
    assert all((a == b).all() for a, b in zip(before, planes_of(image), strict=True))
    assert tags == (image.colorspace, image.color_range, image.pts)


# --- fit ------------------------------------------------------------------------------------------------------------


def with_strip(image: av.VideoFrame, level: int) -> av.VideoFrame:
    """The picture with 16 rows of `level` under it."""
    taller = solid((level, level, level), image.width, image.height + 16)
    for plane, source in zip(taller.planes, planes_of(image), strict=True):
        rows_of(plane)[: source.shape[0]] = source
    return taller


@pytest.mark.parametrize("fit", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("level", [0, 255])
def test_convert_strip_is_not_in_the_picture(fit: Literal["squash", "crop", "letterbox"], level: int) -> None:
    image, spec = textured(640, 360), FrameSpec((224, 224), fit=fit)
    assert (convert(with_strip(image, level), spec, strip_px=16) == convert(image, spec)).all()


def test_convert_crop_takes_the_centre() -> None:
    image = textured(640, 360)
    y, u, v = planes_of(image)
    middle = av.VideoFrame(360, 360, "yuv420p")
    for plane, source in zip(middle.planes, (y[:, 140:500], u[:, 70:250], v[:, 70:250]), strict=True):
        rows_of(plane)[:] = source
    assert (convert(image, FrameSpec((224, 224), fit="crop")) == convert(middle, SPEC)).all()


def test_convert_crop_of_the_same_shape_is_all_of_it() -> None:
    image = textured(640, 360)
    assert (convert(image, FrameSpec((90, 160), fit="crop")) == convert(image, FrameSpec((90, 160)))).all()


def test_convert_letterbox_keeps_the_shape_between_black_bars() -> None:
    image = textured(640, 360)
    rgb = convert(image, FrameSpec((224, 224), fit="letterbox"))
    assert (rgb[:49] == 0).all()
    assert (rgb[175:] == 0).all()
    assert (rgb[49:175] == convert(image, FrameSpec((126, 224)))).all()


def test_convert_without_rows_says_so() -> None:
    with pytest.raises(ValueError, match="more than 16 rows, got 64x16"):
        convert(solid((1, 2, 3), 64, 16), SPEC, strip_px=16)


# --- many threads, many sizes ---------------------------------------------------------------------------------------


def test_convert_from_several_threads_equals_one_thread() -> None:
    jobs = [(textured(640, 360, seed=n), FrameSpec((96, 96), fit=("squash", "crop")[n % 2])) for n in range(12)]
    alone = [convert(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = pool.map(lambda job: convert(*job), jobs)
            assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_convert_of_ever_new_sizes_keeps_no_more_than_it_may() -> None:
    for width in range(64, 64 + 4 * convert_module._MAX_KEPT, 2):
        convert(solid((100, 128, 128), width, 48), FrameSpec((16, 16), fit="crop"))
    assert all(len(known) <= convert_module._MAX_KEPT for known in convert_module._contexts.__dict__.values())


# --- real clips -----------------------------------------------------------------------------------------------------


@needs_clips
@pytest.mark.parametrize(
    ("clip", "matrix"),
    [
        ("fix_highway_720p.mp4", "bt709"),
        ("fix_person_table.mp4", "bt601"),
        ("mov_dashcam_540p.mp4", "bt601"),
        ("fix_idle_1080p60.mp4", "bt709"),
        ("mov_flower_720p.264", "bt709"),
    ],
)
def test_convert_real_clip_is_within_four_levels_of_the_reference(clip: str, matrix: Literal["bt601", "bt709"]) -> None:
    with av.open(str(CLIPS / clip)) as container:
        image = next(container.decode(video=0))
    error = np.abs(convert(image, SPEC) - reference(image, (224, 224), matrix, left=True))
    assert error.max() <= 4.0
    assert error.mean() <= 0.6
