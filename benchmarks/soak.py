"""Whether a process of the daemon grows: resident memory between the 10,000th and the 100,000th captured frame.

    python benchmarks/soak.py [--frames 100000] [--cameras 4] [--fps 100] [--fvu 0.0005] [--json]

`camvec run` at its defaults reads small, fast RTSP cameras (the built-in street, 320x176, looped); about 5 minutes with the
defaults, longer where the machine cannot send that fast. `--fvu`: the target of the gates, strict, so that many frames become
vectors and the publisher has work. Growth: the median of the samples of the last 5 % of the frames
less that of the 5 % from the 10,000th on (of shorter runs: from a tenth on). Exit code 1 when a process grew by 5 MB or more.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
from compare.clip import code_scene
from compare.contenders import daemon
from compare.rig import broker, feeding, machine
from rich.console import Console
from rich.progress import Progress

from streaming.client import FeatureSubscriber

SCENE = "scene:busy?size=320x176"
CLIP_S = 40.0
SAMPLE_S = 1.0
WARM_FRAMES = 10_000
LIMIT_MB = 5.0
START_LIMIT_S = 60.0
Samples = dict[str, list[tuple[int, float]]]
"""By process: (frames so far, MB)."""


class Counter:
    """Lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self.lines = path, 0, 0

    def update(self) -> int:
        """How many there are now."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        self._at, self.lines = self._at + len(data), self.lines + data.count(b"\n")
        return self.lines


async def soak(options: argparse.Namespace, folder: Path, progress: Progress) -> dict[str, Any]:
    cameras = [f"cam{number}" for number in range(options.cameras)]
    clip = replace(code_scene(folder / "clip.h264", url=SCENE, seconds=CLIP_S), fps=Fraction(options.fps))
    async with contextlib.AsyncExitStack() as stack:
        broker_name, port, _ = await stack.enter_async_context(broker(folder))
        log = folder / "pushes.txt"
        feed = await stack.enter_async_context(feeding(clip, ["camvec"], cameras, log))
        feed.connect()
        subscriber = await stack.enter_async_context(FeatureSubscriber(f"mqtt://127.0.0.1:{port}"))
        sections = {"encoder": {"fidelity": {"fvu": options.fvu}}}
        pids = await stack.enter_async_context(daemon(folder, feed.urls("camvec", cameras), port, **sections))
        features = subscriber.features()  # held open: without it nothing is counted
        await asyncio.wait_for(anext(features), START_LIMIT_S)
        names: dict[int, str] = {pids()[0]: "supervisor"}
        async for figures in subscriber.stats():
            names |= {worker["pid"]: name for name, worker in figures.body["workers"].items()}
            if set(pids()) <= set(names):
                break
        started_s = time.monotonic()
        samples = await watch(names, Counter(log), options.frames, progress)
        seen = subscriber.statistics()
    rows = {name: growth(found, options.frames) for name, found in samples.items()}
    return {
        "frames": options.frames,
        "cameras": options.cameras,
        "fvu": options.fvu,
        "seconds": round(time.monotonic() - started_s),
        "vectors": seen.vectors,
        "frames_told": seen.frames,
        "processes": rows,
        "growth_mb": max(row["growth_mb"] for row in rows.values()),
        "broker": broker_name,
        **machine(),
    }


async def watch(names: dict[int, str], pushed: Counter, frames: int, progress: Progress) -> Samples:
    """Sample until `frames` have been sent; raises psutil.NoSuchProcess when a process has gone."""
    task = progress.add_task("frames", total=frames)
    samples: Samples = defaultdict(list)
    while (count := pushed.update()) < frames:
        progress.update(task, completed=count)
        for pid, name in names.items():
            samples[name].append((count, psutil.Process(pid).memory_info().rss / 1e6))
        await asyncio.sleep(SAMPLE_S)
    progress.update(task, completed=frames)
    return samples


def growth(samples: list[tuple[int, float]], frames: int) -> dict[str, Any]:
    """What one process had at the beginning, at the end, and every tenth of the way."""
    warm, width = min(WARM_FRAMES, frames // 10), frames // 20

    def around(first: int) -> float:
        nearest = min(samples, key=lambda sample: abs(sample[0] - first))[1]
        return statistics.median([mb for count, mb in samples if first <= count < first + width] or [nearest])

    start, end = around(warm), around(frames - width)
    course = [round(around(first), 1) for first in range(warm, frames - width, max(width, frames // 10))]
    return {
        "start_mb": round(start, 1),
        "end_mb": round(end, 1),
        "growth_mb": round(end - start, 2),
        "course_mb": course,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--fps", type=int, default=100)
    parser.add_argument("--fvu", type=float, default=0.0005)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="camvec-soak-") as folder,
        Progress(console=Console(stderr=True)) as progress,
    ):
        result = asyncio.run(soak(options, Path(folder), progress))
    for name, row in result["processes"].items():
        print(
            f"{name:12} {row['start_mb']:7.1f} -> {row['end_mb']:7.1f} MB  {row['growth_mb']:+.2f}  {row['course_mb']}"
        )
    print("{frames} frames of {cameras} cameras in {seconds} s, {vectors} vectors".format(**result))
    if options.json:
        print(json.dumps(result))
    sys.exit(0 if result["growth_mb"] < LIMIT_MB else 1)


if __name__ == "__main__":
    main()
