import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from streaming.errors import SourceError
from streaming.frames import FrameSpec
from streaming.sources import SourceConfig, open_source
from streaming.sources.base import Picture
from streaming.sources.convert import convert
from streaming.sources.scene import Scene, SceneParams, SceneSource
from tests.streaming.sources.scene_gear import decoded, eventually, is_running, log_lines

COMMAND = [sys.executable, "-m", "streaming.sources.scene_process"]


def read_all(url: str) -> tuple[list[Picture], SceneSource]:
    """Every picture of a scene that is read as a file."""
    source = SceneSource(SourceConfig(url))
    try:
        info = source.open()
        assert (info.live, info.lossless) == (False, True)
        return list(source.pictures()), source
    finally:
        source.close()


# --- as a file ------------------------------------------------------------------------------------------------------


def test_scene_file_delivers_every_frame_in_order(tmp_path: Path) -> None:
    log = tmp_path / "frames.jsonl"
    url = f"scene:street?frames=120&realtime=0&fps=25&cut_every_s=2&log={log}"
    pictures, source = read_all(url)
    lines = log_lines(log)
    assert [line["index"] for line in lines] == list(range(120))
    assert [each.pts_us for each in pictures] == [line["pts_us"] for line in lines] == [n * 40_000 for n in range(120)]
    assert [each.captured.at_us for each in pictures] == [line["captured_at_us"] for line in lines]
    scene = Scene(SceneParams.parse(url))
    assert [line["cut"] for line in lines] == [scene.truth(n).cut for n in range(120)]
    assert [line["moved"] for line in lines] == [scene.truth(n).moved for n in range(120)]
    assert source.damaged_strips == source.repaired_pts == 0
    assert [each.reset for each in pictures] == [True] + 119 * [False]
    assert [n for n, each in enumerate(pictures) if each.keyframe][:2] == [0, 50]


@pytest.mark.parametrize("size", ["640x360", "1280x720"])
def test_scene_picture_after_the_codec_is_the_rendered_one(size: str) -> None:
    url = f"scene:street?frames=3&realtime=0&crf=10&noise=0&size={size}"
    pictures, _ = read_all(url)
    scene = Scene(SceneParams.parse(url))
    for index, picture in enumerate(pictures):
        assert picture.image is not None
        rgb = convert(picture.image, FrameSpec(scene.params.size_hw), strip_px=16).astype(int)
        assert np.abs(rgb - scene.render(index)).mean() < 4.0
        # The matrix of the tag is the one that was used: no tint.
        assert np.abs((rgb - scene.render(index)).mean(axis=(0, 1))).max() < 0.75


def test_scene_info_says_what_comes() -> None:
    source = open_source(SourceConfig("scene:street?size=320x180&fps=12.5"))
    try:
        info = source.open()
        picture = next(iter(source.pictures()))
    finally:
        source.close()
    assert (info.codec, info.width, info.height, info.strip_px, info.fps) == ("h264", 320, 196, 16, 12.5)
    assert (info.live, info.lossless) == (True, False)
    assert picture.image is not None
    assert (picture.image.width, picture.image.height) == (320, 196)


# --- as a camera ----------------------------------------------------------------------------------------------------


def stamped(pictures: Iterator[Picture], ages_us: list[int]) -> Iterator[Picture]:
    for each in pictures:
        ages_us.append(time.time_ns() // 1000 - each.captured.at_us)
        yield each


def test_scene_live_keeps_its_pace_and_its_clock(tmp_path: Path) -> None:
    log = tmp_path / "frames.jsonl"
    source = SceneSource(SourceConfig(f"scene:busy?frames=20&fps=10&log={log}"))
    ages_us: list[int] = []
    pictures: list[Picture] = []
    try:
        assert source.open().live
        arriving = source.pictures()
        with pytest.raises(SourceError, match="the scene has ended") as ended:
            pictures.extend(stamped(arriving, ages_us))
    finally:
        source.close()
    assert ended.value.reason == "ended"
    lines = log_lines(log)
    assert [each.pts_us for each in pictures] == [line["pts_us"] for line in lines]
    indexes = [line["index"] for line in lines]
    assert indexes == sorted(set(indexes))
    assert {each.captured.clock for each in pictures} == {"scene"}
    assert all(0 <= age_us < 2_000_000 for age_us in ages_us)
    # Captured at the pace of the stream, not as fast as it can.
    span_us = pictures[-1].captured.at_us - pictures[0].captured.at_us
    assert abs(span_us - (pictures[-1].pts_us - pictures[0].pts_us)) < 500_000


def test_scene_packet_is_not_kept_back_for_the_next() -> None:
    # At one frame in two seconds a parser that waits for the next frame would be seen.
    source = SceneSource(SourceConfig("scene:quiet?fps=0.5&frames=2"))
    try:
        source.open()
        picture = next(iter(source.pictures()))
        age_us = time.time_ns() // 1000 - picture.captured.at_us
    finally:
        source.close()
    assert age_us < 1_500_000


def test_scene_that_nobody_reads_drops_instead_of_waiting(tmp_path: Path) -> None:
    log = tmp_path / "frames.jsonl"
    url = f"scene:busy?frames=150&fps=60&noise=20&crf=5&log={log}"
    with subprocess.Popen([*COMMAND, url], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert eventually(lambda: log.exists() and bool(log.read_text()))
        time.sleep(1.0)
        sent_meanwhile = len(log_lines(log))
        pictures = decoded(child.stdout.read())
    indexes = [line["index"] for line in log_lines(log)]
    assert sent_meanwhile < 20  # what fits into a pipe
    assert max(np.diff(indexes)) > 20
    assert len(pictures) == len(indexes)
    assert child.returncode == 0


# --- ends -----------------------------------------------------------------------------------------------------------


def child_pid(source: SceneSource) -> int:
    assert source._process is not None
    return source._process.pid


def test_scene_close_ends_the_process_and_may_be_repeated() -> None:
    source = SceneSource(SourceConfig("scene:street"))
    source.open()
    pid = child_pid(source)
    source.close()
    assert not is_running(pid)
    source.close()


@pytest.mark.parametrize("stdin", ["pipe", "none"])
def test_scene_process_dies_with_its_parent(stdin: str) -> None:
    # Without the pipe it is the signal of the kernel alone.
    parent_code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({COMMAND!r} + ['scene:quiet?fps=0.1'],\n"
        f"    stdin={'subprocess.PIPE' if stdin == 'pipe' else 'subprocess.DEVNULL'}, stdout=subprocess.PIPE)\n"
        "child.stdout.read(4)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    assert eventually(lambda: not is_running(pid))


def test_scene_process_ends_when_its_standard_input_ends() -> None:
    with subprocess.Popen([*COMMAND, "scene:quiet?fps=0.1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.read(4)
        child.stdin.close()
        assert child.wait(15) == 0


def test_scene_process_ends_when_its_reader_has_gone() -> None:
    with subprocess.Popen([*COMMAND, "scene:quiet?fps=5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.wait(15) == 0
        assert child.stderr.read() == b""


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"), [("scene:street?fsp=3", "did you mean 'fps'"), ("scene:plaza", "unknown scene 'plaza'")]
)
def test_scene_source_with_a_wrong_url_is_not_found(url: str, words: str) -> None:
    source = SceneSource(SourceConfig(url))
    with pytest.raises(SourceError, match=words) as failed:
        source.open()
    assert failed.value.reason == "not_found"
    source.close()


def test_scene_process_with_a_wrong_url_says_one_sentence() -> None:
    done = subprocess.run([*COMMAND, "scene:street?fsp=3"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("scene:street: unknown parameter 'fsp'")
    assert len(done.stderr.splitlines()) == 1


def test_scene_source_repeats_the_last_words_of_its_process(tmp_path: Path) -> None:
    source = SceneSource(SourceConfig(f"scene:street?log={tmp_path}/missing/frames.jsonl"))
    with pytest.raises(SourceError, match=r"scene's process failed: .*No such file or directory") as failed:
        source.open()
    assert failed.value.reason == "internal"
    source.close()


def test_scene_source_whose_process_is_killed_says_so() -> None:
    source = SceneSource(SourceConfig("scene:street"))
    try:
        source.open()
        os.kill(child_pid(source), signal.SIGKILL)
        with pytest.raises(SourceError, match="process failed: exit code -9") as failed:
            list(source.pictures())
    finally:
        source.close()
    assert failed.value.reason == "internal"


def test_scene_source_whose_process_is_frozen_times_out() -> None:
    source = SceneSource(SourceConfig("scene:street?fps=30", read_timeout_s=0.5))
    try:
        source.open()
        os.kill(child_pid(source), signal.SIGSTOP)
        with pytest.raises(SourceError, match="sends nothing") as failed:
            list(source.pictures())
    finally:
        source.close()
    assert failed.value.reason == "timeout"


def test_scene_picture_with_a_damaged_strip_is_timed_by_its_arrival() -> None:
    source = SceneSource(SourceConfig("scene:street"))
    image = av.VideoFrame.from_ndarray(np.zeros((376 * 3 // 2, 640), np.uint8), "yuv420p")
    captured = source._captured(image, arrived_us=1_790_000_000_000_000)
    assert (captured.at_us, captured.clock) == (1_790_000_000_000_000, "arrival")
    assert source.damaged_strips == 1


def test_scene_file_whose_process_dies_is_not_taken_for_complete() -> None:
    source = SceneSource(SourceConfig("scene:street?frames=5000&realtime=0"))
    try:
        source.open()
        os.kill(child_pid(source), signal.SIGKILL)
        with pytest.raises(SourceError, match="process failed"):
            list(source.pictures())
    finally:
        source.close()
