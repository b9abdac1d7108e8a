"""Run a pipeline for a while, listen to it as a subscriber would, and say what came of it: demo and benchmark in one.

The summary's figures come from three sides that do not know of each other: the source's own list (the scene's log), the
account of the workers, and what the subscriber received.
"""

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from streaming.client import Feature, FeatureSubscriber
from streaming.config import Config
from streaming.frames import DROP_CAUSES
from workers.health import percentiles_ms
from workers.supervisor import Supervisor, running

START_TIMEOUT_S = 120.0
_SETTLE_S = 1.0
STAGES = ("decode", "convert", "wait", "transfer", "queue", "encode", "publish")


@dataclass
class CameraTally:
    """What a subscriber has seen of one camera."""

    received: int = 0
    held: int = 0
    seen_frames: int = 0
    """Frames that the messages account for, the encoded ones included."""
    first_seq: int | None = None
    last_seq: int = -1
    cold: int = 0
    missing_messages: int = 0
    glass_us: list[int] = field(default_factory=list)
    stages_us: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    spans_us: list[int] = field(default_factory=list)
    _open_span_us: int | None = None

    def take(self, feature: Feature) -> None:
        """One message of this camera."""
        self.missing_messages += feature.gap
        self.seen_frames += feature.since.frames + (0 if feature.vector is None else 1)
        self.held += feature.since.held
        self.last_seq = max(self.last_seq, feature.frame_seq)
        if feature.vector is None:
            return
        self.received += 1
        self._take_times(feature)

    def _take_times(self, feature: Feature) -> None:
        ledger = feature.ledger
        if self._open_span_us is not None and not feature.gap:
            # How long publishing took is known only afterwards: the next message says it.
            self.spans_us.append(self._open_span_us + ledger.publish)
            self.stages_us["publish"].append(ledger.publish)
        self._open_span_us = None
        if feature.quality.cold:
            self.cold += 1
            return
        spent = {stage: getattr(ledger, stage) for stage in STAGES[:-1]}
        for stage, value in spent.items():
            self.stages_us[stage].append(value)
        self._open_span_us = sum(spent.values())
        if feature.clock == "scene":
            self.glass_us.append(feature.received_at_us - feature.captured_at_us)
