"""What the pipeline costs besides decoding and encoding: CPU milliseconds per captured frame, by process.

    python benchmarks/overhead.py [CLIP] [--streams 1] [--seconds 20] [--no-gate] [--decode-gate] [--json]

`camvec run` at its defaults reads CLIP (or the built-in street, 1280x720) over RTSP. Total: CPU of supervisor, capture,
encoder and publisher. Taken off: decoding, as a process beside it costs that does nothing else with the same stream; and
encoding, as the encoder's thread was charged for it while it ran the network. What is left is the pipeline: conversion,
gate, transport, records, MQTT, and the interpreter around it.
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

import psutil
from compare.clip import CodedClip, code_clip, code_scene
from compare.contenders import Pids, daemon
from compare.rig import broker, feeding, machine
from compare.tally import read_pushes
from rich.console import Console
from rich.progress import Progress

from streaming.client import FeatureSubscriber

WARM_S = 8.0
START_LIMIT_S = 60.0
CLIP_S = 12.0


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
    task = progress.add_task("starting", total=2)
    async with contextlib.AsyncExitStack() as stack:
        broker_name, port, _ = await stack.enter_async_context(broker(folder))
        feed = await stack.enter_async_context(feeding(clip, ["camvec", "decode"], cameras, folder / "pushes.txt"))
        feed.connect()
        subscriber = await stack.enter_async_context(FeatureSubscriber(f"mqtt://127.0.0.1:{port}"))
        sections = {"mqtt": {"stats_interval_s": 1}, "encoder": {"gate": options.gate}}
        sections["defaults"] = {"decode_gate": options.decode_gate}
        pids = await stack.enter_async_context(daemon(folder, feed.urls("camvec", cameras), port, **sections))
        features = subscriber.features()
        await asyncio.wait_for(anext(features), START_LIMIT_S)
        await asyncio.sleep(WARM_S)
        progress.update(task, advance=1, description="measuring")
        decoding = asyncio.create_task(decode_only_ms(feed.urls("decode", cameras)[cameras[0]], options.seconds))
        spent = await charged(pids, subscriber, options.seconds)
        decode_ms = await decoding
    pushes = read_pushes(folder / "pushes.txt")
    arrived = sum(
        sum(spent["from_ns"] <= at_ns < spent["to_ns"] for at_ns, _ in pushed)
        for (who, _), pushed in pushes.items()
        if who == "camvec"
    )
    per_frame = {name: round(1e3 * seconds / arrived, 3) for name, seconds in spent["cpu_s"].items()}
    encode_ms = spent["pass_ms"] * spent["vectors"] / arrived
    total_ms = sum(per_frame.values())
    return {
        "source": f"{clip.size[0]}x{clip.size[1]}",
        "fps": float(clip.fps),
        "streams": options.streams,
        "gate": options.gate,
        "decode_gate": options.decode_gate,
        "arrived": arrived,
        "encoded_share": round(spent["vectors"] / arrived, 3),
        "cpu_ms_per_frame": per_frame,
        "total_ms": round(total_ms, 3),
        "decode_ms": round(decode_ms, 3),
        "encode_ms": round(encode_ms, 3),
        "encode_ms_per_pass": round(spent["pass_ms"], 2),
        "overhead_ms": round(total_ms - decode_ms - encode_ms, 3),
        "broker": broker_name,
        **machine(),
    }


async def charged(pids: Pids, subscriber: FeatureSubscriber, seconds: float) -> dict[str, Any]:
    """CPU seconds by process, vectors received, and the mean CPU of a pass of the network."""
    first = await report(subscriber)
    vectors, before, from_ns = subscriber.statistics().vectors, cpu_s(pids()), time.monotonic_ns()
    await asyncio.sleep(seconds)
    vectors, after, to_ns = subscriber.statistics().vectors - vectors, cpu_s(pids()), time.monotonic_ns()
    last = await report(subscriber)
    passes = encoder_sum(last, "encoded") - encoder_sum(first, "encoded")
    pass_us = (encoder_sum(last, "encode_cpu_us") - encoder_sum(first, "encode_cpu_us")) / max(1, passes)
    names = {worker["pid"]: name for name, worker in last["workers"].items()}
    return {
        "from_ns": from_ns,
        "to_ns": to_ns,
        "cpu_s": {names.get(pid, "supervisor"): after[pid] - before[pid] for pid in after},
        "vectors": vectors,
        "pass_ms": pass_us / 1e3,
    }


async def report(subscriber: FeatureSubscriber) -> dict[str, Any]:
    """The next `stats` that hold an encoder's."""
    async for figures in subscriber.stats():
        if any(name.startswith("encode") for name in figures.body["workers"]):
            return figures.body
    raise RuntimeError("the statistics ended")


def encoder_sum(stats: dict[str, Any], counter: str) -> int:
    return sum(w["counters"].get(counter, 0) for name, w in stats["workers"].items() if name.startswith("encode"))


def cpu_s(pids: list[int]) -> dict[int, float]:
    return {pid: sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids}


def print_table(result: dict[str, Any]) -> None:
    print(
        "{source} {fps:g} fps, {streams} camera(s), {arrived} frames, {encoded_share:.0%} encoded at "
        "{encode_ms_per_pass} ms CPU".format(**result)
    )
    for name, spent_ms in result["cpu_ms_per_frame"].items():
        print(f"  {name:12} {spent_ms:7.3f} ms a frame")
    print("total {total_ms} - decode {decode_ms} - encode {encode_ms} = {overhead_ms} ms a frame".format(**result))


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
