"""Run a pipeline for a while, listen to it as a subscriber would, and say what came of it: demo and benchmark in one.

The summary's figures come from three sides that do not know of each other: the source's own list (the scene's log), the
account of the workers, and what the subscriber received.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from streaming.client import FeatureSubscriber, SubscriberStatistics
from streaming.config import Config
from streaming.events import Event
from streaming.feature import Feature, Model
from streaming.frames import DROP_CAUSES
from streaming.stream import Stream
from workers.health import percentiles_ms
from workers.supervisor import Supervisor, running

START_TIMEOUT_S = 120.0
_SETTLE_S = 2.0
UNREAD_AT_STOP = 60
"""Frames that a scene may have sent between the order to stop reading it and its end: a second at the highest rate."""
STAGES = ("decode", "convert", "wait", "transfer", "queue", "encode", "publish")


@dataclass
class CameraTally:
    """The times of one camera's vectors, as a subscriber sees them."""

    vectors: int = 0
    cold: int = 0
    glass_us: list[int] = field(default_factory=list)
    """From the scene's time code to the subscriber."""
    spans_us: list[int] = field(default_factory=list)
    """From arrival to the write to the broker's socket: what the budget bounds. Warm frames only."""
    stages_us: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _open_span_us: int | None = None

    def take(self, feature: Feature) -> None:
        """One vector of this camera."""
        self.vectors += 1
        if self._open_span_us is not None and not feature.gap:
            # How long publishing took is known only afterwards: the next message says it.
            self.spans_us.append(self._open_span_us + feature.ledger.publish)
            self.stages_us["publish"].append(feature.ledger.publish)
        self._open_span_us = None
        if feature.quality.cold:
            self.cold += 1
            return
        spent = {stage: getattr(feature.ledger, stage) for stage in STAGES[:-1]}
        for stage, value in spent.items():
            self.stages_us[stage].append(value)
        self._open_span_us = sum(spent.values())
        if feature.clock == "scene":
            self.glass_us.append(round(feature.age_s * 1e6))


@dataclass
class Measurement:
    """A running pipeline with its listener; `summary` once it has been stopped."""

    config: Config
    supervisor: Supervisor
    subscriber: FeatureSubscriber
    tallies: dict[str, CameraTally] = field(default_factory=lambda: defaultdict(CameraTally))
    events: list[str] = field(default_factory=list)
    log_files: dict[str, Path] = field(default_factory=dict)
    cpu_percent: float = 0.0
    rss_mb: float = 0.0
    model: Model | None = None
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
            **self._model(),
            "cpu_percent": round(self.cpu_percent, 1),
            "rss_mb": round(self.rss_mb, 1),
            "per_camera": cameras,
        }

    def _model(self) -> dict[str, Any]:
        names = {
            "model": "model_id",
            "fingerprint": "fingerprint",
            "trained": "trained",
            "full_pass_ms": "full_pass_ms",
        }
        return {name: getattr(self.model, attribute, None) for name, attribute in names.items()}

    def _camera(self, camera: str, row: dict[str, int]) -> dict[str, Any]:
        tally, seen = self.tallies[camera], self.subscriber.statistics(camera)
        dropped = {cause: row[cause] for cause in DROP_CAUSES if row[cause]}
        emitted = self._emitted(camera)
        return {
            "frames_in": row["captured"],
            "frames_emitted": emitted,
            "encoded": row["encoded"],
            "held": row["held"],
            "published": row["published"],
            "received": seen.vectors,
            "frames_told": seen.frames,
            "cold": tally.cold,
            "missing_messages": seen.missing_messages,
            "dropped": dropped,
            "accounted": _adds_up(row, seen, emitted),
            "latency_ms": _spread(tally.spans_us),
            "glass_ms": _spread(tally.glass_us),
        }

    def _emitted(self, camera: str) -> int | None:
        """How many frames the source itself says it has sent; None for a source that keeps no list."""
        path = self.log_files.get(camera)
        if path is None or not path.exists():
            return None
        return sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}"))


def _adds_up(row: dict[str, int], seen: SubscriberStatistics, emitted: int | None) -> bool:
    """Whether three lists agree: the source's own, the workers' account, and what the subscriber was told."""
    told = row["published"] + row["held"] + sum(row[cause] for cause in DROP_CAUSES)
    unread = 0 if emitted is None else emitted - row["captured"]
    return row["captured"] == row["accounted"] == told == seen.frames and 0 <= unread <= UNREAD_AT_STOP


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
        subscriber = await stack.enter_async_context(
            FeatureSubscriber(url, root=config.mqtt.root, protocol=config.mqtt.protocol)
        )
        measured = Measurement(config, Supervisor(config, runtime=folder), subscriber, log_files=log_files or {})
        features, events, models = subscriber.features(), subscriber.events(), subscriber.models()
        listening = [
            asyncio.create_task(_take_features(features, measured), name="features"),
            asyncio.create_task(_take_events(events, measured), name="events"),
            asyncio.create_task(_take_models(models, measured), name="models"),
        ]
        await features.ready()
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
    mqtt = config.mqtt.model_copy(update={"embedded": False, "port": broker.port, "protocol": "3.1.1"})
    return config.model_copy(update={"mqtt": mqtt})


async def _take_features(features: Stream[Feature], measured: Measurement) -> None:
    async for feature in features:
        measured.tallies[feature.camera].take(feature)


async def _take_events(events: Stream[Event], measured: Measurement) -> None:
    async for event in events:
        if event.phase == "new":
            measured.events.append(f"{event.camera}: {event.type}")


async def _take_models(models: Stream[Model], measured: Measurement) -> None:
    async for model in models:
        if model.temporal_of is None:
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
    """Wait until the subscriber knows of every frame, or a moment longer than that should take."""
    totals = measured.supervisor.totals()

    def knows_all() -> bool:
        return all(measured.subscriber.statistics(c).frames >= row["accounted"] for c, row in totals.items())

    ends = time.monotonic() + _SETTLE_S
    while not knows_all() and time.monotonic() < ends:  # noqa: ASYNC110 - statistics have no event to wait for
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
