"""camvec against the loops that one would otherwise write, over the same RTSP stream, model and broker, in one run.

    python benchmarks/compare_naive.py CLIP [--seconds 60] [--streams 1] [--rounds 2] [--contenders ...] [--backend openvino] [--json]

The clip is coded once as a camera would send it (H.264, no B-frames, its own size and rate, a strip of 16 rows below with
the frame number) and served by a GStreamer RTSP server, which writes down when it pushed each frame. Each contender runs all
the time, in processes of its own, with cameras of its own that play the same; they take turns, `--rounds` each, and outside
of its turn a contender's cameras send one frame in two seconds. The first 1.5 s of a turn do not count. Torch has one thread
everywhere, FFmpeg and OpenCV the threads that each contender gives them.

    naive        VideoCapture, a full pass of every frame in eager torch, JSON to paho
    better       a thread that keeps the newest frame, and the same
    better_fast  the same with camvec's network: what is left to the gate and the pipeline
    camvec       `camvec run`, at its defaults

age: from the push at the server to the subscriber. cpu_ms_per_frame: CPU of all processes of the contender, decoding
included, over the frames that *arrived*. lost: frames that never became a vector and were not held: of `naive` those that
still wait when the turn ends. fvu: over all frames that arrived, the error of the newest vector of that frame or an earlier
one, sum |z' - z|^2 / max(sum |z - mean|^2, n * 0.01 * 172.3). fvu_of_received: the same of the vectors as they came, against
camvec's own full pass of their frames: another resizing, float16.
"""

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from compare.clip import code_clip, truth
from compare.contenders import LOOPS, Pids, daemon, loops
from compare.rig import Feed, broker, feeding, machine
from compare.tally import Figures, Recorder, Slice, Use, read_pushes, vectors_of
from rich.console import Console
from rich.progress import Progress

CONTENDERS = (*LOOPS, "camvec")
WARM_S = 1.5
TAIL_S = 0.3
MARGIN_S = 10.0
"""Of the clip, beyond what the turns play."""
START_LIMIT_S = 60.0


async def take_turn(name: str, pids: Pids, feed: Feed, seconds: float, broker_pid: int | None) -> Slice:
    """Play, warm up, measure."""
    began_ns = time.monotonic_ns()
    feed.play(name)
    await asyncio.sleep(WARM_S)
    served = [broker_pid] if broker_pid else []
    before, broker_before, from_ns = Use.of(pids()), Use.of(served), time.monotonic_ns()
    await asyncio.sleep(seconds)
    after, broker_after, to_ns = Use.of(pids()), Use.of(served), time.monotonic_ns()
    await asyncio.sleep(TAIL_S)
    return Slice(
        contender=name,
        began_ns=began_ns,
        from_ns=from_ns,
        to_ns=to_ns,
        end_ns=time.monotonic_ns(),
        cpu_s=after.cpu_s - before.cpu_s,
        broker_cpu_s=broker_after.cpu_s - broker_before.cpu_s,
        rss_mb=after.rss_mb,
        pss_mb=after.pss_mb,
    )


async def until_heard(recorder: Recorder, contenders: list[str], cameras: list[str]) -> None:
    """Wait for a vector of every camera of every contender."""
    wanted = {(name, camera) for name in contenders for camera in cameras}
    ends = time.monotonic() + START_LIMIT_S
    while missing := wanted - recorder.heard():
        if time.monotonic() > ends:
            raise TimeoutError(
                f"no vector within {START_LIMIT_S:.0f} s of {sorted(missing)}; COMPARE_DEBUG=1 says more"
            )
        await asyncio.sleep(0.1)


async def compare(options: argparse.Namespace, progress: Progress, folder: Path) -> dict[str, Any]:
    cameras = [f"cam{number}" for number in range(options.streams)]
    names = options.contenders
    turns = [names[(place + turn) % len(names)] for turn in range(options.rounds) for place in range(len(names))]
    each_s = options.seconds / len(turns)
    if each_s < 2 * WARM_S:
        raise ValueError(f"expected at least {2 * WARM_S * len(turns):.0f} seconds for {len(turns)} turns")
    task = progress.add_task("coding the clip", total=len(turns) + 3)
    clip = code_clip(options.clip, folder / "clip.h264", seconds=options.rounds * each_s + MARGIN_S)
    progress.update(task, advance=1, description="encoding every frame for the truth")
    vectors_true = np.stack(list(truth(clip)))
    progress.update(task, advance=1, description="starting the contenders")
    log, slices = folder / "pushes.txt", []
    async with contextlib.AsyncExitStack() as stack:
        broker_name, port, broker_pid = await stack.enter_async_context(broker(folder))
        feed = await stack.enter_async_context(feeding(clip, names, cameras, log))
        recorder = stack.enter_context(Recorder(port))
        pids: dict[str, Pids] = {}
        for name in names:
            urls = feed.urls(name, cameras)
            backend = options.backend
            if name == "camvec":
                made = daemon(folder, urls, port, model={"backend": backend})
            else:
                made = loops(name, urls, port, backend)
            pids[name] = await stack.enter_async_context(made)
        feed.connect()
        await until_heard(recorder, names, cameras)
        feed.restart()
        progress.update(task, advance=1)
        for name in turns:
            progress.update(task, description=name)
            slices.append(await take_turn(name, pids[name], feed, each_s - WARM_S - TAIL_S, broker_pid))
            progress.update(task, advance=1)
    pushes, vectors = read_pushes(log), vectors_of(recorder.messages)
    found = {}
    for name in names:
        figures, mine = Figures(), [one for one in slices if one.contender == name]
        for one in mine:
            figures.add(one, pushes, vectors, vectors_true)
        found[name] = figures.report(vectors_true, mine)
    return {
        "clip": options.clip.name,
        "size": f"{clip.size[0]}x{clip.size[1]}",
        "fps": round(float(clip.fps), 3),
        "streams": options.streams,
        "seconds_each": round((each_s - WARM_S - TAIL_S) * options.rounds, 1),
        "broker": broker_name,
        "backend": options.backend,
        **machine(),
        "contenders": found,
        "ratios": ratios(found),
    }


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times more than camvec each loop needs; above 1 camvec is better."""
    ours, made = found.get("camvec"), {}
    for name, theirs in found.items():
        if ours is None or name == "camvec":
            continue
        made[f"p99_age_{name}"] = round(theirs["age_ms"]["p99"] / ours["age_ms"]["p99"], 2)
        made[f"p50_age_{name}"] = round(theirs["age_ms"]["p50"] / ours["age_ms"]["p50"], 2)
        made[f"cpu_{name}"] = round(theirs["cpu_ms_per_frame"] / ours["cpu_ms_per_frame"], 2)
    return made


def print_table(result: dict[str, Any]) -> None:
    print("{clip} {size} {fps} fps, {streams} stream(s), {seconds_each} s each, {broker}".format(**result))
    print("             age p50 / p99 ms   CPU ms a frame  arrived encoded held lost   FVU     RSS MB  kB/s")
    for name, row in result["contenders"].items():
        rate = row["bytes"] / 1e3 / result["seconds_each"]
        print(
            f"{name:12} {row['age_ms']['p50']:8.1f} / {row['age_ms']['p99']:<8.1f} {row['cpu_ms_per_frame']:9.2f}"
            f"       {row['arrived']:6} {row['encoded']:7} {row['held']:5} {row['lost']:4}  {row['fvu']:.4f}"
            f"  {row['rss_mb']:6.0f}  {rate:6.1f}"
        )
    print("  ".join(f"{name} {value}x" for name, value in result["ratios"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="of all turns together")
    parser.add_argument("--streams", type=int, default=1, help="cameras, each a part of the clip of its own")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--backend", choices=("torch", "openvino"), default="torch", help="of camvec and better_fast")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="camvec-compare-") as folder,
        Progress(console=Console(stderr=True)) as progress,
    ):
        result = asyncio.run(compare(options, progress, Path(folder)))
    print_table(result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
