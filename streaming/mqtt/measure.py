"""Percentiles of the stages over the last messages, and how often the budget held. Pure."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from streaming.records import FeatureRecord

WINDOW: Final = 1024
STAGES: Final = ("decode", "convert", "wait", "transfer", "queue", "encode", "publish", "total")
Percentiles = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Written:
    """One vector that was written to the broker's socket."""

    camera: str
    frame_seq: int
    total_us: int
    """From the frame's arrival to the write: what the budget bounds."""
    publish_us: int
    """From the end of encoding to the write."""
    budget_met: bool
    cold: bool


@dataclass(slots=True)
class BudgetMeter:
    """Stage times of the last `WINDOW` messages that were not cold, and counts of all."""

    hits: int = 0
    misses: int = 0
    cold: int = 0
    _times_us: dict[str, deque[int]] = field(default_factory=lambda: {stage: deque(maxlen=WINDOW) for stage in STAGES})

    def written(self, record: FeatureRecord, written_ns: int) -> Written:
        """Count one message that has left; a cold one counts apart."""
        total_us = max(0, written_ns - record.arrived_ns) // 1000
        publish_us = max(0, total_us - stages_us(record))
        met = written_ns <= record.deadline_ns
        if record.quality.cold:
            self.cold += 1
        else:
            self.hits, self.misses = self.hits + met, self.misses + (not met)
            stages = record.stages
            times = (
                stages.decode_us,
                stages.convert_us,
                stages.wait_us,
                stages.transfer_us,
                stages.queue_us,
                stages.encode_us,
                publish_us,
                total_us,
            )
            for stage, time_us in zip(STAGES, times, strict=True):
                self._times_us[stage].append(time_us)
        return Written(record.camera, record.frame_seq, total_us, publish_us, met, record.quality.cold)

    def percentiles_ms(self) -> dict[str, Percentiles]:
        """Stage -> (p50, p95, p99) in milliseconds; empty before the first message."""
        return {stage: _percentiles(sorted(times)) for stage, times in self._times_us.items() if times}


def stages_us(record: FeatureRecord) -> int:
    """What the stages before the publisher took together."""
    stages = record.stages
    before = stages.decode_us + stages.convert_us + stages.wait_us
    return before + stages.transfer_us + stages.queue_us + stages.encode_us


def _percentiles(times_us: list[int]) -> Percentiles:
    """By the nearest rank."""
    last = len(times_us) - 1
    p50, p95, p99 = (times_us[round(last * share)] / 1000 for share in (0.50, 0.95, 0.99))
    return p50, p95, p99
