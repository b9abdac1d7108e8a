"""One record of a lane -> packets on the link: the frame's vector, the temporal one, heartbeats; and how they fared."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from streaming import message
from streaming.clock import Clock
from streaming.errors import BrokerError, WireError
from streaming.frames import Since
from streaming.message import CONTENT_TYPE
from streaming.mqtt.compose import Composer, Moment
from streaming.mqtt.lane import Lane, Place, TailMark, Waiting
from streaming.mqtt.link import Link
from streaming.mqtt.measure import BudgetMeter, Written
from streaming.mqtt.parcels import InFlight, Outbox, Parcel, places
from streaming.mqtt.problems import Problems
from streaming.mqtt.properties import plain
from streaming.mqtt.settings import MqttSettings
from streaming.records import FeatureRecord, HeldRecord, ModelDescriptor
from streaming.topics import Topics

PROBE_NS: Final = 30 * 10**9
"""A topic that the broker denied is asked about again after this."""
LASTING_S: Final = 3600
"""Expiry of what must not be lost by a nap of its reader: spooled embeddings and those of files."""


class Embeddings:
    """Writes the records of all lanes to the link that it is given; QoS 1 ones are followed in the outbox."""

    def __init__(
        self,
        *,
        settings: MqttSettings,
        topics: Topics,
        composer: Composer,
        clock: Clock,
        lanes: Mapping[str, Lane],
        outbox: Outbox,
        problems: Problems,
    ) -> None:
        self._settings, self._topics, self._composer, self._clock = settings, topics, composer, clock
        self._lanes, self._outbox, self._problems = lanes, outbox, problems
        self.models: dict[str, ModelDescriptor] = {}
        self.meter = BudgetMeter()
        self.on_written: Callable[[Written], None] | None = None
        self._unwritten: deque[tuple[Lane, FeatureRecord]] = deque()
        self._probed: set[str] = set()
        self._denied_ns: dict[str, int] = {}
        self._awaited: set[str] = set()
        """Cameras whose last embedding, of QoS 1 by configuration, is not acknowledged yet: one in flight each."""

    def may_send(self, camera: str) -> bool:
        """Whether this camera has nothing in flight that must be acknowledged first."""
        return camera not in self._awaited

    @property
    def blocked(self) -> bool:
        """Whether no embedding may go out, as each needs a place in the window of QoS 1."""
        return self._settings.embedding_qos == 1 and not self._outbox.room

    def send(self, link: Link, lane: Lane, waiting: Waiting) -> None:
        """Write one record. Raises BrokerError `closed`, and then it waits again; what cannot be sent is dropped."""
        try:
            if isinstance(waiting.record, FeatureRecord):
                self._send_feature(link, lane, waiting.record, waiting.since)
            else:
                self._send_heartbeat(link, lane, waiting.record, waiting.since)
        except WireError as exc:
            self._give_up(lane, waiting, str(exc))
        except BrokerError as exc:
            if exc.reason != "too_large":
                lane.put_back(waiting)
                raise
            self._give_up(lane, waiting, str(exc))
        else:
            if self._problems:
                self._problems.over(_about(lane))

    def drained(self) -> None:
        """The socket took what it had refused before."""
        written_ns = self._clock.monotonic_ns()
        while self._unwritten:
            self._written(*self._unwritten.popleft(), written_ns)

    def acknowledged(self, parcel: Parcel) -> str | None:
        """A QoS 1 message has its answer: the camera that may send again, if it waited for this one."""
        if parcel.camera not in self._awaited or not parcel.is_embedding:
            return None
        self._awaited.discard(parcel.camera)
        return parcel.camera

    def denied(self, topic: str) -> None:
        """The broker refused a message on this topic: ask again later."""
        self._denied_ns[topic] = self._clock.monotonic_ns() + PROBE_NS

    def accepted(self, topic: str) -> None:
        """The broker took a message on this topic."""
        self._denied_ns.pop(topic, None)

    def disconnected(self) -> None:
        """What was known of the connection is void."""
        self._probed.clear()
        self._awaited.clear()
        self._unwritten.clear()

    def _send_feature(self, link: Link, lane: Lane, record: FeatureRecord, since: Since) -> None:
        now = Moment(self._clock.monotonic_ns(), self._clock.unix_us())
        frame = self._composer.frame(lane, record, since, now)
        body, place = message.encode(frame, self._settings.format), Place(frame.seq, record.frame_seq)
        self._publish(link, lane, record.model_id, body, expiry_s=self._expiry_s(record), place=place)
        lane.account.published += 1
        if record.temporal is not None:
            self._send_temporal(link, lane, record, since, now)
        if link.idle:
            self._written(lane, record, self._clock.monotonic_ns())
        else:
            self._unwritten.append((lane, record))

    def _send_temporal(self, link: Link, lane: Lane, record: FeatureRecord, since: Since, now: Moment) -> None:
        said = lane.temporal_since.add(since)
        try:
            descriptor = self._temporal_model(record.model_id)
            temporal = self._composer.temporal(lane, record, said, now, descriptor)
            body = message.encode(temporal, self._settings.format)
            self._publish(link, lane, descriptor.model_id, body, expiry_s=self._expiry_s(record))
            lane.temporal_since = Since()
        except (WireError, BrokerError) as exc:
            said.drop("failed")  # the frame's own vector has gone out: only this topic's next message tells of it
            self._problems.add(_about(lane), f"a temporal vector of camera {lane.camera} was not sent: {exc}")

    def _temporal_model(self, model_id: str) -> ModelDescriptor:
        for descriptor in self.models.values():
            if descriptor.temporal_of == model_id:
                return descriptor
        raise WireError(f"expected the descriptor of a temporal head over {model_id}, got none yet")

    def _send_heartbeat(self, link: Link, lane: Lane, record: HeldRecord | TailMark, since: Since) -> None:
        now = Moment(self._clock.monotonic_ns(), self._clock.unix_us())
        soon = now.ns - lane.heartbeat_ns < self._settings.heartbeat_s * 1e9
        if not lane.model_id or (soon and isinstance(record, HeldRecord)):
            lane.account.carry(since)
            return
        beat = self._composer.heartbeat(lane, record, since, now)
        body, place = message.encode(beat, self._settings.format), Place(beat.seq, record.frame_seq)
        self._publish(link, lane, lane.model_id, body, expiry_s=self._settings.expiry_s, place=place)
        lane.heartbeat_ns = now.ns
        lane.temporal_since.add(since)

    def _expiry_s(self, record: FeatureRecord) -> int:
        return LASTING_S if record.lossless else self._settings.expiry_s

    def _publish(
        self, link: Link, lane: Lane, model_id: str, payload: bytes, *, expiry_s: int, place: Place | None = None
    ) -> None:
        """Hand over a message; `place` is where it stands in the chain of frames, None for the temporal topic's."""
        now_ns, topic = self._clock.monotonic_ns(), self._topics.embedding(lane.camera, model_id)
        properties = plain(expiry_s, CONTENT_TYPE[self._settings.format])
        qos = self._qos(topic, now_ns)
        mid = link.send(topic, payload, qos=qos, properties=properties)
        lane.advance(model_id)
        lane.sent = place or lane.sent
        if not qos:
            return
        parcel = Parcel(
            topic,
            payload,
            properties=properties,
            expires_ns=now_ns + expiry_s * 10**9,
            camera=lane.camera,
            again=self._settings.embedding_qos == 1,
            is_embedding=True,
        )
        self._outbox.sent(mid, InFlight(parcel, now_ns, places(self._lanes)))
        if self._settings.embedding_qos:
            self._awaited.add(lane.camera)

    def _qos(self, topic: str, now_ns: int) -> int:
        """QoS 1 for the first message on a topic after a connection, else nobody would learn of a denial."""
        if self._settings.embedding_qos:
            return 1
        if topic in self._probed and now_ns < self._denied_ns.get(topic, now_ns + 1):
            return 0
        if not self._outbox.room:
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

    def _give_up(self, lane: Lane, waiting: Waiting, why: str) -> None:
        lane.rejected += 1
        if isinstance(waiting.record, FeatureRecord):
            lane.account.drop(waiting.since, "failed")
        else:
            lane.account.carry(waiting.since)
        self._problems.add(_about(lane), f"a vector of camera {lane.camera} was not sent: {why}")


def _about(lane: Lane) -> str:
    return f"vectors of {lane.camera}"
