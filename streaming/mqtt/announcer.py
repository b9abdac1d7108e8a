"""What stands retained at the broker: availability, info, models, camera states, values; and what has to go from there."""

from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from streaming.mqtt.compose import to_json
from streaming.mqtt.lane import Lane
from streaming.mqtt.parcels import Parcel
from streaming.mqtt.properties import plain
from streaming.mqtt.sender import Sender
from streaming.records import ModelDescriptor
from streaming.topics import Topics, check_id

JSON: Final = "application/json"


class Announcer:
    """Keeps the retained topics of a node as they should be: at each connection all, in between what changed."""

    def __init__(self, sender: Sender, topics: Topics) -> None:
        self._sender, self._topics = sender, topics
        self._started_us = sender.clock.unix_us()
        self._values: dict[str, bytes] = {}
        self._cleared: set[str] = set()
        """Topics that must be empty: cleared again at each connection, as a broker may come back with an old state."""
        self._rates: dict[str, tuple[int, int, float]] = {}

    def everything(self, protocol: str) -> Iterator[Parcel]:
        """For a broker that may know nothing of us."""
        yield self._retained(self._topics.availability, b"online")
        yield self._info(protocol)
        yield from (self._retained(topic, b"") for topic in sorted(self._cleared))
        yield from map(self._model, self._sender.embeddings.models.values())
        yield from map(self._state, self._sender.lanes.values())
        yield from (self._retained(topic, value) for topic, value in self._values.items())

    def stopped(self) -> None:
        """The node stops of its own will."""
        self._send(self._retained(self._topics.availability, b"stopped"))

    def states(self) -> None:
        """The state of every camera; without any, that we are there: the broker's answer shows that it lives."""
        if self._sender.closing:
            return  # `stopped` is the last word
        for lane in self._sender.lanes.values():
            self._send(self._state(lane))
        if not self._sender.lanes:
            self._send(self._retained(self._topics.availability, b"online"))

    def state(self, lane: Lane) -> None:
        """The state of one camera."""
        self._send(self._state(lane))

    def info(self) -> None:
        """The cameras and models of the node."""
        if self._sender.link is not None:
            self._send(self._info(self._sender.link.protocol))

    def model(self, descriptor: ModelDescriptor) -> None:
        """A model that vectors come from."""
        self._cleared.discard(self._topics.model(descriptor.model_id))
        self._send(self._model(descriptor))

    def value(self, camera: str, name: str, value: Any) -> None:
        """The effective value of a setting. Raises WireError on what JSON cannot say."""
        topic = self._topics.value(check_id("a camera id", camera), check_id("a setting", name))
        self._values[topic] = to_json(value)
        self._cleared.discard(topic)
        self._send(self._retained(topic, self._values[topic]))

    def camera_added(self, lane: Lane) -> None:
        """A camera is there from now on."""
        self._cleared.discard(self._topics.state(lane.camera))
        self._send(self._state(lane))

    def camera_removed(self, camera: str) -> None:
        """A camera is gone, and all that stands of it."""
        self._rates.pop(camera, None)
        prefix = self._topics.value(camera, "")
        values = [topic for topic in self._values if topic.startswith(prefix)]
        for topic in values:
            del self._values[topic]
        self.clear([self._topics.state(camera), *values])

    def clear(self, topics: Iterable[str]) -> None:
        """Remove retained messages."""
        for topic in topics:
            self._cleared.add(topic)
            self._send(self._retained(topic, b""))

    def _send(self, parcel: Parcel) -> None:
        if self._sender.link is not None:  # else the next connection announces all of it anyway
            self._sender.outbox.put_latest(parcel)
            self._sender.pump()

    def _info(self, protocol: str) -> Parcel:
        sender = self._sender
        body = sender.composer.info(
            version=_version(),
            node=self._topics.node,
            started_us=self._started_us,
            cameras=sender.lanes,
            models=sender.embeddings.models,
            protocol=protocol,
        )
        return self._retained(self._topics.info, body)

    def _model(self, descriptor: ModelDescriptor) -> Parcel:
        return self._retained(self._topics.model(descriptor.model_id), self._sender.composer.model(descriptor))

    def _state(self, lane: Lane) -> Parcel:
        now, published = self._sender.now(), lane.account.published
        before, at_ns, fps = self._rates.get(lane.camera, (published, now.ns, 0.0))
        if now.ns - at_ns > 10**9:
            fps, before, at_ns = (published - before) / (now.ns - at_ns) * 1e9, published, now.ns
        self._rates[lane.camera] = (before, at_ns, fps)
        return self._retained(self._topics.state(lane.camera), self._sender.composer.state(lane, now, fps))

    def _retained(self, topic: str, payload: bytes) -> Parcel:
        content = "" if topic == self._topics.availability or not payload else JSON
        return Parcel(topic, payload, retain=True, properties=plain(None, content), again=False)


def _version() -> str:
    try:
        return version("camvec")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
