"""The publisher: what the pipeline finds, to the broker, whatever the broker does.

    async with Publisher(MqttSettings(host="broker.local"), node="edge1") as publisher:
        publisher.set_cameras(["front"])
        await publisher.run()  # beside it, in another task: publisher.publish_feature(record)

All `publish_*` and `set_*` return at once; they are called from the event loop that runs the publisher.
"""

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Final, Self

from streaming import events
from streaming.clock import SYSTEM_CLOCK, Clock
from streaming.errors import BrokerError
from streaming.events import Event, EventDetector, EventSettings
from streaming.frames import Since
from streaming.mqtt.compose import to_json
from streaming.mqtt.lane import Lane, TailMark
from streaming.mqtt.link import Handlers, ProtocolMemory, Will, connect
from streaming.mqtt.measure import Percentiles, Written
from streaming.mqtt.parcels import Parcel
from streaming.mqtt.properties import PublishProperties, plain
from streaming.mqtt.sender import Sender
from streaming.mqtt.session import Session
from streaming.mqtt.settings import MqttSettings
from streaming.records import FeatureRecord, HeldRecord, ModelDescriptor, StateRecord
from streaming.retry import Backoff
from streaming.topics import Topics, check_id

log = logging.getLogger("camvec.mqtt")

LONG_LIVED_NS: Final = 30 * 10**9
"""Only a connection that has lived this long resets the back-off: else a broker that kicks us is stormed."""
SLOW_RETRY_S: Final = {"taken_over": 30.0, "auth": 10.0, "tls": 10.0}
FAREWELL_S: Final = 1.5
STATS_EXPIRY_S: Final = 60
JSON: Final = "application/json"
DELIVERING: Final = frozenset({"streaming"})

Command = Callable[[str, str, Any], Awaitable[Any] | Any]
"""(camera, name, wanted value) -> the value in effect. Raises ValueError, with a sentence, if it cannot be."""


@dataclass(frozen=True)
class CameraStatistics:
    """What became of the frames of a camera; see `streaming.accounting.CameraAccount`."""

    encoded: int
    published: int
    held: int
    dropped: dict[str, int]
    waiting: int
    accounted_upto: int
    duplicates: int
    restarts: int
    rejected: int


@dataclass(frozen=True)
class PublisherStatistics:
    """The publisher at one moment."""

    connected: bool
    protocol: str | None
    problems: list[str]
    connections: int
    cameras: dict[str, CameraStatistics]
    percentiles_ms: dict[str, Percentiles]
    budget_hits: int
    budget_misses: int
    cold: int
    unknown_cameras: int
    events_waiting: int
    spool_dropped: int = 0
    counters: dict[str, int] = field(default_factory=dict)


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
        self._sender.on_written = on_written
        self._clock = clock
        self._event_settings = event_settings
        self._detectors: dict[str, EventDetector] = {}
        self._cameras: set[str] | None = None
        self._values: dict[str, bytes] = {}
        self._to_clear: set[str] = set()
        """Retained topics of cameras that are gone, until the broker confirms."""
        self._rates: dict[str, tuple[int, int, float]] = {}
        self._memory = ProtocolMemory()
        self._backoff = Backoff(rng=rng or random.Random())  # noqa: S311 - jitter, no secret
        self._closing = asyncio.Event()
        self._started_us = clock.unix_us()
        self._connections = 0
        self._unknown = 0
        self._said = ""

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
            self._announce_state(lane)
            if record.state not in DELIVERING and record.camera in self._detectors:
                self._queue_events(self._detectors[record.camera].lost())

    def publish_event(self, event: Event) -> None:
        """Publish an event of another origin; QoS 1, kept for an hour while the broker is away."""
        self._queue_events([event])

    def publish_stats(self, figures: Mapping[str, Any]) -> None:
        """Publish figures of the node, as JSON. Raises WireError on what JSON cannot say."""
        body = {"v": 1, "session": self.session, "at": self._clock.unix_us(), **figures}
        self._announce(Parcel(self.topics.stats, to_json(body), qos=0, properties=plain(STATS_EXPIRY_S, JSON)))

    def publish_value(self, camera: str, name: str, value: Any) -> None:
        """Publish, retained, the value of a setting that is in effect. Raises WireError on what JSON cannot say."""
        topic = self.topics.value(check_id("a camera id", camera), check_id("a setting", name))
        self._values[topic] = to_json(value)
        self._announce(self._retained(topic, self._values[topic]))

    def set_model(self, descriptor: ModelDescriptor) -> None:
        """Publish, retained, which model vectors come from; again whenever it changes."""
        self._sender.models[check_id("a model id", descriptor.model_id)] = descriptor
        self._announce_model(descriptor)
        self._announce_info()

    def set_cameras(self, cameras: Iterable[str] | Mapping[str, int | None]) -> None:
        """The cameras from now on; retained topics of others are cleared, here and when the broker is back.

        A mapping gives the first frame number of each: what is missing from there on is a hole. None: not known.
        """
        first_seq = dict(cameras) if isinstance(cameras, Mapping) else dict.fromkeys(cameras)
        self._cameras = {check_id("a camera id", camera) for camera in first_seq}
        for camera in self._sender.lanes.keys() - self._cameras:
            self._forget(camera)
        for camera, seq in first_seq.items():
            if camera not in self._sender.lanes:
                lane = self._sender.lanes[camera] = Lane(camera)
                lane.account.next_seq = seq
                self._to_clear.discard(self.topics.state(camera))
                self._announce_state(lane)
        self._announce_info()

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
        problems = [*sender.problems.values(), *([sender.spooler.problem] if sender.spooler.problem else [])]
        return PublisherStatistics(
            connected=sender.link is not None,
            protocol=sender.link.protocol if sender.link else None,
            problems=problems,
            connections=self._connections,
            cameras={camera: _camera_statistics(lane) for camera, lane in sender.lanes.items()},
            percentiles_ms=sender.meter.percentiles_ms(),
            budget_hits=sender.meter.hits,
            budget_misses=sender.meter.misses,
            cold=sender.meter.cold,
            unknown_cameras=self._unknown,
            events_waiting=len(sender.outbox.queued),
            spool_dropped=sender.spooler.dropped.total(),
        )

    async def _stay_connected(self) -> None:
        closed_early = 0
        while True:
            began_ns, connections = self._clock.monotonic_ns(), self._connections
            try:
                await self._one_connection()
            except BrokerError as exc:
                self._sender.disconnected(exc.reason)
                long_lived = self._clock.monotonic_ns() - began_ns >= LONG_LIVED_NS
                if long_lived:
                    self._backoff.reset()
                early = self._connections > connections and not long_lived and exc.reason == "closed"
                closed_early = closed_early + 1 if early else 0
                delay_s = max(self._backoff.next_s(), SLOW_RETRY_S.get(exc.reason, 0.0))
                self._complain(self._with_hint(exc, closed_early), delay_s)
            finally:
                self._sender.disconnected("stopped")
            await asyncio.sleep(delay_s)

    def _with_hint(self, exc: BrokerError, closed_early: int) -> BrokerError:
        """MQTT 3.1.1 and some brokers of MQTT 5 do not say that another client took our place."""
        if closed_early < 2:
            return exc
        hint = f"soon after it accepted it, again: does another client use the id {self.settings.client_id!r}?"
        return BrokerError(exc.reason, f"{exc} {hint}")

    async def _one_connection(self) -> None:
        """One connection from CONNECT to its end, which is always a BrokerError."""
        session = Session(self, self._sender)
        handlers = Handlers(session.received, self._sender.acknowledged, self._sender.drained)
        will = Will(self.topics.availability, b"offline")
        async with connect(self.settings, handlers, will=will, memory=self._memory) as link:
            self._connections += 1
            self._sender.problems.pop("connection", None)
            self._said = ""
            log.info("connected to %s, MQTT %s", self.settings.address, link.protocol)
            self._sender.connected(link, self.announcements(link.protocol))
            await session.run(link)

    async def _keep_spool(self) -> None:
        while self._sender.spooler.enabled:
            await self._sender.spooler.step(want=self._sender.link is not None)
            self._sender.pump()
            await asyncio.sleep(0.1)

    async def _say_goodbye(self) -> None:
        sender = self._sender
        sender.closing = True
        self._announce(self._retained(self.topics.availability, b"stopped"))
        while sender.link is not None and (
            sender.outbox.latest
            or sender.outbox.queued
            or sender.outbox.in_flight
            or any(lane.waiting for lane in sender.lanes.values())
        ):
            sender.pump()
            await asyncio.sleep(0.01)

    def _complain(self, exc: BrokerError, delay_s: float) -> None:
        self._sender.problems["connection"] = str(exc)
        if str(exc) != self._said:
            self._said = str(exc)
            log.warning("%s; trying again in %.1f s", exc, delay_s)

    # Announcements

    def announcements(self, protocol: str) -> list[Parcel]:
        """Everything retained, for a broker that may know nothing of us."""
        parcels = [self._retained(self.topics.availability, b"online"), self._info(protocol)]
        parcels += [self._retained(topic, b"") for topic in sorted(self._to_clear)]
        parcels += [self._model(descriptor) for descriptor in self._sender.models.values()]
        parcels += [self._state(lane) for lane in self._sender.lanes.values()]
        return parcels + [self._retained(topic, value) for topic, value in self._values.items()]

    def every_second(self) -> None:
        """End the events that end by themselves."""
        now_ns = self._clock.monotonic_ns()
        for detector in self._detectors.values():
            self._queue_events(detector.tick(now_ns))

    def announce_states(self) -> None:
        """Publish the state of every camera; without any, that we are there: the broker's answer shows that it lives."""
        for lane in self._sender.lanes.values():
            self._sender.outbox.put_latest(self._state(lane))
        if not self._sender.lanes:
            self._sender.outbox.put_latest(self._retained(self.topics.availability, b"online"))
        self._sender.pump()

    def clear(self, topics: Iterable[str]) -> None:
        """Remove retained messages, now and at each connection until this session ends."""
        for topic in topics:
            self._to_clear.add(topic)
            self._announce(self._retained(topic, b""))

    @property
    def cameras(self) -> set[str] | None:
        """The cameras that `set_cameras` named; None before that."""
        return self._cameras

    @property
    def models(self) -> set[str]:
        """Ids of the models announced so far."""
        return set(self._sender.models)

    def _announce(self, parcel: Parcel) -> None:
        if self._sender.link is not None:  # else a connection announces all of it anyway
            self._sender.outbox.put_latest(parcel)
            self._sender.pump()

    def _announce_info(self) -> None:
        if self._sender.link is not None:
            self._announce(self._info(self._sender.link.protocol))

    def _announce_model(self, descriptor: ModelDescriptor) -> None:
        self._announce(self._model(descriptor))

    def _announce_state(self, lane: Lane) -> None:
        if self._sender.link is not None:
            self._announce(self._state(lane))

    def _info(self, protocol: str) -> Parcel:
        body = self._sender.composer.info(
            version=_version(),
            node=self.node,
            started_us=self._started_us,
            cameras=self._sender.lanes,
            models=self._sender.models,
            protocol=protocol,
        )
        return self._retained(self.topics.info, body)

    def _model(self, descriptor: ModelDescriptor) -> Parcel:
        return self._retained(self.topics.model(descriptor.model_id), self._sender.composer.model(descriptor))

    def _state(self, lane: Lane) -> Parcel:
        now = self._sender.now()
        published, at_ns, fps = self._rates.get(lane.camera, (lane.account.published, now.ns, 0.0))
        if now.ns - at_ns > 10**9:
            fps = (lane.account.published - published) / (now.ns - at_ns) * 1e9
            published, at_ns = lane.account.published, now.ns
        self._rates[lane.camera] = (published, at_ns, fps)
        return self._retained(self.topics.state(lane.camera), self._sender.composer.state(lane, now, fps))

    def _retained(self, topic: str, payload: bytes) -> Parcel:
        content = "" if topic == self.topics.availability or not payload else JSON
        return Parcel(topic, payload, retain=True, properties=plain(None, content), again=False)

    # Cameras and events

    def _lane(self, camera: str) -> Lane | None:
        lane = self._sender.lanes.get(camera)
        if lane is None and self._cameras is None:
            lane = self._sender.lanes[check_id("a camera id", camera)] = Lane(camera)
        if lane is None:
            self._unknown += 1  # a straggler of a camera that was removed
        return lane

    def _forget(self, camera: str) -> None:
        del self._sender.lanes[camera]
        self._rates.pop(camera, None)
        detector = self._detectors.pop(camera, None)
        if detector is not None:
            self._queue_events(detector.lost())
        prefix = self.topics.value(camera, "")
        values = [topic for topic in self._values if topic.startswith(prefix)]
        for topic in values:
            del self._values[topic]
        self.clear([self.topics.state(camera), *values])

    def _detect(self, record: FeatureRecord | HeldRecord) -> None:
        detector = self._detectors.get(record.camera)
        if detector is None:
            detector = EventDetector(self.node, record.camera, self.session, self._event_settings(record.camera))
            self._detectors[record.camera] = detector
        self._queue_events(detector.feed(record, self._clock.monotonic_ns()))

    def _queue_events(self, found: Iterable[Event]) -> None:
        expiry_s = self.settings.event_expiry_s
        for event in found:
            user = tuple(events.attributes(event, self.settings.root).items())
            self._sender.outbox.put(
                Parcel(
                    self.topics.event(event.camera, event.type),
                    events.encode_binary(event),
                    older=events.encode_structured(event, self.settings.root),
                    properties=PublishProperties(expiry_s=expiry_s, content_type=JSON, user=user),
                    expires_ns=self._clock.monotonic_ns() + expiry_s * 10**9,
                    camera=event.camera,
                )
            )
            self._sender.pump()


def _camera_statistics(lane: Lane) -> CameraStatistics:
    account = lane.account
    return CameraStatistics(
        encoded=account.encoded,
        published=account.published,
        held=account.held,
        dropped=dict(account.dropped),
        waiting=len(lane.waiting),
        accounted_upto=account.accounted_upto,
        duplicates=account.duplicates,
        restarts=account.restarts,
        rejected=lane.rejected,
    )


def _version() -> str:
    try:
        return version("camvec")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
