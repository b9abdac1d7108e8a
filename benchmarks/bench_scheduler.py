"""What the scheduler makes of a machine whose passes take ten times as long now and then, against a plain loop; simulated.

    python benchmarks/bench_scheduler.py [--seconds 60] [--json]

The clock is simulated, so the figures are the same everywhere. A pass takes 13 ms of computing and 3.5 times as long in the
median, log-normal with sigma .6: in one of twenty, ten times. The plain loop encodes the newest frame of each camera in turn.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.encoders_core.realtime.simulated import Camera, Simulation, newest_frame_loop

SETTINGS = ((1, 33.0), (3, 100.0), (2, 33.0))


def compare(count: int, interval_ms: float, seconds: float) -> dict[str, Any]:
    cameras = {f"c{index}": Camera(interval_ms) for index in range(count)}

    def simulation() -> Simulation:
        return Simulation(cameras, lambda _: 13.0, lambda source, _: max(1.0, 3.5 * source.lognormvariate(0, 0.6)))

    ours = simulation()
    ours.paced = True
    ours.run(seconds)
    plain = sorted(newest_frame_loop(simulation(), seconds))
    return {
        "cameras": count,
        "frames_per_s": round(1000 / interval_ms, 1),
        "encoded": sum(ours.encoded.values()),
        "in_time": sum(latency <= 100 for latency in ours.latencies_ms),
        "p50_ms": round(ours.quantile_ms(0.5)),
        "p99_ms": round(ours.quantile_ms(0.99)),
        "plain_encoded": len(plain),
        "plain_in_time": sum(latency <= 100 for latency in plain),
        "plain_p50_ms": round(plain[len(plain) // 2]),
        "plain_p99_ms": round(plain[int(0.99 * len(plain))]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [compare(count, interval_ms, options.seconds) for count, interval_ms in SETTINGS]
    if options.json:
        print(json.dumps({"seconds": options.seconds, "settings": rows}))
        return
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
