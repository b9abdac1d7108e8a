"""What must arrive: states, events and commands' answers, QoS 1, bounded, sent again until acknowledged. Pure."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from streaming.mqtt.lane import Lane, Place
from streaming.mqtt.properties import PublishProperties

MAX_IN_FLIGHT: Final = 16
SPOOL_IN_FLIGHT: Final = 4
"""Of them from the spool: they never fill the window, nor the socket, before live data."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One message, ready to send."""

    topic: str
    payload: bytes
    older: bytes | None = None
    """The payload for MQTT 3.1.1, which has no properties, where it differs."""
    qos: int = 1
    retain: bool = False
    properties: PublishProperties | None = None
    expires_ns: int | None = None
    camera: str = ""
    again: bool = True
    """Sent again after a reconnection if it was not acknowledged. States are not: they are made anew."""
    spool_id: int | None = None
    is_embedding: bool = False


@dataclass(slots=True)
class InFlight:
    """A QoS 1 message without its acknowledgement, and what had been handed to the socket before it."""

    parcel: Parcel
    sent_ns: int
    before: list[tuple[Lane, Place]]


@dataclass(slots=True)
class Outbox:
    """Two kinds of parcels: of `latest` the newest on a topic counts, `queued` go one after the other."""

    max_queued: int
    latest: dict[str, Parcel] = field(default_factory=dict)
    queued: deque[Parcel] = field(default_factory=deque)
    in_flight: dict[int, InFlight] = field(default_factory=dict)
    window: int = MAX_IN_FLIGHT
    dropped: Counter[str] = field(default_factory=Counter)
    """Queued parcels that were given up, by camera."""

    def put_latest(self, parcel: Parcel) -> None:
        """Send this, and nothing older on its topic."""
        self.latest.pop(parcel.topic, None)
        self.latest[parcel.topic] = parcel

    def put(self, parcel: Parcel) -> None:
        """Send this after those that wait; the oldest goes if there are too many."""
        self.queued.append(parcel)
        while len(self.queued) > self.max_queued:
            self.dropped[self.queued.popleft().camera] += 1

    @property
    def room(self) -> bool:
        """Whether one more QoS 1 message may be in flight."""
        return len(self.in_flight) < self.window

    def next(self, now_ns: int) -> Parcel | None:
        """The next parcel to send, taken out; None if there is none or the window is full."""
        if not self.room:
            return None
        if self.latest:
            return self.latest.pop(next(iter(self.latest)))
        while self.queued:
            parcel = self.queued.popleft()
            if parcel.expires_ns is None or parcel.expires_ns > now_ns:
                return parcel
            self.dropped[parcel.camera] += 1
        return None

    def sent(self, mid: int, flight: InFlight) -> None:
        """It is on its way."""
        self.in_flight[mid] = flight

    def acknowledged(self, mid: int) -> InFlight | None:
        """The broker has it, and everything that was sent before it."""
        flight = self.in_flight.pop(mid, None)
        if flight is not None:
            for lane, place in flight.before:
                if lane.confirmed is None or place.seq > lane.confirmed.seq:
                    lane.confirmed = place
        return flight

    def oldest_ns(self) -> int | None:
        """When the oldest unacknowledged message was sent."""
        return min((flight.sent_ns for flight in self.in_flight.values()), default=None)

    def disconnected(self) -> list[Parcel]:
        """What was in flight waits again, in order, ahead of the rest; those of the spool come back."""
        flights = [flight.parcel for flight in self.in_flight.values()]
        self.in_flight.clear()
        self.latest.clear()
        self.queued.extendleft(parcel for parcel in reversed(flights) if parcel.again and parcel.spool_id is None)
        return [parcel for parcel in flights if parcel.spool_id is not None]

    @property
    def spooled_in_flight(self) -> int:
        """How many messages of the spool are unacknowledged."""
        return sum(flight.parcel.spool_id is not None for flight in self.in_flight.values())


def places(lanes: Mapping[str, Lane]) -> list[tuple[Lane, Place]]:
    """Where each camera stands now, for those that have sent something unconfirmed."""
    return [(lane, lane.sent) for lane in lanes.values() if lane.sent is not None and lane.sent != lane.confirmed]


@dataclass(slots=True)
class Outage:
    """What is not delivered while the broker is away, for the event `gap`."""

    since_us: int
    reason: str
    before: dict[str, Counter[str]]
    unconfirmed: dict[str, dict[str, list[int]]]

    @classmethod
    def begin(cls, lanes: Mapping[str, Lane], at_us: int, reason: str) -> "Outage":
        """The connection is gone: note the counts, and the range that the broker may not have got."""
        return cls(
            at_us,
            reason,
            {camera: Counter(lane.account.dropped) for camera, lane in lanes.items()},
            {camera: spans for camera, lane in lanes.items() if (spans := _unconfirmed(lane))},
        )

    def report(
        self, lanes: Mapping[str, Lane], until_us: int, events: Counter[str], spooled: Counter[str]
    ) -> dict[str, Any]:
        """Camera -> what was lost between `begin` and now; empty if nothing was."""
        cameras: dict[str, Any] = {}
        for camera, lane in lanes.items():
            lost = Counter(lane.account.dropped) - self.before.get(camera, Counter())
            dropped = {cause: lost[cause] for cause in ("broker_away", "expired") if lost[cause]}
            entry = {
                "dropped": dropped,
                "spooled": spooled[camera],
                "events_dropped": events[camera],
                "unconfirmed": self.unconfirmed.get(camera),
            }
            if any(entry.values()):
                cameras[camera] = entry
        return {"from": self.since_us, "until": until_us, "reason": self.reason, "cameras": cameras} if cameras else {}


def _unconfirmed(lane: Lane) -> dict[str, list[int]] | None:
    if lane.sent is None or lane.sent == lane.confirmed:
        return None
    known = lane.confirmed or Place(-1, -1)
    return {"seq": [known.seq + 1, lane.sent.seq], "frame_seq": [known.frame_seq + 1, lane.sent.frame_seq]}
