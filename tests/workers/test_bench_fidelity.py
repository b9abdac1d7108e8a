"""`camvec bench fidelity` as a person types it, and the frames that it measures on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from safetensors.torch import save_file

from streaming.errors import ConfigError
from streaming.frames import FrameSpec
from tests.encoders_core.fidelity.fidelity_gear import small_vit
from workers.bench_fidelity import decode_clip, run_fidelity

SPEC = FrameSpec(size_hw=(64, 64))
POLICIES = [
    "plain",
    "hold2",
    "hold3",
    "hold5",
    "frame_gate",
    "stale_kv",
    "tokenwise",
    "stgt",
    "random",
    "lowres",
    "camvec",
]


def video(path: Path, count: int = 30, fps: int = 30) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(count):
            pixels = np.full((64, 96, 3), 90, np.uint8)
            pixels[20:40, 2 * index : 2 * index + 20] = (250, 30, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def model(folder: Path) -> Path:
    """The small ViT as a directory, as it would be downloaded."""
    folder.mkdir()
    network = small_vit().network
    config = network.config
    words = {"architecture": "vit", "img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}
    assert (config.embed_dim, config.depth, config.num_heads) == (32, 3, 2)
    cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "area", "input_size": [3, 64, 64]}
    (folder / "config.json").write_text(json.dumps({**words, "pretrained_cfg": cfg, "trained": False}))
    save_file(dict(network.state_dict()), folder / "model.safetensors")
    return folder


def bench(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workers.cli", "bench", "fidelity", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def test_frames_are_thinned_out_to_the_wanted_rate(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.mp4")

    every, tenth = decode_clip(path, SPEC), decode_clip(path, SPEC, fps=10)

    assert (len(every.frames), len(tenth.frames)) == (30, 10)
    assert np.diff(tenth.at_ns) == pytest.approx(1e8, rel=0.01)
    np.testing.assert_array_equal(tenth.frames[1], every.frames[3])


def test_a_limit_ends_the_clip_early(tmp_path: Path) -> None:
    assert len(decode_clip(video(tmp_path / "clip.mp4"), SPEC, limit=7).frames) == 7


def test_a_clip_of_two_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected at least 3 frames, got 2"):
        decode_clip(video(tmp_path / "clip.mp4", 2), SPEC)


def measure(clips: list[Path], **options: Any) -> None:
    """The command's own function, with what the command line fills in."""
    silent: dict[str, Any] = {
        "policies": [],
        "fps": None,
        "frames": None,
        "sweep": False,
        "png": None,
        "variance": None,
    }
    run_fidelity(clips, **{**silent, "scenarios": [], "replays": [], "as_json": False, **options})


def test_the_last_line_is_one_object_with_every_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, folder = video(tmp_path / "clip.mp4"), model(tmp_path / "small")

    measure([clip], model=str(folder), replays=["vit-ti-16"], frames=5, as_json=True)

    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found["policies"]) == POLICIES
    assert (found["model"], found["trained"]) == ("small, random weights", False)
    assert [clip["name"] for clip in found["clips"]] == ["clip"]
    assert found["replay"]["vit-ti-16"]["plain_ms"] > 0
    assert found["protocol"]["threads"] == 1


def test_a_scenario_needs_no_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure([], scenarios=["cut"], model=str(model(tmp_path / "small")), policies=["hold2"], frames=30)

    assert "cut on texture: 30 frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "expected video files, or --scenario"),
        (["no-such.mp4"], 2, "there is no such file: no-such.mp4"),
        (["--scenario", "fog"], 2, "unknown scenario fog; there are: drift"),
        (["--scenario", "cut", "--policies", "hold9", "--model", "vit-ti-16"], 1, "unknown policy hold9"),
        (["--scenario", "cut", "--model", "vit-x"], 1, "unknown frame encoder 'vit-x'"),
    ],
)
def test_mistake_gets_one_sentence_and_an_exit_code(arguments: list[str], code: int, sentence: str) -> None:
    done = bench(*arguments)

    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
