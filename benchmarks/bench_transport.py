"""CPU and latency of one frame from capture to encoder over ipc://, in two processes: medians of several runs.

`python benchmarks/bench_transport.py [--json]`. "paced" sends at a steady rate, as cameras do; "saturated" as fast as
credits come back. CPU covers all threads of a process, ZeroMQ's too; what an encoder does with a frame is not included.
An idle machine pays for each waking of a thread: `timer_cpu_us` is what the steady rate alone costs the sender.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from streaming.frames import CaptureTime, Frame, FrameSpec, Since
from streaming.transport import CaptureLink, EncoderInbox, FrameArrived, Readable, ipc_endpoint

CAMERAS = 8
SIZE_HW = (224, 224)
WARM_UP = 100


def encoder(endpoint: str) -> None:
    """Acknowledge every frame at once; at the end of stdin say what it cost."""
    transfers, started, cpu_ns = [], 0, 0
    with EncoderInbox(endpoint, FrameSpec(SIZE_HW), "bench") as inbox:
        inbox.watch(sys.stdin.fileno())
        print("bound", flush=True)
        while True:
            events = inbox.poll(100)
            for event in events:
                if isinstance(event, FrameArrived):
                    inbox.ack(event.frame.camera, event.frame.frame_seq)
                    started += 1
                    if started == WARM_UP:
                        cpu_ns = time.process_time_ns()
                    elif started > WARM_UP:
                        transfers.append(event.transfer_us)
            if any(isinstance(event, Readable) for event in events):
                break
    cpu_us = (time.process_time_ns() - cpu_ns) / 1000 / len(transfers)
    print(json.dumps({"cpu_us": cpu_us, "transfer_us": np.percentile(transfers, (50, 99)).tolist()}))


async def send(endpoint: str, frames: int, per_second: float) -> dict[str, float]:
    """Send from one worker, each camera in its turn; returns its own CPU and the time that all of it took."""
    names = [f"camera-{index}" for index in range(CAMERAS)]
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    async with CaptureLink(endpoint, "capture-0", names) as link:
        await link.ready()
        cpu_ns = wall_ns = 0
        start = time.monotonic()
        for index in range(WARM_UP + frames):
            if index == WARM_UP:
                cpu_ns, wall_ns = time.process_time_ns(), time.monotonic_ns()
            if per_second:
                await asyncio.sleep(max(0.0, start + index / per_second - time.monotonic()))
            name, seq = names[index % CAMERAS], index // CAMERAS
            await link.credit(name)
            now_ns = time.monotonic_ns()
            captured = CaptureTime(now_ns // 1000, "arrival", 0)
            link.send_frame(Frame(name, seq, pixels, seq, captured, now_ns, 0, 0, 0, Since()))
        await link.settled()
        spent_us = (time.process_time_ns() - cpu_ns) / 1000
        return {"cpu_us": spent_us / frames, "frames_per_second": frames / ((time.monotonic_ns() - wall_ns) / 1e9)}


async def only_pace(frames: int, per_second: float) -> float:
    """CPU of the sender's timer with nothing sent, microseconds a frame."""
    start, cpu_ns = time.monotonic(), time.process_time_ns()
    for index in range(frames):
        await asyncio.sleep(max(0.0, start + index / per_second - time.monotonic()))
    return (time.process_time_ns() - cpu_ns) / 1000 / frames


def run(frames: int, per_second: float) -> dict[str, float]:
    """One run with a fresh encoder process."""
    with tempfile.TemporaryDirectory() as folder:
        endpoint = ipc_endpoint(Path(folder), "encoder")
        command = [sys.executable, __file__, "--encoder", endpoint]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            sender = asyncio.run(send(endpoint, frames, per_second))
            said, _ = process.communicate("")
    receiver = json.loads(said)
    return {
        "timer_cpu_us": asyncio.run(only_pace(frames, per_second)) if per_second else 0.0,
        "frames_per_second": sender["frames_per_second"],
        "capture_cpu_us": sender["cpu_us"],
        "encoder_cpu_us": receiver["cpu_us"],
        "transfer_p50_us": receiver["transfer_us"][0],
        "transfer_p99_us": receiver["transfer_us"][1],
    }


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(result[key] for result in runs), 1) for key in runs[0]}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--frames", type=int, default=800)
    arguments.add_argument("--rate", type=float, default=200.0, help="frames per second of the paced runs, all cameras")
    arguments.add_argument("--encoder", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.encoder:
        encoder(chosen.encoder)
        return
    report: dict[str, Any] = {
        "frame_bytes": SIZE_HW[0] * SIZE_HW[1] * 3,
        "cameras": CAMERAS,
        "runs": chosen.runs,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "paced": medians([run(chosen.frames, chosen.rate) for _ in range(chosen.runs)]),
        "saturated": medians([run(4 * chosen.frames, 0) for _ in range(chosen.runs)]),
    }
    if chosen.json:
        print(json.dumps(report))
        return
    for mode in ("paced", "saturated"):
        print(f"{mode}, {CAMERAS} cameras, {SIZE_HW[0]}x{SIZE_HW[1]}x3, median of {chosen.runs} runs")
        for key, value in report[mode].items():
            print(f"  {key:<20}{value:>12.1f}")


if __name__ == "__main__":
    main()
