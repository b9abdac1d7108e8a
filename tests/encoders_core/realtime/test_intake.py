from typing import Any

import numpy as np
import pytest
import torch

from encoders_core.errors import InputError
from encoders_core.preprocessing import InputSpec
from encoders_core.realtime.intake import as_frame, as_frames, fit_frame

SPEC = InputSpec((8, 8))
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    "frames",
    [
        PIXELS,
        PIXELS.transpose(0, 3, 1, 2),
        torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255,
        PIXELS.astype(np.float64) / 255,
        list(PIXELS),
        [torch.from_numpy(frame).permute(2, 0, 1) for frame in PIXELS],
    ],
    ids=["THWC", "TCHW", "tensor THWC", "tensor TCHW", "float32 TCHW", "float64 THWC", "list", "list of CHW"],
)
def test_as_frames_takes_every_form_that_it_names(frames: Any) -> None:
    np.testing.assert_array_equal(np.stack(list(as_frames(frames, SPEC))), PIXELS)


def test_as_frames_single_frame_is_a_stream_of_one() -> None:
    assert [frame.shape for frame in as_frames(PIXELS[0].transpose(2, 0, 1), SPEC)] == [(8, 8, 3)]


def test_as_frames_list_may_mix_sizes() -> None:
    frames = [np.zeros((480, 640, 3), np.uint8), np.zeros((3, 20, 30), np.uint8)]
    assert [frame.shape for frame in as_frames(frames, SPEC)] == [(8, 8, 3)] * 2


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((4, 8, 8), np.uint8), r"with C = 3 \(RGB\); got a frame of shape \(4, 8, 8\)"),
        (np.zeros((8, 8), np.uint8), r"got shape \(8, 8\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"got shape \(0, 8, 8, 3\)"),
        (np.zeros((1, 8, 8, 3), np.int64), "got int64"),
        (np.full((1, 8, 8, 3), 1.5), "got values from 1.5 to 1.5: undo the normalisation first"),
        (np.full((1, 8, 8, 3), np.nan), "got values from nan to nan"),
        ("front.mp4", "expected a frame|expected uint8"),
        (7, "or a list of such frames; got int"),
    ],
)
def test_as_frames_says_what_it_expected(frames: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(as_frames(frames, SPEC))


def test_as_frame_refuses_a_clip() -> None:
    with pytest.raises(InputError, match=r"expected a frame of shape \(C, H, W\) or \(H, W, C\)"):
        as_frame(PIXELS, SPEC)


def test_fit_squash_keeps_the_edges_crop_loses_them_letterbox_adds_black() -> None:
    wide = np.full((90, 160, 3), 100, np.uint8)
    wide[:, :20] = wide[:, -20:] = 200
    squash, crop, box = (fit_frame(wide, InputSpec((64, 64), fit=fit)) for fit in ("squash", "crop", "letterbox"))  # type: ignore[arg-type]
    assert squash[32, 0, 0] == squash[32, -1, 0] == 200
    assert crop.max() == 100
    assert (box[0].max(), box[32, 0, 0], box[32, 32, 0]) == (0, 200, 100)
