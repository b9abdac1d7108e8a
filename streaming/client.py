"""The consumer SDK: subscribe to what camvec publishes.

    async with FeatureSubscriber("mqtt://broker.local") as subscriber:
        async for feature in subscriber.features(camera="front"):
            print(feature.camera, feature.age_s, feature.vector[:4])

It reconnects by itself, for ever; what was lost meanwhile is in `feature.gap` and in `statistics`.
"""

import asyncio
import contextlib
import logging
import uuid
import weakref
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Literal, Never, Self, TypeVar

from streaming.errors import BrokerError
from streaming.events import Event
from streaming.feature import Availability, CameraState, Feature, Figures, Model
from streaming.inbox import FeatureStream, Inbox, SubscriberStatistics
from streaming.mqtt.link import Handlers, Link
from streaming.mqtt.reconnect import Reconnector, until_lost
from streaming.mqtt.settings import ProtocolChoice, TlsSettings, parse_url
from streaming.stream import Stream
from streaming.topics import Address, Topics, check_id, covers, fewest

log = logging.getLogger("camvec.client")
__all__ = ["Connection", "FeatureSubscriber", "SubscriberStatistics"]

S = TypeVar("S", bound=Stream[Any])
PERMANENT: Final = frozenset({"auth", "tls", "client_id"})
"""What another try in a second does not heal."""


@dataclass(frozen=True)
class Connection:
    """Where the subscriber stands with its broker."""

    state: Literal["connecting", "connected", "waiting", "closed"]
    """`waiting`: for the next try, because of `problem`."""
    problem: str = ""
    retry_in_s: float = 0.0


class FeatureSubscriber:
    """Subscribes to one broker; use it with `async with`. All iterators of it may run side by side.

    `url` is `mqtt[s]://[user:password@]host[:port]`. Raises ConfigError at once, and BrokerError when the broker cannot
    be used within `connect_timeout_s`; after that it waits for the broker as long as it takes.
    """

    def __init__(
        self,
        url: str,
        *,
        root: str = "camvec",
        node: str | None = None,
        tls: TlsSettings | None = None,
        protocol: ProtocolChoice = "auto",
        client_id: str | None = None,
        queue_size: int = 1000,
        connect_timeout_s: float = 10.0,
    ) -> None:
        settings = parse_url(url, tls=tls, protocol=protocol)
        self._settings = replace(settings, client_id=client_id or f"{root}-subscriber-{uuid.uuid4().hex[:12]}")
        self._root = root
        self._node = node
        self._topics = Topics(root, node or "+")
        self._queue_size = queue_size
        self._connect_timeout_s = connect_timeout_s
        self._streams: weakref.WeakSet[Stream[Any]] = weakref.WeakSet()
        self._changed = asyncio.Event()
        self._inbox = Inbox(root, node, lambda: list(self._streams))
        self._active: set[str] = set()
        self._first: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.connection = Connection("closed")

    async def __aenter__(self) -> Self:
        """Connect. Raises BrokerError, with its reason, or ConfigError on TLS files that cannot be used."""
        self._first = asyncio.get_running_loop().create_future()
        self.connection = Connection("connecting")
        self._task = asyncio.create_task(self._run(), name="camvec-subscriber")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await asyncio.wait([self._first, self._task], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as exc:
            said = self.connection.problem or f"no answer from {self._settings.address}"
            await self._stop()
            raise BrokerError("timeout", f"not connected after {self._connect_timeout_s:g} s: {said}") from exc
        except BaseException:
            await self._stop()
            raise
        if self._task.done():
            self.connection = Connection("closed")
            await self._task  # raises why
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    # What one can subscribe to

    def features(
        self,
        camera: str | None = None,
        *,
        model: str | None = None,
        max_age_s: float | None = None,
        include_held: bool = False,
        allow_model_change: bool = False,
    ) -> Stream[Feature]:
        """Vectors of one camera, or of all.

        Without `model` (an id) those of single frames; the temporal head's have to be asked for. `max_age_s` drops, and
        counts, what is older. `include_held`: also a camera's last vector again, about once a second, while its picture
        does not change. The iterator raises ModelMismatchError rather than mix vectors of two models.
        """
        camera_id = None if camera is None else check_id("a camera id", camera)
        model_id = None if model is None else check_id("a model id", model)

        def accepts(address: Address, output: str) -> bool:
            return (
                address.kind == "embedding"
                and camera_id in {None, address.camera}
                and (model_id == address.name or (model_id is None and output == "frame"))
            )

        topic_filter = self._topics.embedding(camera_id or "+", model_id or "+")
        stream = self._open(FeatureStream(topic_filter, accepts, self._queue_size))
        stream.include_held, stream.max_age_s, stream.allow_model_change = include_held, max_age_s, allow_model_change
        return stream

    def events(self, camera: str | None = None, *, event_type: str | None = None) -> Stream[Event]:
        """Events (`scene_change`, `activity`), each with its phases `new`, `update`, `end`."""
        topic_filter = self._topics.event(camera or "+", event_type or "+")
        return self._open_simple(topic_filter, "event", camera, event_type)

    def states(self, camera: str | None = None) -> Stream[CameraState]:
        """What cameras are doing: first as they are now, then each change."""
        return self._open_simple(self._topics.state(camera or "+"), "state", camera)

    def models(self) -> Stream[Model]:
        """The models that vectors come from: first those of now, then each change."""
        return self._open_simple(self._topics.model("+"), "model")

    def stats(self) -> Stream[Figures]:
        """The figures of each node, every few seconds."""
        return self._open_simple(self._topics.stats, "stats")

    def gaps(self) -> Stream[Figures]:
        """What a node could not deliver while it had no broker."""
        return self._open_simple(self._topics.gap, "gap")

    def availability(self) -> Stream[Availability]:
        """Which nodes are there: first as it is now, then each change."""
        return self._open_simple(self._topics.availability, "availability")

    def statistics(
        self, camera: str | None = None, *, node: str | None = None, model: str | None = None
    ) -> SubscriberStatistics:
        """What arrived and what did not, since the first message: of one camera or of all, summed over nodes and models."""
        return self._inbox.statistics(camera, node, model)

    # The connection

    async def _run(self) -> None:
        try:
            await Reconnector(self._settings).run(lambda: Handlers(self._received), self._serve, self._lost)
        except Exception as exc:
            for stream in list(self._streams):
                stream.end(exc)
            raise

    async def _serve(self, link: Link) -> Never:
        self.connection = Connection("connected")
        if self._first is not None and not self._first.done():
            self._first.set_result(None)
        await until_lost(link, self._follow_streams(link))

    def _lost(self, exc: BrokerError, delay_s: float) -> None:
        self._active.clear()
        if exc.reason in PERMANENT and self._first is not None and not self._first.done():
            raise exc
        log.warning("%s; trying again in %.1f s", exc, delay_s)
        self.connection = Connection("waiting", str(exc), delay_s)

    async def _follow_streams(self, link: Link) -> None:
        """Keep the broker's idea of what we want up to date."""
        self._active.clear()
        while True:
            self._changed.clear()
            wanted = fewest({stream.topic_filter for stream in self._streams if not stream.ended})
            added, removed = sorted(wanted - self._active), sorted(self._active - wanted)
            refused = await link.subscribe(added, qos=1)
            await link.unsubscribe(removed)
            self._active = wanted
            self._inbox.forget(wanted)
            self._tell_streams(refused)
            await self._changed.wait()

    def _tell_streams(self, refused: list[str]) -> None:
        for stream in list(self._streams):
            if any(covers(one, stream.topic_filter) for one in refused):
                said = f"the broker denies the subscription to {stream.topic_filter}: allow it in the broker's ACL"
                stream.end(BrokerError("denied", said))
            else:
                stream.confirmed()

    async def _stop(self) -> None:
        self.connection = Connection("closed")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        for stream in list(self._streams):
            stream.end(StopAsyncIteration())

    # Streams

    def _open_simple(
        self, topic_filter: str, kind: str, camera: str | None = None, name: str | None = None
    ) -> Stream[Any]:
        def accepts(address: Address) -> bool:
            return address.kind == kind and camera in {None, address.camera} and name in {None, address.name}

        return self._open(Stream[Any](topic_filter, accepts, self._queue_size))

    def _open(self, stream: S) -> S:
        changed = self._changed
        stream.on_close = changed.set
        # A loop that was left with `break` lets go of its stream: then the subscription ends, too.
        weakref.finalize(stream, _set_from_anywhere, changed, asyncio.get_running_loop()).atexit = False
        if any(covers(one, stream.topic_filter) for one in self._active):
            self._inbox.prime(stream)
        self._streams.add(stream)
        changed.set()
        return stream

    def _received(self, topic: str, payload: bytes, _retained: bool) -> None:
        self._inbox.received(topic, payload)


def _set_from_anywhere(event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    """Garbage may be collected in any thread, and after the loop has closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)
