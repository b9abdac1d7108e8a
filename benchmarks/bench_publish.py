"""What publishing costs: CPU and latency of `publish_feature` to the broker's socket, and from there to a subscriber.

    python benchmarks/bench_publish.py [--messages 3000] [--dim 1280] [--rate 200]

Needs mosquitto. Publisher and subscriber run in one process each, the broker in a third.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

from streaming.client import FeatureSubscriber
from streaming.frames import Since
from streaming.mqtt import MqttSettings, Publisher
from streaming.records import FeatureRecord, Quality, Stages


def record(seq: int, vector: bytes) -> FeatureRecord:
    """A record that left the encoder just now."""
    now_ns = time.monotonic_ns()
    return FeatureRecord(
        camera=f"cam{seq % 4}",
        frame_seq=seq // 4,
        since=Since(),
        model_id="lite0",
        model="0123456789abcdef",
        dim=len(vector) // 4,
        vector=vector,
        norm=1.0,
        pts_us=seq,
        captured_at_us=time.time_ns() // 1000,
        clock="arrival",
        captured_error_us=0,
        arrived_ns=now_ns,
        deadline_ns=now_ns + 100_000_000,
        stages=Stages(),
        quality=Quality(rung=224, tokens_updated=1, tokens_total=1, cold=False, change=0.0),
    )


async def publish(port: int, messages: int, dim: int, rate: float) -> dict[str, Any]:
    """Publish at a steady rate; `rate` 0: as fast as it goes."""
    vector = np.random.default_rng(0).standard_normal(dim).astype("<f4")
    unit = (vector / np.linalg.norm(vector)).tobytes()
    written: list[int] = []
    publisher = Publisher(MqttSettings(port=port), node="bench", on_written=lambda one: written.append(one.total_us))
    async with publisher, asyncio.TaskGroup() as group:
        group.create_task(publisher.run())
        while not publisher.statistics().connected:  # noqa: ASYNC110 - a benchmark's start
            await asyncio.sleep(0.01)
        calls_us, began_s, cpu_s = [], time.perf_counter(), time.process_time()
        for seq in range(messages):
            if rate:
                await asyncio.sleep(max(0.0, began_s + seq / rate - time.perf_counter()))
            else:
                await asyncio.sleep(0)
            call_ns = time.perf_counter_ns()
            publisher.publish_feature(record(seq, unit))
            calls_us.append((time.perf_counter_ns() - call_ns) / 1000)
        cpu_s = time.process_time() - cpu_s
        seconds = time.perf_counter() - began_s
        publisher.close()
    counts = publisher.statistics().cameras.values()
    return {
        "messages": messages,
        "dim": dim,
        "per_second": round(messages / seconds),
        "published": sum(one.published for one in counts),
        "call_us": percentiles(calls_us),
        "to_socket_us": percentiles(written),
        "cpu_us_per_message": round(cpu_s / messages * 1e6, 1),
    }


async def subscribe(port: int, messages: int) -> None:
    """Receive all messages, or what comes until a second of silence; print what it took."""
    ages_us: list[float] = []
    async with FeatureSubscriber(f"mqtt://127.0.0.1:{port}", queue_size=100_000) as subscriber:
        stream = subscriber.features()
        await stream.ready()
        print("ready", flush=True)
        ages_us.append((await anext(stream)).age_s * 1e6)
        cpu_s = time.process_time()
        with contextlib.suppress(TimeoutError):
            while len(ages_us) < messages:
                async with asyncio.timeout(1):
                    ages_us.append((await anext(stream)).age_s * 1e6)
        cpu_s = time.process_time() - cpu_s
    figures = {"received": len(ages_us), "age_us": percentiles(ages_us)}
    print(json.dumps(figures | {"cpu_us_per_message": round(cpu_s / len(ages_us) * 1e6, 1)}))


def percentiles(values: list[Any]) -> dict[str, float]:
    """Values -> p50, p95, p99, max."""
    cuts = statistics.quantiles(values, n=100)
    return {
        "p50": round(cuts[49], 1),
        "p95": round(cuts[94], 1),
        "p99": round(cuts[98], 1),
        "max": round(max(values), 1),
    }


def main() -> None:
    """Start a broker and a subscriber, publish, print both sides' figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=3000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--rate", type=float, default=200.0, help="messages per second; 0: as fast as it goes")
    parser.add_argument("--subscribe-at", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.subscribe_at:
        asyncio.run(subscribe(options.subscribe_at, options.messages))
        return
    broker = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if broker is None:
        parser.error("needs Debian's mosquitto (apt-get install mosquitto)")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    running = subprocess.Popen([broker, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        command = [sys.executable, __file__, "--subscribe-at", str(port), "--messages", str(options.messages)]
        subscriber = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert subscriber.stdout is not None
        subscriber.stdout.readline()
        publisher = asyncio.run(publish(port, options.messages, options.dim, options.rate))
        out, _ = subscriber.communicate(timeout=60)
        print(json.dumps({"publisher": publisher, "subscriber": json.loads(out)}, indent=2))
    finally:
        running.terminate()


if __name__ == "__main__":
    main()
