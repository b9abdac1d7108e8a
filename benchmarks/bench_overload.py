"""More cameras than the machine bears, in real time: does the budget hold, is anybody starved, is every frame accounted for?

    python benchmarks/bench_overload.py CLIP... [--cameras 8] [--load 2.0] [--seconds 20] [--model NAME] [--gate] [--json]

One process and one thread, as an encoder worker: frames of the clips arrive on time, at the rate that takes `load` times what
full passes can be done in; the loop offers, steps and audits. Without --gate every frame wants a full pass.
"""

import argparse
import heapq
import json
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from encoders_core.config import AuditConfig
from encoders_core.hardware_threads import configure_threads
from encoders_core.realtime.frame_encoder import load_frame_encoder
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder
from encoders_core.realtime.realtime_job import RealtimeJob

KEPT = 150
LOOK_NS = 2_000_000


def pictures(path: Path, size_hw: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """The first frames of a clip, and back again, so that the end is no cut."""
    found: list[NDArray[np.uint8]] = []
    with av.open(str(path)) as container:
        for picture in container.decode(container.streams.video[0]):
            pixels = picture.to_ndarray(format="rgb24")
            found.append(np.asarray(cv2.resize(pixels, size_hw[::-1], interpolation=cv2.INTER_AREA), np.uint8))
            if len(found) == KEPT:
                break
    return [*found, *found[-2:0:-1]]


class Run:
    """The worker's loop."""

    def __init__(self, encoder: RealtimeVideoEncoder, clips: list[list[NDArray[np.uint8]]], options: Any) -> None:
        self.encoder, self.clips, self.seconds = encoder, clips, options.seconds
        self.full_ms = encoder.warm_up()
        self.interval_ns = round(self.full_ms * 1e6 * options.cameras / options.load)
        self.names = [f"cam{number}" for number in range(options.cameras)]
        for name in self.names:
            encoder.add_camera(name)
        self.warm_ms: list[float] = []
        self.misses = self.cold = 0
        self._warm: RealtimeJob | None = None
        self._cold: RealtimeJob | None = None

    def go(self) -> dict[str, Any]:
        """All of it, in real time."""
        begun = time.monotonic_ns()
        due = [(begun + number * self.interval_ns // len(self.names), number, 0) for number in range(len(self.names))]
        heapq.heapify(due)
        computed = time.process_time()
        ends, look_at = begun + round(self.seconds * 1e9), 0
        while (now := time.monotonic_ns()) < ends:
            if now >= look_at:
                self._arrive(due, now)
                look_at = now + LOOK_NS
            if not self._work():
                time.sleep(max(0.0, min(0.002, (due[0][0] - time.monotonic_ns()) / 1e9)))
        return self._report(time.process_time() - computed)

    def _arrive(self, due: list[tuple[int, int, int]], now: int) -> None:
        while due[0][0] <= now:
            at, number, index = heapq.heappop(due)
            clip = self.clips[number % len(self.clips)]
            self.encoder.offer(self.names[number], clip[index % len(clip)], at)
            heapq.heappush(due, (at + self.interval_ns, number, index + 1))

    def _work(self) -> bool:
        if self._warm is None:
            job, _ = self.encoder.next_job(packed=True)
            if job and job.gives_way:
                self._cold = job
            else:
                self._warm = job
        job = self._warm or self._cold
        if job is None or not self.encoder.may_step(job):
            return self.encoder.audit_step(in_slack=True)
        if job.step():
            self._warm, self._cold = (None, self._cold) if job is self._warm else (self._warm, None)
            for feature in (one.result() for one in (job, *job.companions)):
                if feature.quality.cold:
                    self.cold += 1
                else:
                    self.warm_ms.append(feature.latency_ms)
                    self.misses += not feature.quality.budget_met
        return True

    def _report(self, cpu_s: float) -> dict[str, Any]:
        found = {name: one.counts for name, one in self.encoder.statistics().items()}
        encoded = [counts.encoded for counts in found.values()]
        offered = sum(counts.offered for counts in found.values())
        sums = [
            c.offered == c.encoded + c.held + sum(c.dropped.values()) + c.waiting + c.running for c in found.values()
        ]
        p50, p95, p99 = (round(float(np.quantile(self.warm_ms, share)), 1) for share in (0.5, 0.95, 0.99))
        return {
            "full_pass_ms": round(self.full_ms, 2),
            "frames_per_s": round(offered / self.seconds, 1),
            "encoded_share": round(sum(encoded) / offered, 3),
            "held_share": round(sum(counts.held for counts in found.values()) / offered, 3),
            "capped": sum(counts.capped for counts in found.values()),
            "cold": self.cold,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "missed_share": round(self.misses / max(1, len(self.warm_ms)), 4),
            "most_over_least": round(max(encoded) / max(1, min(encoded)), 3),
            "accounted": all(sums),
            "cpu_share": round(cpu_s / self.seconds, 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--load", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--budget-ms", type=float, default=100.0)
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configure_threads()
    model = load_frame_encoder(options.model, weights=options.weights)
    encoder = RealtimeVideoEncoder(
        model, budget_ms=options.budget_ms, gate="balanced" if options.gate else None, audit=AuditConfig()
    )
    size_hw = model.descriptor.input.size_hw
    found = Run(encoder, [pictures(path, size_hw) for path in options.clips], options).go()
    print(json.dumps(found) if options.json else "\n".join(f"{key:16} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
