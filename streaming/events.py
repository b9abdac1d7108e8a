"""Events of a camera from what its records say: `scene_change` and `activity`, with a beginning and an end. Pure.

Durations are CLOCK_MONOTONIC as handed in, times in events are Unix microseconds of the pictures. On the wire an event
is a CloudEvent (https://github.com/cloudevents/spec, 1.0, MQTT binding): attributes as user properties where the broker
speaks MQTT 5 ("binary mode"), one JSON object with attributes and data otherwise ("structured mode").
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from streaming.errors import WireError
from streaming.records import FeatureRecord, HeldRecord

EventType = Literal["scene_change", "activity"]
Phase = Literal["new", "update", "end"]
EndReason = Literal["quiet", "camera_lost"]
VERSION: Final = 1
SPEC_VERSION: Final = "1.0"
STRUCTURED: Final = "application/cloudevents+json"
MAX_EVENT_BYTES: Final = 64 << 10

Text = Annotated[str, Meta(min_length=1, max_length=256)]
Microseconds = Annotated[int, Meta(ge=0, le=(1 << 53) - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One message of an event: its beginning, an update, or its end. Fields that a phase does not know are None."""

    v: int = VERSION
    event: Text
    """The same in all messages of one event."""
    n: Annotated[int, Meta(ge=0)]
    """0, 1, 2, ... within the event; with `event` it is the unique id of this message, and a repeat has the same."""
    type: Text
    phase: Phase
    node: Text
    camera: Text
    at: Microseconds
    """When the picture that this message is about was taken, Unix microseconds."""
    frame_seq: int
    started_at: Microseconds
    ended_at: Microseconds | None = None
    reason: EndReason | None = None
    """Why it ended."""
    change: Share | None = None
    """activity: share of the picture that changed, now, and at its highest."""
    peak: Share | None = None
    cuts: int | None = None
    """scene_change: how many cuts fell into it so far."""

    @property
    def id(self) -> str:
        """CloudEvents `id`."""
        return f"{self.event}.{self.n}"

    @property
    def time(self) -> datetime:
        """When the picture that this message is about was taken."""
        return datetime.fromtimestamp(self.at / 1e6, UTC)


def attributes(event: Event, root: str) -> dict[str, str]:
    """The CloudEvents attributes of an event; `source` is its place in the topic tree; `event` and `phase` are extensions."""
    return {
        "specversion": SPEC_VERSION,
        "id": event.id,
        "source": f"/{root}/{event.node}/cam/{event.camera}",
        "type": f"camvec.{event.type}",
        "subject": event.camera,
        "time": event.time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "event": event.event,
        "phase": event.phase,
    }


def encode_binary(event: Event) -> bytes:
    """The JSON body of binary mode: the data alone, which names event, phase and camera as well."""
    return msgspec.json.encode(event)


def encode_structured(event: Event, root: str) -> bytes:
    """The one JSON object of structured mode, for MQTT 3.1.1."""
    data = msgspec.to_builtins(event)
    body = {**attributes(event, root), "datacontenttype": "application/json", "data": data}
    return json.dumps(body, separators=(",", ":")).encode()


class _Structured(msgspec.Struct):
    specversion: str
    data: Event


class _Either(msgspec.Struct):
    v: int | None = None
    specversion: str | None = None


_EITHER: Final = msgspec.json.Decoder(_Either)
_EVENT: Final = msgspec.json.Decoder(Event)
_STRUCTURED: Final = msgspec.json.Decoder(_Structured)


def decode(payload: bytes) -> Event:
    """The event of a message in either mode. Raises WireError on anything else."""
    if len(payload) > MAX_EVENT_BYTES:
        raise WireError(f"expected an event of at most {MAX_EVENT_BYTES} bytes, got {len(payload)}")
    try:
        structured = _EITHER.decode(payload).specversion is not None
        event = _STRUCTURED.decode(payload).data if structured else _EVENT.decode(payload)
    except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError) as exc:
        raise WireError(f"expected an event of version {VERSION}, got {len(payload)} bytes: {exc}") from exc
    if event.v != VERSION:
        raise WireError(f"expected an event of version {VERSION}, got {event.v}: a newer camvec can read it")
    return event


@dataclass(frozen=True)
class EventSettings:
    """When something is an event. Shares are of the picture, 0 to 1."""

    activity: bool = True
    """Whether that event is raised at all; likewise scene_change."""
    scene_change: bool = True
    start_change: float = 0.02
    """Activity begins when at least this much changes ..."""
    min_duration_s: float = 0.5
    """... for this long,"""
    stop_change: float = 0.01
    """and goes on while at least this much does."""
    quiet_s: float = 3.0
    """It ends after this long below that."""
    update_s: float = 10.0
    """While it lasts, an update this often."""
    debounce_s: float = 2.0
    """Cuts that follow each other within this time are one scene change."""

    def __post_init__(self) -> None:
        if not 0 <= self.stop_change <= self.start_change <= 1:
            raise ValueError(
                f"expected 0 <= stop_change <= start_change <= 1, got {self.stop_change}, {self.start_change}"
            )


@dataclass(slots=True)
class _Running:
    """An event that has begun and not ended."""

    name: str
    started_at: int
    last_ns: int
    """When it was last true."""
    last_us: int
    update_ns: int = 0
    n: int = 0
    peak: float = 0.0
    cuts: int = 0


class EventDetector:
    """The events of one camera: feed it every record, and the time when nothing comes."""

    def __init__(
        self,
        node: str,
        camera: str,
        session: str,
        settings: EventSettings | None = None,
        numbers: Iterator[int] | None = None,
    ) -> None:
        self.node, self.camera, self._session = node, camera, session
        self.settings = settings or EventSettings()
        self._numbers = numbers or itertools.count(1)
        """Shared by all detectors of a session: a camera that is removed and comes back begins no old event again."""
        self._above_ns: int | None = None
        self._activity: _Running | None = None
        self._scene: _Running | None = None
        self._frame_seq = 0

    def feed(self, record: FeatureRecord | HeldRecord, now_ns: int) -> list[Event]:
        """What this record begins, updates or ends. Records come in order."""
        self._frame_seq = record.frame_seq
        at_us = record.captured_at_us
        if isinstance(record, HeldRecord):
            change = record.change
        elif record.cut or record.reset or record.quality.cold:
            # All of the picture is new: that is a cut or a beginning, not something that moves.
            is_cut = record.cut and not record.reset and self.settings.scene_change
            events = self._cut(now_ns, at_us) if is_cut else []
            return events + self.tick(now_ns)
        else:
            change = record.quality.change
        return self._change(change, now_ns, at_us) + self.tick(now_ns)

    def tick(self, now_ns: int) -> list[Event]:
        """What has ended by itself at `now_ns`."""
        settings, events = self.settings, []
        if self._activity and now_ns - self._activity.last_ns >= settings.quiet_s * 1e9:
            events.append(self._end_activity("quiet"))
        if self._scene and now_ns - self._scene.last_ns >= settings.debounce_s * 1e9:
            events.append(self._end_scene("quiet"))
        return events

    def lost(self) -> list[Event]:
        """The camera stopped delivering: everything that runs ends with its last picture."""
        self._above_ns = None
        events = [self._end_activity("camera_lost")] if self._activity else []
        return [*events, self._end_scene("camera_lost")] if self._scene else events

    def _change(self, change: float, now_ns: int, at_us: int) -> list[Event]:
        settings, running = self.settings, self._activity
        if running is None:
            return self._maybe_begin(change, now_ns, at_us)
        if change < settings.stop_change:
            return []
        running.last_ns, running.last_us, running.peak = now_ns, at_us, max(running.peak, change)
        if now_ns - running.update_ns < settings.update_s * 1e9:
            return []
        running.update_ns = now_ns
        return [self._event("activity", running, "update", change=change)]

    def _maybe_begin(self, change: float, now_ns: int, at_us: int) -> list[Event]:
        if change < self.settings.start_change or not self.settings.activity:
            self._above_ns = None
            return []
        if self._above_ns is None:
            self._above_ns = now_ns
        if now_ns - self._above_ns < self.settings.min_duration_s * 1e9:
            return []
        self._above_ns = None
        self._activity = _Running(self._name("activity"), at_us, now_ns, at_us, update_ns=now_ns, peak=change)
        return [self._event("activity", self._activity, "new", change=change)]

    def _cut(self, now_ns: int, at_us: int) -> list[Event]:
        if self._scene:
            self._scene.last_ns, self._scene.last_us = now_ns, at_us
            self._scene.cuts += 1
            return []
        self._scene = _Running(self._name("scene_change"), at_us, now_ns, at_us, cuts=1)
        return [self._event("scene_change", self._scene, "new")]

    def _end_activity(self, reason: EndReason) -> Event:
        running, self._activity = self._activity, None
        assert running is not None  # noqa: S101 - the callers have looked
        return self._event("activity", running, "end", reason=reason)

    def _end_scene(self, reason: EndReason) -> Event:
        running, self._scene = self._scene, None
        assert running is not None  # noqa: S101 - the callers have looked
        return self._event("scene_change", running, "end", reason=reason)

    def _name(self, event_type: EventType) -> str:
        return f"{self._session}-{self.camera}-{event_type}-{next(self._numbers)}"

    def _event(
        self,
        event_type: EventType,
        running: _Running,
        phase: Phase,
        *,
        change: float | None = None,
        reason: EndReason | None = None,
    ) -> Event:
        event = Event(
            event=running.name,
            n=running.n,
            type=event_type,
            phase=phase,
            node=self.node,
            camera=self.camera,
            at=running.last_us,
            frame_seq=self._frame_seq,
            started_at=running.started_at,
            ended_at=running.last_us if phase == "end" else None,
            reason=reason,
            change=change,
            peak=running.peak if event_type == "activity" else None,
            cuts=running.cuts if event_type == "scene_change" else None,
        )
        running.n += 1
        return event
