"""The data path of the publisher: records and parcels in, packets out. One thread, never blocks, never awaits.

While there is a link and its socket takes everything, a record is on the wire before `feature` returns. Otherwise one
record of each camera waits, and whatever the wait costs is booked by cause.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from streaming import message
from streaming.clock import Clock
from streaming.errors import BrokerError, WireError
from streaming.frames import DropCause, Since
from streaming.message import CONTENT_TYPE
from streaming.mqtt.compose import Composer, Moment
from streaming.mqtt.lane import Lane, Place, TailMark, Waiting
from streaming.mqtt.link import Link
from streaming.mqtt.measure import BudgetMeter, Written
from streaming.mqtt.parcels import MAX_IN_FLIGHT, SPOOL_IN_FLIGHT, InFlight, Outage, Outbox, Parcel, places
from streaming.mqtt.properties import plain
from streaming.mqtt.settings import MqttSettings
from streaming.mqtt.spooler import Spooler
from streaming.records import FeatureRecord, HeldRecord, ModelDescriptor
from streaming.topics import Topics

log = logging.getLogger("camvec.mqtt")

BURST: Final = 64
"""Packets before the event loop gets its turn again."""
PROBE_NS: Final = 30 * 10**9
"""A topic that the broker denied is asked about again after this."""
LASTING_S: Final = 3600
"""Expiry of what must not be lost by a nap of its reader: spooled embeddings and those of files."""


class Sender:
    """Lanes, outbox and spool in front of at most one link."""

    def __init__(self, settings: MqttSettings, topics: Topics, session: str, clock: Clock) -> None:
        self.settings = settings
        self.topics = topics
        self.clock = clock
        self.composer = Composer(settings, session)
        self.lanes: dict[str, Lane] = {}
        self.models: dict[str, ModelDescriptor] = {}
        self.outbox = Outbox(settings.max_events)
        self.spooler = Spooler(settings)
        self.meter = BudgetMeter()
        self.problems: dict[str, str] = {}
        """What is wrong now, one sentence each, by what it is about."""
        self.on_written: Callable[[Written], None] | None = None
        self.link: Link | None = None
        self.closing = False
        """Only what is live goes out any more; the spool keeps the rest."""
        self.stuck_ns: int | None = None
        """Since when the socket has not taken everything."""
        self._outage = Outage.begin({}, clock.unix_us(), "not connected yet")
        self._ready: dict[str, None] = {}
        self._unwritten: deque[tuple[Lane, FeatureRecord]] = deque()
        self._probed: set[str] = set()
        self._denied_ns: dict[str, int] = {}
        self._awaited: set[str] = set()
        """Cameras whose last embedding, of QoS 1 by configuration, is not acknowledged yet."""
        self._pumping = False

    def now(self) -> Moment:
        """This instant."""
        return Moment(self.clock.monotonic_ns(), self.clock.unix_us())

    # What comes in

    def feature(self, lane: Lane, record: FeatureRecord) -> None:
        """Send a vector, now or as soon as the broker takes it."""
        pushed_out = lane.offer(record, self.clock.monotonic_ns(), self._cause)
        self._to_spool(lane, pushed_out)
        self._ready[lane.camera] = None
        self.pump()

    def heartbeat(self, lane: Lane, record: HeldRecord | TailMark, since: Since) -> None:
        """Say that a camera holds, or that nothing more is coming of it."""
        lane.offer_held(record, since, self.clock.monotonic_ns())
        self._ready[lane.camera] = None
        self.pump()

    def expire(self) -> None:
        """Drop the embeddings that are too old to be sent."""
        now_ns = self.clock.monotonic_ns()
        for lane in self.lanes.values():
            self._to_spool(lane, lane.expire(now_ns, self.settings.expiry_s * 10**9))

    # The link

    def connected(self, link: Link, announcements: list[Parcel]) -> None:
        """There is a broker: announce, tell what was missed, go on."""
        self.link, self.stuck_ns = link, None
        self.outbox.window = min(MAX_IN_FLIGHT, link.limits.receive_maximum)
        for parcel in announcements:
            self.outbox.put_latest(parcel)
        self.expire()
        self._report_outage()
        self._ready = dict.fromkeys(self.lanes)
        self.pump()

    def disconnected(self, reason: str) -> None:
        """The broker is gone; what was in flight waits again, what cannot wait is counted from here."""
        if self.link is None:
            return
        self.link = None
        self.outbox.disconnected()
        self.spooler.rewind()
        self._probed.clear()
        self._awaited.clear()
        self._unwritten.clear()
        self._outage = Outage.begin(self.lanes, self.clock.unix_us(), reason)

    def acknowledged(self, mid: int, code: int) -> None:
        """A QoS 1 message was taken, or (code 128 and above) refused."""
        flight = self.outbox.acknowledged(mid)
        if flight is None:
            return
        parcel = flight.parcel
        if parcel.camera in self._awaited and parcel.topic.startswith(self.topics.embedding(parcel.camera, "")):
            self._awaited.discard(parcel.camera)
            self._ready[parcel.camera] = None
        if code >= 128:
            self._denied(parcel, code)
        else:
            self._denied_ns.pop(parcel.topic, None)
            self.problems.pop(parcel.topic, None)
            if parcel.spool_id is not None:
                self.spooler.acknowledged(parcel.spool_id)
        asyncio.get_running_loop().call_soon(self.pump)

    def drained(self) -> None:
        """The socket took what it had refused before."""
        self.stuck_ns = None
        written_ns = self.clock.monotonic_ns()
        while self._unwritten:
            self._written(*self._unwritten.popleft(), written_ns)
        self.pump()

    # What goes out

    def pump(self) -> None:
        """Send what waits while the socket takes it: what must arrive first, then live vectors in turn, then the spool."""
        if self._pumping or self.link is None:
            return
        self._pumping = True
        try:
            for _ in range(BURST):
                if not self.link.idle or not (self._send_parcel() or self._send_record() or self._send_spooled()):
                    break
            else:
                asyncio.get_running_loop().call_soon(self.pump)
            if not self.link.idle and self.stuck_ns is None:
                self.stuck_ns = self.clock.monotonic_ns()
        except BrokerError as exc:
            log.debug("while sending: %s", exc)  # the session is told by the link itself
        finally:
            self._pumping = False

    @property
    def _cause(self) -> DropCause:
        return "broker_away" if self.link is None else "publisher_behind"

    def _send_parcel(self) -> bool:
        now_ns = self.clock.monotonic_ns()
        parcel = self.outbox.next(now_ns)
        if parcel is not None:
            self._send(parcel, now_ns)
        return parcel is not None

    def _send_spooled(self) -> bool:
        if self.closing:
            return False
        room = min(SPOOL_IN_FLIGHT, self.outbox.window) - self.outbox.spooled_in_flight
        if room <= 0 or len(self.outbox.in_flight) >= self.outbox.window:
            return False
        item = self.spooler.next()
        if item is None:
            return False
        properties = plain(LASTING_S, CONTENT_TYPE[self.settings.format])
        parcel = Parcel(item.topic, item.payload, properties=properties, camera=item.camera, spool_id=item.id)
        self._send(parcel, self.clock.monotonic_ns())
        return True

    def _send(self, parcel: Parcel, now_ns: int) -> None:
        assert self.link is not None  # noqa: S101 - the pump has looked
        payload = parcel.payload if parcel.older is None or self.link.protocol == "5" else parcel.older
        try:
            mid = self.link.send(
                parcel.topic, payload, qos=parcel.qos, retain=parcel.retain, properties=parcel.properties
            )
        except BrokerError as exc:
            if exc.reason != "too_large":
                raise
            self._problem(parcel.topic, f"{parcel.topic} was not sent: {exc}")
            return
        if parcel.qos:
            self.outbox.sent(mid, InFlight(parcel, now_ns, places(self.lanes)))

    def _send_record(self) -> bool:
        if self.settings.embedding_qos and len(self.outbox.in_flight) >= self.outbox.window:
            return False
        while self._ready:
            camera = next(iter(self._ready))
            del self._ready[camera]
            lane = self.lanes.get(camera)
            if lane is None or not lane.waiting or camera in self._awaited:
                continue
            self._send_waiting(lane, lane.take())
            if lane.waiting:
                self._ready[camera] = None
            return True
        return False

    def _send_waiting(self, lane: Lane, waiting: Waiting) -> None:
        record = waiting.record
        try:
            if isinstance(record, FeatureRecord):
                self._send_feature(lane, record, waiting.since)
            else:
                self._send_heartbeat(lane, record, waiting.since)
        except WireError as exc:
            self._give_up(lane, waiting, str(exc))
        except BrokerError as exc:
            if exc.reason != "too_large":
                lane.put_back(waiting)
                raise
            self._give_up(lane, waiting, str(exc))

    def _send_feature(self, lane: Lane, record: FeatureRecord, since: Since) -> None:
        now = self.now()
        frame = self.composer.frame(lane, record, since, now)
        body = message.encode(frame, self.settings.format)
        self._publish(lane, record.model_id, body, self._expiry_s(record), Place(frame.seq, record.frame_seq))
        lane.account.published += 1
        self._send_temporal(lane, record, since, now)
        if self.link is not None and self.link.idle:
            self._written(lane, record, self.clock.monotonic_ns())
        else:
            self._unwritten.append((lane, record))

    def _send_temporal(self, lane: Lane, record: FeatureRecord, since: Since, now: Moment) -> None:
        if record.temporal is None:
            return
        descriptor = next((one for one in self.models.values() if one.temporal_of == record.model_id), None)
        if descriptor is None:
            self._problem("temporal", f"vectors of the temporal head over {record.model_id} come without a descriptor")
            return
        said = lane.temporal_since.add(since)
        try:
            body = message.encode(self.composer.temporal(lane, record, said, now, descriptor), self.settings.format)
            self._publish(lane, descriptor.model_id, body, self._expiry_s(record), None)
            lane.temporal_since = Since()
        except (WireError, BrokerError) as exc:
            said.drop("failed")  # the frame's own vector has gone out: only this topic's next message tells of it
            self._problem(f"temporal vectors of {lane.camera}", f"a temporal vector was not sent: {exc}")

    def _send_heartbeat(self, lane: Lane, record: HeldRecord | TailMark, since: Since) -> None:
        now = self.now()
        soon = now.ns - lane.heartbeat_ns < self.settings.heartbeat_s * 1e9
        if not lane.model_id or (soon and isinstance(record, HeldRecord)):
            lane.account.carry(since)
            return
        beat = self.composer.heartbeat(lane, record, since, now)
        body = message.encode(beat, self.settings.format)
        self._publish(lane, lane.model_id, body, self.settings.expiry_s, Place(beat.seq, record.frame_seq))
        lane.heartbeat_ns = now.ns
        lane.temporal_since.add(since)

    def _expiry_s(self, record: FeatureRecord) -> int:
        return LASTING_S if record.lossless else self.settings.expiry_s

    def _publish(self, lane: Lane, model_id: str, payload: bytes, expiry_s: int, place: Place | None) -> None:
        """Hand over a message of a lane; `place` is where it stands in the chain, for the topic that is tracked."""
        assert self.link is not None  # noqa: S101 - the pump has looked
        now_ns = self.clock.monotonic_ns()
        topic = self.topics.embedding(lane.camera, model_id)
        properties = plain(expiry_s, CONTENT_TYPE[self.settings.format])
        qos = self._qos(topic, now_ns)
        mid = self.link.send(topic, payload, qos=qos, properties=properties)
        lane.advance(model_id)
        lane.sent = place or lane.sent
        if qos:
            parcel = Parcel(
                topic,
                payload,
                properties=properties,
                expires_ns=now_ns + expiry_s * 10**9,
                camera=lane.camera,
                again=self.settings.embedding_qos == 1,
            )
            self.outbox.sent(mid, InFlight(parcel, now_ns, places(self.lanes)))
            if self.settings.embedding_qos:
                self._awaited.add(lane.camera)

    def _qos(self, topic: str, now_ns: int) -> int:
        """QoS 1 for the first message on a topic after a connection, else nobody would learn of a denial."""
        if self.settings.embedding_qos:
            return 1
        probe = topic not in self._probed or now_ns >= self._denied_ns.get(topic, now_ns + 1)
        if not probe or len(self.outbox.in_flight) >= self.outbox.window:
            return 0
        self._probed.add(topic)
        if topic in self._denied_ns:
            self._denied_ns[topic] = now_ns + PROBE_NS
        return 1

    def _written(self, lane: Lane, record: FeatureRecord, written_ns: int) -> None:
        written = self.meter.written(record, written_ns)
        lane.publish_us, lane.lag_ms = written.publish_us, written.total_us / 1000
        if self.on_written is not None:
            self.on_written(written)

    # What does not go out

    def _give_up(self, lane: Lane, waiting: Waiting, why: str) -> None:
        lane.rejected += 1
        if isinstance(waiting.record, FeatureRecord):
            lane.account.drop(waiting.since, "failed")
        else:
            lane.account.carry(waiting.since)
        self._problem(f"vectors of {lane.camera}", f"a vector of camera {lane.camera} was not sent: {why}")

    def _to_spool(self, lane: Lane, dropped: list[Waiting]) -> None:
        if not self.spooler.enabled or self.link is not None:
            return
        for waiting in dropped:
            assert isinstance(waiting.record, FeatureRecord)  # noqa: S101 - lanes give back nothing else
            try:
                payload = self.composer.spooled(waiting, lane, self.now())
            except WireError:
                continue  # counted as dropped like any other; the next live one will name the problem
            self.spooler.put(lane.camera, self.topics.embedding(lane.camera, waiting.record.model_id), payload)

    def _report_outage(self) -> None:
        events, self.outbox.dropped = self.outbox.dropped, Counter()
        spooled, self.spooler.spooled = self.spooler.spooled, Counter()
        now = self.now()
        report = self._outage.report(self.lanes, now.unix_us, events, spooled)
        if report:
            expiry_s = self.settings.event_expiry_s
            self.outbox.put(
                Parcel(
                    self.topics.gap,
                    self.composer.gap(report, now),
                    properties=plain(expiry_s, "application/json"),
                    expires_ns=now.ns + expiry_s * 10**9,
                )
            )

    def _denied(self, parcel: Parcel, code: int) -> None:
        who = f"user {self.settings.username!r}" if self.settings.username else "a client without a user name"
        why = "not authorized" if code == 135 else f"reason code {code}"
        said = f"the broker denies {who} to publish to {parcel.topic} ({why}): allow it in the broker's ACL"
        self._problem(parcel.topic, said)
        self._denied_ns[parcel.topic] = self.clock.monotonic_ns() + PROBE_NS
        if parcel.spool_id is None and parcel.again:
            self.outbox.dropped[parcel.camera] += 1

    def _problem(self, about: str, said: str) -> None:
        if self.problems.get(about) != said:
            self.problems[about] = said
            log.warning("%s", said)
