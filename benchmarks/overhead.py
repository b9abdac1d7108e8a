"""What the pipeline costs besides decoding and encoding: CPU milliseconds per captured frame, by process and by thread.

    python benchmarks/overhead.py [CLIP] [--streams 1] [--seconds 20] [--no-gate] [--decode-gate] [--json]

`camvec run` at its defaults reads CLIP (or the built-in street, 1280x720) over RTSP. Total: CPU of all threads of
supervisor, capture, encoder and publisher. Taken off: decoding, as a process beside it costs that demuxes and decodes the
same stream and nothing else; and encoding, as the encoder's thread was charged for it while it ran the network, for frames and
for the audits of one in a hundred (named apart). What is left
is the pipeline: conversion to the model's picture, gate, transport, records, MQTT, and the interpreter around it.

Beside that, to be read and not taken off: `stages_ms`, what the workers charge to single stages of it (`source`: demuxing,
decoding and our code around it in place, so also what decoding loses to the caches beside a network); `idle`: the same
processes while each camera sends a frame in two seconds, per second and as a share of the frames of the measurement; and the
latencies. The time code at the bottom of the coded pictures is not read: cameras have none.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compare import threads
from compare.clip import CodedClip, code_clip, code_scene
from compare.contenders import Pids, daemon
from compare.rig import broker, feeding, machine
from compare.tally import read_pushes
from rich.console import Console
from rich.progress import Progress

from streaming.client import FeatureSubscriber

WARM_S = 8.0
IDLE_S = 8.0
SETTLE_S = 2.0
START_LIMIT_S = 60.0
CLIP_S = 12.0
STAGES = {"source": "capture", "convert": "capture", "gate": "encode"}
"""Stages that a worker times, and which."""


async def decode_only_ms(url: str, seconds: float) -> float:
    """CPU milliseconds per frame of a process that only decodes."""
    script = Path(__file__).parent / "compare" / "decode_only.py"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), url, str(seconds)), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    return float(said)


async def measure(options: argparse.Namespace, clip: CodedClip, folder: Path, progress: Progress) -> dict[str, Any]:
    cameras = [f"cam{number}" for number in range(options.streams)]
    task = progress.add_task("starting", total=3)
    async with contextlib.AsyncExitStack() as stack:
        broker_name, port, _ = await stack.enter_async_context(broker(folder))
        feed = await stack.enter_async_context(feeding(clip, ["camvec", "decode"], cameras, folder / "pushes.txt"))
        feed.connect()
        subscriber = await stack.enter_async_context(FeatureSubscriber(f"mqtt://127.0.0.1:{port}"))
        sections = {"encoder": {"gate": options.gate}, "defaults": {"decode_gate": options.decode_gate}}
        urls = feed.urls("camvec", cameras)
        pids = await stack.enter_async_context(daemon(folder, urls, port, strip=False, **sections))
        features = subscriber.features()
        await asyncio.wait_for(anext(features), START_LIMIT_S)
        await asyncio.sleep(WARM_S)
        progress.update(task, advance=1, description="measuring")
        decoding = asyncio.create_task(decode_only_ms(feed.urls("decode", cameras)[cameras[0]], options.seconds))
        spent = await charged(pids, subscriber, options.seconds)
        decode_ms = await decoding
        progress.update(task, advance=1, description="idle")
        feed.play("nobody")
        await asyncio.sleep(SETTLE_S)
        idle = await used(pids, IDLE_S)
    pushes = read_pushes(folder / "pushes.txt")
    arrived = sum(
        sum(spent["from_ns"] <= at_ns < spent["to_ns"] for at_ns, _ in pushed)
        for (who, _), pushed in pushes.items()
        if who == "camvec"
    )
    processes = by_process(spent["used"], spent["names"], arrived)
    encode_ms = spent["pass_ms"] * spent["vectors"] / arrived
    audit_ms = spent["audit_ms"] * spent["vectors"] / arrived
    total_ms = sum(part["ms"] for parts in processes.values() for part in parts.values())
    return {
        "source": f"{clip.size[0]}x{clip.size[1]}",
        "fps": float(clip.fps),
        "streams": options.streams,
        "gate": options.gate,
        "decode_gate": options.decode_gate,
        "arrived": arrived,
        "encoded_share": round(spent["vectors"] / arrived, 3),
        "cpu_ms_per_frame": {name: round(sum(part["ms"] for part in p.values()), 3) for name, p in processes.items()},
        "threads": processes,
        "stages_ms": spent["stages_ms"],
        "total_ms": round(total_ms, 3),
        "decode_ms": round(decode_ms, 3),
        "encode_ms": round(encode_ms, 3),
        "audit_ms": round(audit_ms, 3),
        "encode_ms_per_pass": round(spent["pass_ms"], 2),
        "overhead_ms": round(total_ms - decode_ms - encode_ms - audit_ms, 3),
        "idle": idle_figures(idle, spent["names"], arrived / options.seconds),
        "latency_ms": spent["latency_ms"],
        "broker": broker_name,
        "python": sys.version.split()[0],
        **machine(),
    }


async def charged(pids: Pids, subscriber: FeatureSubscriber, seconds: float) -> dict[str, Any]:
    """What the threads used, vectors received, and the mean CPU of what the workers time themselves."""
    first = await report(subscriber)
    vectors, from_ns = subscriber.statistics().vectors, time.monotonic_ns()
    usage = await used(pids, seconds)
    vectors, to_ns = subscriber.statistics().vectors - vectors, time.monotonic_ns()
    last = await report(subscriber)
    return {
        "from_ns": from_ns,
        "to_ns": to_ns,
        "used": usage,
        "names": {worker["pid"]: name for name, worker in last["workers"].items()},
        "vectors": vectors,
        "pass_ms": mean_ms(first, last, "encode", "encode_cpu_us", "encoded"),
        "audit_ms": mean_ms(first, last, "encode", "audit_cpu_us", "encoded"),
        "stages_ms": {stage: mean_ms(first, last, who, f"{stage}_cpu_us", stage) for stage, who in STAGES.items()},
        "latency_ms": last["percentiles_ms"]["publisher"],
    }


async def used(pids: Pids, seconds: float) -> dict[int, dict[str, threads.Usage]]:
    before = threads.table(pids())
    await asyncio.sleep(seconds)
    return threads.spent(before, threads.table(pids()))


def by_process(
    used: dict[int, dict[str, threads.Usage]], names: dict[int, str], frames: float
) -> dict[str, dict[str, dict[str, float]]]:
    """Process -> part -> CPU milliseconds, runs and involuntary switches, a frame."""
    return {
        names.get(pid, "supervisor"): {
            part: {
                "ms": round(usage.cpu_ns / 1e6 / frames, 3),
                "runs": round(usage.runs / frames, 2),
                "put_aside": round(usage.put_aside / frames, 2),
            }
            for part, usage in parts.items()
            if usage.cpu_ns
        }
        for pid, parts in used.items()
    }


def idle_figures(used: dict[int, dict[str, threads.Usage]], names: dict[int, str], fps: float) -> dict[str, Any]:
    """By process per second, and what that would be of a frame at the rate of the measurement."""
    seconds = by_process(used, names, IDLE_S)
    totals = {
        name: {what: round(sum(part[what] for part in parts.values()), 2) for what in ("ms", "runs")}
        for name, parts in seconds.items()
    }
    return {"a_second": totals, "ms_a_frame": round(sum(total["ms"] for total in totals.values()) / fps, 3)}


async def report(subscriber: FeatureSubscriber) -> dict[str, Any]:
    """The next `stats` that hold an encoder's and a capture worker's."""
    async for figures in subscriber.stats():
        if {name.split("-")[0] for name in figures.body["workers"]} >= {"encode", "capture"}:
            return figures.body
    raise RuntimeError("the statistics ended")


def mean_ms(first: dict[str, Any], last: dict[str, Any], who: str, cpu: str, times: str) -> float:
    """Milliseconds of CPU each time, between two reports."""
    spent_us, number = (total(last, who, counter) - total(first, who, counter) for counter in (cpu, times))
    return round(spent_us / max(1, number) / 1e3, 3)


def total(stats: dict[str, Any], who: str, counter: str) -> int:
    return sum(w["counters"].get(counter, 0) for name, w in stats["workers"].items() if name.startswith(who))


def print_table(result: dict[str, Any]) -> None:
    print(
        "{source} {fps:g} fps, {streams} camera(s), {arrived} frames, {encoded_share:.0%} encoded at "
        "{encode_ms_per_pass} ms CPU".format(**result)
    )
    print("milliseconds a frame (runs a frame) by process and thread")
    for name, parts in result["threads"].items():
        said = ", ".join(f"{part} {figures['ms']:.3f} ({figures['runs']:.1f})" for part, figures in parts.items())
        print(f"  {name:12} {said}")
    print("of these: " + ", ".join(f"{stage} {spent_ms:.3f}" for stage, spent_ms in result["stages_ms"].items()))
    print(f"idle: {result['idle']['ms_a_frame']} ms a frame; total latency {result['latency_ms'].get('total')} ms")
    print(
        "total {total_ms} - decode {decode_ms} - encode {encode_ms} - audits {audit_ms} = {overhead_ms} ms a frame".format(
            **result
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path, nargs="?", help="default: the built-in street")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--gate", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--decode-gate", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="camvec-overhead-") as name,
        Progress(console=Console(stderr=True)) as progress,
    ):
        path = Path(name) / "clip.h264"
        clip = code_clip(options.clip, path, seconds=60) if options.clip else code_scene(path, seconds=CLIP_S)
        result = asyncio.run(measure(options, clip, Path(name), progress))
    print_table(result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
