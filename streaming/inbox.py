"""What arrives at a subscriber: decoded once, checked against its chain, handed to the streams that asked. Pure."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from streaming import events, message
from streaming.chain import Chain, ChainStatistics
from streaming.errors import ModelMismatchError, WireError
from streaming.feature import (
    Arrival,
    Availability,
    Feature,
    feature_of,
    figures_of,
    held_feature,
    model_of,
    state_of,
)
from streaming.message import FeatureMessage, Message
from streaming.stream import Stream
from streaming.topics import Address, covers, parse

MAX_RETAINED: Final = 10_000
MAX_PLACES: Final = 10_000
"""Embedding topics; a hostile publisher could invent any number."""


@dataclass
class SubscriberStatistics(ChainStatistics):
    """What is known of the frames, and what this subscriber itself did not hand on."""

    corrupt: int = 0
    """Payloads that were no message of ours."""
    too_old: int = 0
    """Older than a stream's `max_age_s`."""
    skipped: int = 0
    """Dropped because a stream's consumer was too slow."""


class FeatureStream(Stream[Feature]):
    """The features of one iterator, and the model that it began with."""

    model: str | None = None
    allow_model_change: bool = False
    include_held: bool = False
    max_age_s: float | None = None


@dataclass
class _Place:
    """What is known of one embedding topic."""

    chain: Chain = field(default_factory=Chain)
    last: Feature | None = None
    too_old: int = 0
    output: str = "frame"


class Inbox:
    """Routes messages below `root`, of one `node` or (None) of all, to the streams that `streams` gives."""

    def __init__(
        self,
        root: str,
        node: str | None,
        streams: Callable[[], Iterable[Stream[Any]]],
        unix_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._root, self._node = root, node
        self._streams = streams
        self._unix_us = unix_us
        self._places: dict[tuple[str, str, str], _Place] = {}
        self._retained: dict[str, bytes] = {}
        self._corrupt: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self.problem = ""
        """Why the last corrupt payload was refused."""

    def received(self, topic: str, payload: bytes) -> None:
        """Take in one message. Never raises: what is no message of ours is counted."""
        address = parse(self._root, topic)
        if address is None or self._node not in {None, address.node}:
            return
        try:
            if address.kind == "embedding":
                self._feature(address, payload)
            else:
                self._remember(topic, address, payload)
                self._simple(address, payload, self._streams())
        except WireError as exc:
            self._corrupt[address.camera or ""] += 1
            self.problem = f"{topic}: {exc}"

    def prime(self, stream: Stream[Any]) -> None:
        """Give a new stream the retained messages that came before it: the broker sends them once per filter."""
        for topic, payload in list(self._retained.items()):
            address = parse(self._root, topic)
            if address is not None and covers(stream.topic_filter, topic):
                self._simple(address, payload, [stream])

    def forget(self, filters: Iterable[str]) -> None:
        """Drop the retained messages that no filter keeps up to date any more."""
        active = list(filters)
        for topic in [topic for topic in self._retained if not any(covers(one, topic) for one in active)]:
            del self._retained[topic]

    def statistics(self, camera: str | None, node: str | None, model: str | None) -> SubscriberStatistics:
        """The sum over the topics that fit."""
        total = SubscriberStatistics()
        for (of_node, of_camera, of_model), place in self._places.items():
            # The temporal head's topic tells of the same frames once more.
            asked = place.output == "frame" if model is None else model == of_model
            if asked and camera in {None, of_camera} and node in {None, of_node}:
                total.add(place.chain.statistics)
                total.too_old += place.too_old
        total.corrupt = self._corrupt.total() if camera is None else self._corrupt[camera]
        total.skipped = self._skipped.total() if camera is None else self._skipped[camera]
        return total

    def _remember(self, topic: str, address: Address, payload: bytes) -> None:
        if address.kind not in {"state", "model", "availability"}:
            return
        if not payload:
            self._retained.pop(topic, None)
        elif topic in self._retained or len(self._retained) < MAX_RETAINED:
            self._retained[topic] = payload

    def _simple(self, address: Address, payload: bytes, streams: Iterable[Stream[Any]]) -> None:
        asking = [one for one in streams if not isinstance(one, FeatureStream) and one.matches(address)]
        item = _decode(address, payload) if asking else None
        for stream in asking:
            if item is not None:
                self._offer(stream, item, address.camera)

    def _feature(self, address: Address, payload: bytes) -> None:
        received_us = self._unix_us()
        arrived = message.decode(payload)
        camera, model_id = address.camera or "", address.name or ""
        if arrived.camera != camera:
            raise WireError(f"expected a message of camera {camera!r} on its topic, got one of {arrived.camera!r}")
        place = self._place(address.node, camera, model_id)
        arrival = Arrival(address.node, model_id, received_us, place.chain.see(arrived, received_us))
        feature = _user_view(place, arrived, arrival)
        if feature is not None:
            self._offer_feature(address, feature, place)

    def _place(self, node: str, camera: str, model_id: str) -> _Place:
        place = self._places.get((node, camera, model_id))
        if place is None:
            if len(self._places) >= MAX_PLACES:
                raise WireError(f"expected at most {MAX_PLACES} embedding topics, got one more")
            place = self._places[node, camera, model_id] = _Place()
        return place

    def _offer_feature(self, address: Address, feature: Feature, place: _Place) -> None:
        too_old = False
        for stream in self._asking(address, feature):
            if stream.max_age_s is not None and feature.age_s > stream.max_age_s:
                too_old = True
            elif stream.model in {None, feature.model} or stream.allow_model_change:
                stream.model = feature.model
                self._offer(stream, feature, feature.camera)
            else:
                stream.end(ModelMismatchError(stream.model or "", feature.model, feature.camera))
        place.too_old += too_old

    def _asking(self, address: Address, feature: Feature) -> Iterator[FeatureStream]:
        for stream in self._streams():
            if not isinstance(stream, FeatureStream) or not stream.matches(address, feature.output):
                continue
            if feature.held_since is None or stream.include_held:
                yield stream

    def _offer(self, stream: Stream[Any], item: Any, camera: str | None) -> None:
        before = stream.dropped
        stream.offer(item)
        self._skipped[camera or ""] += stream.dropped - before


def _user_view(place: _Place, arrived: Message, arrival: Arrival) -> Feature | None:
    """The message as a feature; a heartbeat is the last vector again, if there was one of this model."""
    if isinstance(arrived, FeatureMessage):
        feature = feature_of(arrived, arrival)
        place.output = arrived.output
        if not (arrived.spooled or arrival.verdict.duplicate):
            place.last = feature
        return feature
    if place.last is None or place.last.model != arrived.model or arrived.tail:
        return None
    return held_feature(place.last, arrived, arrival)


def _decode(address: Address, payload: bytes) -> Any:
    match address.kind:
        case "state":
            return state_of(address.node, address.camera or "", payload)
        case "model":
            return model_of(address.node, payload)
        case "event":
            return events.decode(payload)
        case "availability":
            return Availability(address.node, payload.decode(errors="replace")[:40]) if payload else None
        case _:
            return figures_of(address.node, payload)
