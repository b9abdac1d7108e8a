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
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
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
_SETTLE_S = 2.0
UNREAD_AT_STOP = 60
"""Frames that a scene may have sent between the order to stop reading it and its end: a second at the highest rate."""
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


@dataclass
class Measurement:
    """A running pipeline with its listener; `summary` once it has been stopped."""

    config: Config
    supervisor: Supervisor
    tallies: dict[str, CameraTally] = field(default_factory=lambda: defaultdict(CameraTally))
    events: list[str] = field(default_factory=list)
    log_files: dict[str, Path] = field(default_factory=dict)
    cpu_percent: float = 0.0
    rss_mb: float = 0.0
    model: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """The figures of all cameras together, and `per_camera`."""
        totals = self.supervisor.totals()
        cameras = {camera: self._camera(camera, totals[camera]) for camera in self.config.enabled_cameras()}
        tallies = list(self.tallies.values())
        spans = [span for tally in tallies for span in tally.spans_us]
        budget_us = {camera: self.config.camera(camera).budget_ms * 1e3 for camera in cameras}
        hits = sum(span <= budget_us[camera] for camera, tally in self.tallies.items() for span in tally.spans_us)
        return {
            "cameras": len(cameras),
            "seconds": round(self.seconds, 1),
            **{key: sum(camera[key] for camera in cameras.values()) for key in _SUMS},
            "dropped": _add_up(camera["dropped"] for camera in cameras.values()),
            "accounted": all(camera["accounted"] for camera in cameras.values()),
            "latency_ms": _spread(spans),
            "glass_ms": _spread([glass for tally in tallies for glass in tally.glass_us]),
            "stages_ms": {stage: _spread([v for t in tallies for v in t.stages_us[stage]]) for stage in STAGES},
            "budget_ms": max((us / 1e3 for us in budget_us.values()), default=0.0),
            "budget_hit_ratio": round(hits / len(spans), 4) if spans else None,
            "events": len(self.events),
            "model": self.model.get("model_id"),
            "fingerprint": self.model.get("fingerprint"),
            "trained": self.model.get("trained"),
            "full_pass_ms": self.model.get("full_pass_ms"),
            "cpu_percent": round(self.cpu_percent, 1),
            "rss_mb": round(self.rss_mb, 1),
            "per_camera": cameras,
        }

    def _camera(self, camera: str, row: dict[str, int]) -> dict[str, Any]:
        tally = self.tallies[camera]
        dropped = {cause: row[cause] for cause in DROP_CAUSES if row[cause]}
        emitted = self._emitted(camera)
        explained = row["published"] + row["held"] + sum(dropped.values())
        return {
            "frames_in": row["captured"],
            "frames_emitted": emitted,
            "encoded": row["encoded"],
            "held": row["held"],
            "published": row["published"],
            "received": tally.received,
            "cold": tally.cold,
            "missing_messages": tally.missing_messages,
            "dropped": dropped,
            "accounted": row["captured"] == row["accounted"] == explained
            and tally.last_seq + 1 == row["captured"]
            and (emitted is None or 0 <= emitted - row["captured"] <= UNREAD_AT_STOP),
            "latency_ms": _spread(tally.spans_us),
            "glass_ms": _spread(tally.glass_us),
        }

    def _emitted(self, camera: str) -> int | None:
        """How many frames the source itself says it has sent; None for a source that keeps no list."""
        path = self.log_files.get(camera)
        if path is None or not path.exists():
            return None
        return sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}"))


_SUMS = ("frames_in", "encoded", "held", "published", "received", "cold")


def _spread(values_us: list[int]) -> dict[str, float] | None:
    if not values_us:
        return None
    return dict(zip(("p50", "p95", "p99"), percentiles_ms(values_us), strict=True))


def _add_up(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


@contextlib.asynccontextmanager
async def measuring(config: Config, *, log_files: dict[str, Path] | None = None) -> AsyncIterator[Measurement]:
    """Listen, then start the pipeline of `config`; on the way out stop it in order and wait for the last message.

    The built-in broker, if it is wanted, belongs to the measurement: it must outlive the publisher's last message.
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="camvec-")))
        config = await _with_broker(config, stack)
        url = f"mqtt://{config.mqtt.host}:{config.mqtt.port}"
        subscriber = await stack.enter_async_context(FeatureSubscriber(url, root=config.mqtt.root))
        measured = Measurement(config, Supervisor(config, runtime=folder), log_files=log_files or {})
        listening = [
            asyncio.create_task(_take_features(subscriber, measured), name="features"),
            asyncio.create_task(_take_events(subscriber, measured), name="events"),
            asyncio.create_task(_take_models(subscriber, measured), name="models"),
        ]
        try:
            async with running(measured.supervisor) as stop:
                await _until_ready(measured.supervisor, stop)
                started = time.monotonic()
                sampler = asyncio.create_task(_sample(measured), name="sample")
                yield measured
                sampler.cancel()
                measured.seconds = time.monotonic() - started
            await _until_last_message(measured)
        finally:
            for task in listening:
                task.cancel()


async def _with_broker(config: Config, stack: contextlib.AsyncExitStack) -> Config:
    if not config.mqtt.embedded:
        return config
    from streaming.broker import EmbeddedBroker

    broker = await stack.enter_async_context(EmbeddedBroker())
    mqtt = config.mqtt.model_copy(update={"embedded": False, "port": broker.port})
    return config.model_copy(update={"mqtt": mqtt})


async def _take_features(subscriber: FeatureSubscriber, measured: Measurement) -> None:
    async for feature in subscriber.features(include_held=True):
        measured.tallies[feature.camera].take(feature)


async def _take_events(subscriber: FeatureSubscriber, measured: Measurement) -> None:
    async for event in subscriber.events():
        if event.phase == "new":
            measured.events.append(f"{event.camera}: {event.type}")


async def _take_models(subscriber: FeatureSubscriber, measured: Measurement) -> None:
    async for model in subscriber.models():
        if model.get("temporal_of") is None:
            measured.model = model


async def _sample(measured: Measurement) -> None:
    """CPU and memory of the supervisor and its workers; a scene's renderer stands for a camera and is not ours."""
    before, before_s = _cpu_seconds(measured), time.monotonic()
    while True:
        await asyncio.sleep(0.5)
        measured.cpu_percent = 100 * (_cpu_seconds(measured) - before) / (time.monotonic() - before_s)
        measured.rss_mb = sum(process.memory_info().rss for process in _ours(measured)) / 1e6


def _ours(measured: Measurement) -> list[psutil.Process]:
    found = []
    for pid in {os.getpid(), *(child.pid for child in measured.supervisor.children.values() if child.pid)}:
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def _cpu_seconds(measured: Measurement) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _ours(measured))


async def _until_last_message(measured: Measurement) -> None:
    """Wait until the subscriber has seen the account of every captured frame, or a moment longer than it should take."""
    totals = measured.supervisor.totals()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SETTLE_S):
            while any(measured.tallies[camera].last_seq + 1 < row["accounted"] for camera, row in totals.items()):
                await asyncio.sleep(0.02)


async def _until_ready(supervisor: Supervisor, stop: asyncio.Event) -> None:
    ready, ended = asyncio.ensure_future(supervisor.ready.wait()), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({ready, ended}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise TimeoutError(f"the workers were not up after {START_TIMEOUT_S:.0f} s; the log above says why")
    finally:
        ready.cancel()
        ended.cancel()
