"""The command as a person types it: exit codes, one sentence, no traceback, no secret."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.gear.mosquitto import free_port


def camvec(*arguments: str, cwd: Path | None = None, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workers.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nonsense"], 2, "No such command"),
        (["demo", "--seconds", "soon"], 2, "Invalid value"),
        (["run", "no-such-file.yaml"], 2, "no-such-file.yaml: expected a YAML file or a camera"),
        (["run", "ftp://host/x"], 2, "rtsp://"),
        (["encode", "no-such.mp4"], 2, "there is no such file: no-such.mp4"),
        (["encode", "x.mp4", "-o", "out.csv"], 2, "expected an output ending in"),
        (["probe", "lavfi:nonsense=1", "--seconds", "1"], 1, "camvec: "),
        (["watch", "--broker", "http://x"], 2, "expected a broker URL"),
    ],
)
def test_mistake_gets_one_sentence_and_an_exit_code(arguments: list[str], code: int, sentence: str) -> None:
    done = camvec(*arguments)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_secret_of_a_camera_that_refuses_is_not_printed() -> None:
    done = camvec("probe", f"rtsp://user:hunter2@127.0.0.1:{free_port()}/x", "--seconds", "1", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["reason"] == "refused"
    assert "hunter2" not in done.stdout + done.stderr


def test_watch_of_a_broker_that_is_down_says_so() -> None:
    done = camvec("watch", "--broker", f"mqtt://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "start the broker or check host and port" in done.stderr
    assert "Traceback" not in done.stderr


def test_encode_writes_unit_vectors_and_where_they_come_from(tmp_path: Path) -> None:
    picture = tmp_path / "picture.ppm"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    picture.write_bytes(b"P6 64 48 255\n" + pixels.tobytes())
    done = camvec("encode", str(picture), "-o", "v.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    vectors = np.load(tmp_path / "v.npy")
    row = json.loads((tmp_path / "v.jsonl").read_text())
    assert vectors.shape == (1, 1280)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1.0, abs=1e-5)
    assert row["path"] == str(picture)
    assert row["norm"] > 0


def test_demo_ends_with_one_json_object_that_adds_up() -> None:
    done = camvec("demo", "--seconds", "4", "--json", timeout_s=100)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    named = "cameras frames_in encoded held published received dropped accounted latency_ms glass_ms budget_ms"
    assert set(named.split()) <= set(summary)
    assert {"budget_hit_ratio", "cold", "model", "trained", "cpu_percent", "rss_mb"} <= set(summary)
    assert summary["accounted"] is True, summary
    assert summary["frames_in"] == summary["published"] + summary["held"] + sum(summary["dropped"].values())
    assert summary["received"] == summary["published"] > 0
    assert summary["trained"] is True
    assert summary["glass_ms"]["p50"] > summary["latency_ms"]["p50"] > 0


def test_bench_pipeline_takes_a_file_as_a_camera(tmp_path: Path) -> None:
    import av

    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(20):
            pixels = np.full((240, 320, 3), 10 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    done = camvec("bench", "pipeline", "--source", str(clip), "--cameras", "2", "--seconds", "3", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["accounted"] is True, summary
    assert summary["cameras"] == 2
    assert set(summary["stages_ms"]) >= {"decode", "convert", "encode", "publish"}


def test_watch_imports_neither_torch_nor_ffmpeg_nor_opencv() -> None:
    code = "import sys, workers.cli, workers.watch; print([m for m in ('torch', 'av', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
