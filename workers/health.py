"""What a worker knows of itself: CPU, memory, and the percentiles of its stages over the last few hundred frames."""

import os
import threading
from collections import deque
from typing import Final

import psutil

from streaming.records import WorkerStats

_WINDOW: Final = 512


class Health:
    """Collects stage times and counters, and turns them into one `WorkerStats` at a time."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._process = psutil.Process()
        self._process.cpu_percent()
        self._stages: dict[str, deque[int]] = {}
        self._counting = threading.Lock()
        self.counters: dict[str, int] = {}

    def time(self, stage: str, duration_us: int) -> None:
        """Remember one duration of a stage, microseconds; from any thread."""
        with self._counting:
            times = self._stages.get(stage)
            if times is None:
                times = self._stages[stage] = deque(maxlen=_WINDOW)
        times.append(duration_us)

    def count(self, what: str, number: int = 1) -> None:
        """Add to a counter; from any thread."""
        with self._counting:
            self.counters[what] = self.counters.get(what, 0) + number

    def spend(self, stage: str, cpu_ns: int) -> None:
        """One more run of a stage, and the CPU that its thread was charged for it; from any thread."""
        counters, spent = self.counters, f"{stage}_cpu_us"
        with self._counting:
            counters[stage] = counters.get(stage, 0) + 1
            counters[spent] = counters.get(spent, 0) + round(cpu_ns / 1000)

    def rss_mb(self) -> float:
        """Resident memory now, MB."""
        return float(self._process.memory_info().rss) / 1e6

    def snapshot(self) -> WorkerStats:
        """CPU since the last snapshot (100 is one core), memory, percentiles, counters."""
        with self._counting:
            stages, counters = dict(self._stages), dict(self.counters)
        return WorkerStats(
            worker=self._worker,
            pid=os.getpid(),
            cpu_percent=float(self._process.cpu_percent()),
            rss_mb=round(self.rss_mb(), 1),
            percentiles_ms={stage: percentiles_ms(values) for stage, values in stages.items()},
            counters=counters,
        )


def percentiles_ms(durations_us: "deque[int] | list[int]") -> tuple[float, float, float]:
    """p50, p95 and p99 of durations in microseconds, as milliseconds: the nearest rank, of at least one value."""
    ordered = sorted(durations_us)
    last = len(ordered) - 1
    p50, p95, p99 = (round(ordered[min(last, int(share * len(ordered)))] / 1000.0, 3) for share in (0.50, 0.95, 0.99))
    return p50, p95, p99
