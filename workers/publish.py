"""The publisher worker: collects records from the encoders and hands them to MQTT; keeps the account on the board."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streaming.board import AccountBoard
from streaming.config import Config
from streaming.events import EventSettings
from streaming.frames import DROP_CAUSES
from streaming.logs import get_logger
from streaming.mqtt.publisher import CameraStatistics, Publisher
from streaming.records import FeatureRecord, FidelityRecord, HeldRecord, ModelDescriptor, StateRecord, WorkerStats
from streaming.transport import RecordReceiver
from streaming.wire import Tail, ToPublisher
from workers.control import Assignment, CommandReader, Status, StatusWriter, Stop, read_orders
from workers.endpoints import shared_context
from workers.health import Health
from workers.mqtt_settings import event_settings_of, mqtt_settings_of

_log = get_logger("publish")
_BEAT_S = 1.0
MAX_ADOPTED = 256
"""Cameras of other hosts: a capture host has a key of ours, and still must not fill our memory with names."""


class PublishWorker:
    """One MQTT connection for the whole node."""

    def __init__(self, assignment: Assignment, config: Config, status: StatusWriter) -> None:
        self._assignment, self._config, self._status = assignment, config, status
        self._health = Health(assignment.worker)
        self._workers: dict[str, WorkerStats] = {}
        self._before: dict[str, dict[str, int]] = {}
        self._adopted: dict[str, None] = {}
        self._thresholds: dict[str, float] = {}
        """Set over MQTT, by camera."""
        self._records = 0

    async def run(self, commands: CommandReader) -> None:
        """Until the supervisor says stop or is gone; what has been collected is sent first, as long as the broker takes it."""
        assignment = self._assignment
        settings = mqtt_settings_of(self._config, assignment.broker_port)
        async with AsyncExitStack() as stack:
            self._board = stack.enter_context(AccountBoard.open(Path(assignment.board)))
            context = shared_context(assignment.listen)
            self._receiver = await stack.enter_async_context(RecordReceiver(assignment.listen, context=context))
            self._publisher = await stack.enter_async_context(
                Publisher(
                    settings,
                    node=self._config.node,
                    session=assignment.session,
                    event_settings=self._event_settings,
                    on_command=self._set,
                )
            )
            self._follow(assignment)
            async with asyncio.TaskGroup() as group:
                publishing = group.create_task(self._publisher.run(), name="publish")
                background = [
                    group.create_task(self._receiver.deliver(self._take), name="collect"),
                    group.create_task(self._beat(), name="heartbeat"),
                ]
                self._status.send(Status("ready"))
                await self._obey(commands)
                for task in background:
                    task.cancel()
                while (record := self._receiver.receive_nowait()) is not None:
                    self._take(record)
                self._publisher.close()
                await publishing
            self._account(stopped=True)

    def _event_settings(self, camera: str) -> EventSettings:
        return event_settings_of(self._config.camera(camera), threshold=self._thresholds.get(camera))

    def _set(self, camera: str, name: str, value: Any) -> Any:
        """A command over MQTT: `activity_threshold` of a camera, until the daemon ends. Raises ValueError for others."""
        if name != "activity_threshold":
            raise ValueError(f"expected activity_threshold, got {name!r}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise ValueError(f"expected a share of the picture above 0 and up to 1, got {value!r}")
        self._thresholds[camera] = float(value)
        self._tell_cameras()
        return float(value)

    async def _obey(self, commands: CommandReader) -> None:
        async for order in read_orders(commands):
            if isinstance(order, Stop):
                return
            self._config = Config.from_json(order.config)
            self._follow(order)

    def _follow(self, assignment: Assignment) -> None:
        """The cameras from now on; each goes on where the board says that its account stands."""
        rows = {camera: self._board.row(camera).totals() for camera in assignment.cameras}
        self._before = {camera: self._before.get(camera, row) for camera, row in rows.items()}
        self._adopted = {camera: None for camera in self._adopted if camera not in rows}
        self._tell_cameras()
        for camera in rows:
            self._publisher.publish_value(camera, "activity_threshold", self._event_settings(camera).start_change)

    def _tell_cameras(self) -> None:
        known = {camera: row["accounted"] for camera, row in self._before.items()}
        self._publisher.set_cameras({**self._adopted, **known})

    def _adopt(self, camera: str) -> None:
        """Take in a camera that a capture host declares and this one does not; its account is kept on that host."""
        if "capture" in self._config.roles or camera in self._before or camera in self._adopted:
            return
        if len(self._adopted) >= MAX_ADOPTED:
            _log.error("too many cameras from other hosts", camera=camera, limit=MAX_ADOPTED)
            return
        self._adopted[camera] = None
        self._tell_cameras()

    def _take(self, record: ToPublisher) -> None:
        self._records += 1
        publisher = self._publisher
        if isinstance(record, FeatureRecord | HeldRecord | Tail | StateRecord | FidelityRecord):
            self._adopt(record.camera)
        match record:
            case FeatureRecord():
                publisher.publish_feature(record)
            case HeldRecord():
                publisher.publish_held(record)
            case Tail():
                publisher.publish_tail(record.camera, record.up_to_seq, record.since)
            case StateRecord():
                publisher.publish_state(record)
            case ModelDescriptor():
                publisher.set_model(record)
            case FidelityRecord():
                publisher.publish_fidelity(record)
            case WorkerStats():
                self._workers[record.worker] = record

    async def _beat(self) -> None:
        seconds = 0.0
        while True:
            await asyncio.sleep(_BEAT_S)
            seconds += _BEAT_S
            self._account()
            self._status.send(Status("alive", progress=self._records))
            if seconds >= self._config.mqtt.stats_interval_s:
                seconds = 0.0
                self._publisher.publish_stats(self._figures())

    def _figures(self) -> dict[str, Any]:
        self._workers[self._assignment.worker] = self._health.snapshot()
        found = self._publisher.statistics()
        workers = self._workers.values()
        return {
            "cpu_percent": round(sum(worker.cpu_percent for worker in workers), 1),
            "rss_mb": round(sum(worker.rss_mb for worker in workers), 1),
            "budget": {"hits": found.budget_hits, "misses": found.budget_misses, "cold": found.cold},
            "percentiles_ms": self._percentiles(),
            "problems": found.problems,
            "bad_messages": self._receiver.bad_messages,
            "workers": {worker.worker: _worker_figures(worker) for worker in workers},
            "cameras": {camera: asdict(statistics) for camera, statistics in found.cameras.items()},
        }

    def _percentiles(self) -> dict[str, dict[str, list[float]]]:
        stages = {worker.worker: worker.percentiles_ms for worker in self._workers.values()}
        figures = {name: {stage: list(values) for stage, values in found.items()} for name, found in stages.items()}
        figures["publisher"] = {stage: list(v) for stage, v in self._publisher.statistics().percentiles_ms.items()}
        return figures

    def _account(self, *, stopped: bool = False) -> None:
        """Write the totals to the board, on top of what an earlier publisher of this daemon had counted.

        `stopped`: what still waits for the broker will not be sent any more.
        """
        for camera, found in self._publisher.accounts().items():
            if camera not in self._before:
                continue
            before, row = self._before[camera], self._board.row(camera)
            row["accounted"] = found.accounted_upto + 1
            for counter, value in _totals(found).items():
                row[counter] = before.get(counter, 0) + value
            if stopped:
                row.drop("stopped", found.waiting)


def _totals(found: CameraStatistics) -> dict[str, int]:
    dropped: dict[str, int] = {cause: found.dropped.get(cause, 0) for cause in DROP_CAUSES}
    return {"encoded": found.encoded, "held": found.held, "published": found.published, **dropped}


def _worker_figures(worker: WorkerStats) -> dict[str, Any]:
    return {
        "pid": worker.pid,
        "cpu_percent": worker.cpu_percent,
        "rss_mb": worker.rss_mb,
        "counters": worker.counters,
    }


def run_publish(assignment: Assignment, config: Config, commands: CommandReader, status: StatusWriter) -> None:
    """The publish role: blocks until it is told to stop."""
    asyncio.run(PublishWorker(assignment, config, status).run(commands))
