"""The publisher: what the pipeline finds, to the broker, whatever the broker does.

    async with Publisher(MqttSettings(host="broker.local"), node="edge1") as publisher:
        publisher.set_cameras(["front"])
        await publisher.run()  # beside it, in another task: publisher.publish_feature(record)

All `publish_*` and `set_*` return at once; they are called from the event loop that runs the publisher.
"""

import asyncio
import contextlib
import itertools
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Never, Self

from streaming.clock import SYSTEM_CLOCK, Clock
from streaming.errors import BrokerError
from streaming.events import Event, EventDetector, EventSettings
from streaming.frames import Since
from streaming.mqtt.announcer import JSON, Announcer
from streaming.mqtt.compose import SCHEMA, to_json
from streaming.mqtt.lane import Lane, TailMark
from streaming.mqtt.link import Handlers, Link, Will
from streaming.mqtt.measure import Written
from streaming.mqtt.parcels import Parcel
from streaming.mqtt.properties import plain
from streaming.mqtt.reconnect import Reconnector
from streaming.mqtt.sender import Sender
from streaming.mqtt.session import Session
from streaming.mqtt.settings import MqttSettings
from streaming.mqtt.statistics import CameraStatistics, PublisherStatistics, camera_statistics
from streaming.records import FeatureRecord, FidelityRecord, HeldRecord, ModelDescriptor, StateRecord
from streaming.topics import Topics, check_id

log = logging.getLogger("camvec.mqtt")
__all__ = ["CameraStatistics", "Publisher", "PublisherStatistics"]

FAREWELL_S: Final = 1.5
STATS_EXPIRY_S: Final = 60
DELIVERING: Final = frozenset({"streaming"})

Command = Callable[[str, str, Any], Awaitable[Any] | Any]
"""(camera, name, wanted value) -> the value in effect. Raises ValueError, with a sentence, if it cannot be."""


class Publisher:
    """Publishes records over MQTT and owns the connection. `node` is this device's id, `session` new at each start."""

    def __init__(
        self,
        settings: MqttSettings,
        *,
        node: str,
        session: str | None = None,
        on_command: Command | None = None,
        on_written: Callable[[Written], None] | None = None,
        event_settings: Callable[[str], EventSettings] = lambda _camera: EventSettings(),
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        self.topics = Topics(settings.root, node)
        self.settings = replace(settings, client_id=settings.client_id or f"{settings.root}-{node}")
        self.node = node
        self.session = session or uuid.uuid4().hex[:12]
        self.on_command = on_command
        self._sender = Sender(self.settings, self.topics, self.session, clock)
        self._sender.embeddings.on_written = on_written
        self.announcer = Announcer(self._sender, self.topics)
        self._session = Session(self, self._sender)
        self._clock = clock
        self._event_settings = event_settings
        self._detectors: dict[str, EventDetector] = {}
        self._cameras: set[str] | None = None
        self._event_numbers = itertools.count(1)
        will = Will(self.topics.availability, b"offline")
        self._reconnector = Reconnector(self.settings, will=will, clock=clock, rng=rng)
        self._closing = asyncio.Event()
        self._unknown = 0
        self._next_retry_us: int | None = None

    async def __aenter__(self) -> Self:
        """Open the spool, if there is one. Raises SpoolError or ConfigError on what cannot work."""
        if self.settings.tls is not None:
            await asyncio.to_thread(self.settings.tls.context)  # a wrong file is an error now, not a retry for ever
        await self._sender.spooler.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sender.spooler.close()

    # What the pipeline says

    def publish_feature(self, record: FeatureRecord) -> None:
        """Publish a vector, and the events that it means."""
        lane = self._lane(record.camera)
        if lane is None:
            return
        before = lane.account.encoded
        self._sender.feature(lane, record)
        if lane.account.encoded > before:
            self._detect(record)

    def publish_held(self, record: HeldRecord) -> None:
        """Publish a heartbeat: the last vector still stands."""
        lane = self._lane(record.camera)
        if lane is not None:
            self._sender.heartbeat(lane, record, record.since)
            self._detect(record)

    def publish_tail(self, camera: str, up_to_seq: int, since: Since) -> None:
        """Account for the last frames of a camera that stops."""
        lane = self._lane(camera)
        if lane is not None:
            self._sender.heartbeat(lane, TailMark(up_to_seq, self._clock.unix_us()), since)

    def publish_state(self, record: StateRecord) -> None:
        """Publish what a camera is doing: at once if that changed, else with the next round of states."""
        lane = self._lane(record.camera)
        if lane is None:
            return
        previous, lane.state = lane.state, record
        if previous is None or (previous.state, previous.reason) != (record.state, record.reason):
            self.announcer.state(lane)
            if record.state not in DELIVERING and record.camera in self._detectors:
                self._queue_events(self._detectors[record.camera].lost())

    def publish_fidelity(self, record: FidelityRecord) -> None:
        """Publish how good the vectors of a camera are: at once if its gates were switched, else with the next round of states."""
        lane = self._lane(record.camera)
        if lane is None:
            return
        previous, lane.fidelity = lane.fidelity, record
        if previous is not None and previous.gates != record.gates:
            self.announcer.state(lane)

    def publish_event(self, event: Event) -> None:
        """Publish an event of another origin; QoS 1, kept for an hour while the broker is away. Raises ConfigError on ids."""
        check_id("a camera id", event.camera)
        check_id("an event type", event.type)
        self._queue_events([event])

    def publish_stats(self, figures: Mapping[str, Any]) -> None:
        """Publish figures of the node, as JSON. Raises WireError on what JSON cannot say."""
        body = to_json({"v": SCHEMA, "session": self.session, "at": self._clock.unix_us(), **figures})
        if self._sender.link is not None:
            self._sender.outbox.put_latest(
                Parcel(self.topics.stats, body, qos=0, properties=plain(STATS_EXPIRY_S, JSON))
            )
            self._sender.pump()

    def publish_value(self, camera: str, name: str, value: Any) -> None:
        """Publish, retained, the value of a setting that is in effect. Raises WireError on what JSON cannot say."""
        self.announcer.value(camera, name, value)

    def set_model(self, descriptor: ModelDescriptor) -> None:
        """Publish, retained, which model vectors come from; again whenever it changes."""
        self._sender.embeddings.models[check_id("a model id", descriptor.model_id)] = descriptor
        self.announcer.model(descriptor)
        self.announcer.info()

    def set_cameras(self, cameras: Iterable[str] | Mapping[str, int | None]) -> None:
        """The cameras from now on; retained topics of others are cleared, here and when the broker is back.

        A mapping gives the first frame number of each: what is missing from there on is a hole. None: not known.
        """
        first_seq = dict(cameras) if isinstance(cameras, Mapping) else dict.fromkeys(cameras)
        self._cameras = {check_id("a camera id", camera) for camera in first_seq}
        for camera in self._sender.lanes.keys() - self._cameras:
            self._forget(camera)
        for camera, seq in first_seq.items():
            if camera in self._detectors:
                self._detectors[camera].settings = self._event_settings(camera)
            if camera not in self._sender.lanes:
                lane = self._sender.add_lane(camera)
                lane.account.next_seq = seq
                self.announcer.camera_added(lane)
        self.announcer.info()

    # Running

    async def run(self) -> None:
        """Connect, publish, reconnect for ever; returns after `close`. A cancellation says goodbye to the broker too."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._stay_connected(), name="mqtt-connection"),
                group.create_task(self._keep_spool(), name="mqtt-spool"),
            ]
            try:
                await self._closing.wait()
            finally:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FAREWELL_S):
                        await self._say_goodbye()
                for task in tasks:
                    task.cancel()

    def close(self) -> None:
        """Let `run` send what waits, say `stopped`, and return within `FAREWELL_S` plus a second."""
        self._closing.set()

    def statistics(self) -> PublisherStatistics:
        """Where it stands: counts, stage times, and what is wrong now."""
        sender = self._sender
        problems = [*sender.problems.sentences(), *([sender.spooler.problem] if sender.spooler.problem else [])]
        return PublisherStatistics(
            connected=sender.link is not None,
            protocol=sender.link.protocol if sender.link else None,
            problems=problems,
            connections=self._reconnector.connections,
            next_retry_at_us=self._next_retry_us,
            cameras=self.accounts(),
            percentiles_ms=sender.embeddings.meter.percentiles_ms(),
            budget_hits=sender.embeddings.meter.hits,
            budget_misses=sender.embeddings.meter.misses,
            cold=sender.embeddings.meter.cold,
            unknown_cameras=self._unknown,
            events_waiting=len(sender.outbox.queued),
            spool_dropped=sender.spooler.dropped.total(),
        )

    def accounts(self) -> dict[str, CameraStatistics]:
        """The cameras of `statistics` alone, without the sorting that its percentiles need."""
        return {camera: camera_statistics(lane) for camera, lane in self._sender.lanes.items()}

    async def _stay_connected(self) -> None:
        sender, session = self._sender, self._session
        try:
            await self._reconnector.run(
                lambda: Handlers(session.received, sender.acknowledged, sender.drained), self._serve, self._lost
            )
        finally:
            sender.disconnected("stopped")

    async def _serve(self, link: Link) -> Never:
        self._sender.problems.over("connection")
        self._next_retry_us = None
        log.info("connected to %s, MQTT %s", self.settings.address, link.protocol)
        self._sender.connected(link, self.announcer.everything(link.protocol))
        await self._session.run(link)

    def _lost(self, exc: BrokerError, delay_s: float) -> None:
        self._sender.disconnected(exc.reason)
        self._sender.problems.add("connection", str(exc))
        self._next_retry_us = self._clock.unix_us() + int(delay_s * 1e6)

    async def _keep_spool(self) -> None:
        while self._sender.spooler.enabled:
            await self._sender.spooler.step(want=self._sender.link is not None)
            self._sender.pump()
            await asyncio.sleep(0.1)

    async def _say_goodbye(self) -> None:
        sender = self._sender
        sender.closing = True
        self.announcer.stopped()
        while sender.link is not None and (
            sender.outbox.latest
            or sender.outbox.queued
            or sender.outbox.in_flight
            or any(lane.waiting for lane in sender.lanes.values())
        ):
            sender.pump()
            await asyncio.sleep(0.01)

    # For the session

    def tick(self) -> None:
        """End the events that end by themselves."""
        now_ns = self._clock.monotonic_ns()
        for detector in self._detectors.values():
            self._queue_events(detector.tick(now_ns))

    @property
    def cameras(self) -> set[str] | None:
        """The cameras that `set_cameras` named; None before that."""
        return self._cameras

    @property
    def models(self) -> set[str]:
        """Ids of the models announced so far."""
        return set(self._sender.embeddings.models)

    # Cameras and events

    def _lane(self, camera: str) -> Lane | None:
        lane = self._sender.lanes.get(camera)
        if lane is None and self._cameras is None:
            lane = self._sender.add_lane(check_id("a camera id", camera))
        if lane is None:
            self._unknown += 1  # a straggler of a camera that was removed
        return lane

    def _forget(self, camera: str) -> None:
        del self._sender.lanes[camera]
        detector = self._detectors.pop(camera, None)
        if detector is not None:
            self._queue_events(detector.lost())
        self.announcer.camera_removed(camera)

    def _detect(self, record: FeatureRecord | HeldRecord) -> None:
        detector = self._detectors.get(record.camera)
        if detector is None:
            settings = self._event_settings(record.camera)
            detector = EventDetector(self.node, record.camera, self.session, settings, self._event_numbers)
            self._detectors[record.camera] = detector
        self._queue_events(detector.feed(record, self._clock.monotonic_ns()))

    def _queue_events(self, found: Iterable[Event]) -> None:
        for event in found:
            self._sender.event(event)
