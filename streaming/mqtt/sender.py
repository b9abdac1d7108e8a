"""The data path of the publisher: records and parcels in, packets out. One thread, never blocks, never awaits.

While there is a link and its socket takes everything, a record is on the wire before `feature` returns. Otherwise one
record of each camera waits, and whatever the wait costs is booked by cause.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Final

from streaming import events
from streaming.clock import Clock
from streaming.errors import BrokerError, WireError
from streaming.events import Event
from streaming.frames import DropCause, Since
from streaming.message import CONTENT_TYPE
from streaming.mqtt.compose import Composer, Moment
from streaming.mqtt.embeddings import LASTING_S, Embeddings
from streaming.mqtt.lane import Lane, TailMark, Waiting
from streaming.mqtt.link import Link
from streaming.mqtt.parcels import MAX_IN_FLIGHT, SPOOL_IN_FLIGHT, InFlight, Outage, Outbox, Parcel, places
from streaming.mqtt.problems import Problems
from streaming.mqtt.properties import PublishProperties, plain
from streaming.mqtt.settings import MqttSettings
from streaming.mqtt.spooler import Spooler
from streaming.records import FeatureRecord, HeldRecord
from streaming.topics import Topics

log = logging.getLogger("camvec.mqtt")

BURST: Final = 64
"""Packets before the event loop gets its turn again."""


class Sender:
    """Lanes, outbox and spool in front of at most one link."""

    def __init__(self, settings: MqttSettings, topics: Topics, session: str, clock: Clock) -> None:
        self.settings = settings
        self.topics = topics
        self.clock = clock
        self.composer = Composer(settings, session)
        self.lanes: dict[str, Lane] = {}
        self.outbox = Outbox(settings.max_events)
        self.spooler = Spooler(settings)
        self.problems = Problems()
        self.embeddings = Embeddings(
            settings=settings,
            topics=topics,
            composer=self.composer,
            clock=clock,
            lanes=self.lanes,
            outbox=self.outbox,
            problems=self.problems,
        )
        self.link: Link | None = None
        self.closing = False
        """Only what is live goes out any more; the spool keeps the rest."""
        self.stuck_ns: int | None = None
        """Since when the socket has not taken everything."""
        self._outage = Outage.begin({}, clock.unix_us(), "not connected yet")
        self._ready: dict[str, None] = {}
        self._seqs: dict[str, dict[str, int]] = {}
        self._pumping = False

    def now(self) -> Moment:
        """This instant."""
        return Moment(self.clock.monotonic_ns(), self.clock.unix_us())

    def add_lane(self, camera: str) -> Lane:
        """A camera that is new, or back: its messages count on where they were."""
        lane = self.lanes[camera] = Lane(camera, seqs=self._seqs.setdefault(camera, {}))
        return lane

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

    def event(self, event: Event) -> None:
        """Send an event; it waits for the broker for an hour, and is sent again until it is acknowledged."""
        expiry_s, user = self.settings.event_expiry_s, tuple(events.attributes(event, self.settings.root).items())
        self.outbox.put(
            Parcel(
                self.topics.event(event.camera, event.type),
                events.encode_binary(event),
                older=events.encode_structured(event, self.settings.root),
                properties=PublishProperties(expiry_s=expiry_s, content_type="application/json", user=user),
                expires_ns=self.clock.monotonic_ns() + expiry_s * 10**9,
                camera=event.camera,
            )
        )
        self.pump()

    def expire(self) -> None:
        """Drop the embeddings that are too old to be sent."""
        now_ns = self.clock.monotonic_ns()
        for lane in self.lanes.values():
            self._to_spool(lane, lane.expire(now_ns, self.settings.expiry_s * 10**9))

    # The link

    def connected(self, link: Link, announcements: Iterable[Parcel]) -> None:
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
        self.embeddings.disconnected()
        self._outage = Outage.begin(self.lanes, self.clock.unix_us(), reason)

    def acknowledged(self, mid: int, code: int) -> None:
        """A QoS 1 message was taken, or (code 128 and above) refused."""
        flight = self.outbox.acknowledged(mid)
        if flight is None:
            return
        parcel = flight.parcel
        camera = self.embeddings.acknowledged(parcel)
        if camera is not None:
            self._ready[camera] = None
        if code >= 128:
            self._denied(parcel, code)
        else:
            self.embeddings.accepted(parcel.topic)
            self.problems.over(parcel.topic)
            if parcel.spool_id is not None:
                self.spooler.acknowledged(parcel.spool_id)
        asyncio.get_running_loop().call_soon(self.pump)

    def drained(self) -> None:
        """The socket took what it had refused before."""
        self.stuck_ns = None
        self.embeddings.drained()
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
                if not (self._ready or self.outbox.latest or self.outbox.queued or self.spooler.enabled):
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
        if self.closing or not self.outbox.room or self.outbox.spooled_in_flight >= SPOOL_IN_FLIGHT:
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
            self.problems.add(parcel.topic, f"{parcel.topic} was not sent: {exc}")
            return
        if parcel.qos:
            self.outbox.sent(mid, InFlight(parcel, now_ns, places(self.lanes)))

    def _send_record(self) -> bool:
        """The next record, of the cameras in turn."""
        assert self.link is not None  # noqa: S101 - the pump has looked
        while self._ready and not self.embeddings.blocked:
            camera = next(iter(self._ready))
            del self._ready[camera]
            lane = self.lanes.get(camera)
            if lane is None or not self.embeddings.may_send(camera):
                continue
            lane.expire(self.clock.monotonic_ns(), self.settings.expiry_s * 10**9)
            if not lane.waiting:
                continue
            self.embeddings.send(self.link, lane, lane.take())
            if lane.waiting:
                self._ready[camera] = None
            return True
        return False

    # What does not go out

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
        lost_events, self.outbox.dropped = self.outbox.dropped, Counter()
        spooled, self.spooler.spooled = self.spooler.spooled, Counter()
        now = self.now()
        report = self._outage.report(self.lanes, now.unix_us, lost_events, spooled)
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
        self.problems.add(parcel.topic, said)
        self.embeddings.denied(parcel.topic)
        if parcel.spool_id is None and parcel.again:
            self.outbox.dropped[parcel.camera] += 1
