"""What the tests of the scene share: its bytes as pictures, its log, and whether a process lives."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av


def decoded(data: bytes) -> list[av.VideoFrame]:
    """Every picture in the bytes that a scene wrote."""
    with av.open(io.BytesIO(data), format="nut") as container:
        return list(container.decode(video=0))


def log_lines(path: Path) -> list[dict[str, Any]]:
    """The scene's own list of the frames that it sent."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], within_s: float = 15.0) -> bool:
    """Whether the condition comes true in time."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True
