"""memory_efficient_encoding keeps its bound, measured by the kernel in a process of its own."""

import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch

from encoders_core.errors import OptionError
from encoders_core.memory_bound import MemoryBoundError, memory_efficient_encoding
from encoders_core.multimodal_combiner import MultimodalCombiner
from encoders_core.text_encoder import TextEncoder
from encoders_core.video_encoder import VideoEncoder
from encoders_core.vision_encoder import VisionEncoder

SMALL: dict[str, Any] = {"patch_size": 8, "num_layers": 1, "hidden_dim": 16, "num_heads": 2, "output_dim": 8, "seed": 1}

_PROGRAM = """
    import sys
    import numpy as np, psutil, torch
    from encoders_core import VisionEncoder, memory_efficient_encoding
    torch.set_num_threads(1)
    encoder = VisionEncoder(image_size=224, patch_size=16, num_layers=1, hidden_dim=64, num_heads=2, output_dim=16)
    one = np.zeros((224, 224, 3), np.uint8)
    images = [one] * 96
    encoder.encode(images[:1])
    start = psutil.Process().memory_info().rss
    bound = (start + 90e6) / 1e9
    if sys.argv[1] == "bounded":
        result = memory_efficient_encoding(encoder, images, max_memory_gb=bound)
    else:
        result = encoder.encode(images, batch_size=96)
    assert result.features.shape == (96, 16)
    # Not ru_maxrss: through exec that keeps the peak of the process that started this one.
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 / 1e9, bound)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("how", ["bounded", "free"])
def test_peak_memory_stays_under_the_bound(how: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(_PROGRAM), how]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=50).stdout
    peak, bound = map(float, out.split())
    assert (peak <= bound) is (how == "bounded"), f"peak {peak:.3f} GB, bound {bound:.3f} GB"


def test_results_are_those_of_encode() -> None:
    vision = VisionEncoder(image_size=16, **SMALL)
    images = torch.randn(41, 3, 16, 16)
    for inputs in (images, list(images), images[0], images[:0]):
        got = memory_efficient_encoding(vision, inputs)
        torch.testing.assert_close(got.features, vision.encode(inputs).features)
    video = VideoEncoder(frame_size=16, max_frames=4, temporal_layers=1, **SMALL)
    clips = [torch.randn(length, 3, 16, 16) for length in (2, 4, 3)]
    torch.testing.assert_close(memory_efficient_encoding(video, clips).features, video.encode(clips).features)
    combiner = MultimodalCombiner({"a": 8, "b": 4}, output_dim=8, seed=1)
    features = {"a": torch.randn(5, 8), "b": torch.randn(5, 4)}
    masks = {"b": torch.tensor([True, False, True, True, False])}
    got = memory_efficient_encoding(combiner, features, masks=masks)
    torch.testing.assert_close(got.features, combiner.encode(features, masks=masks).features)
    text = TextEncoder(vocab_size=50, max_length=8, num_layers=1, hidden_dim=16, num_heads=2, output_dim=8, seed=1)
    ids = torch.randint(1, 49, (9, 8))
    torch.testing.assert_close(memory_efficient_encoding(text, ids).features, text.encode(ids).features)


def test_a_bound_that_cannot_be_kept_is_an_error() -> None:
    vision = VisionEncoder(image_size=16, **SMALL)
    with pytest.raises(MemoryBoundError, match=r"this process .* more than max_memory_gb=0\.010"):
        memory_efficient_encoding(vision, torch.randn(2, 3, 16, 16), max_memory_gb=0.01)
    with pytest.raises(OptionError, match="positive"):
        memory_efficient_encoding(vision, torch.randn(2, 3, 16, 16), max_memory_gb=0)
