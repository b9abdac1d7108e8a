"""The consumer SDK for programs without asyncio: the same streams, as plain iterators.

for feature in subscribe("mqtt://broker.local", camera="front"):
print(feature.age_s)
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from streaming.client import FeatureSubscriber
from streaming.errors import StreamingError
from streaming.events import Event
from streaming.feature import CameraState, Feature
from streaming.stream import Stream

T = TypeVar("T")
R = TypeVar("R")


class BlockingStream(Generic[T]):
    """An iterator over a stream; a thread of its own keeps the connection. Close it, or use it with `with`.

    With `timeout_s`, TimeoutError is raised when nothing came for that long; one may go on after it.
    """

    def __init__(
        self,
        make: Callable[[], FeatureSubscriber],
        pick: Callable[[FeatureSubscriber], Stream[T]],
        timeout_s: float | None,
    ) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="camvec-subscriber", daemon=True)
        self._thread.start()
        self._stack = contextlib.AsyncExitStack()
        self.subscriber: FeatureSubscriber
        self._stream: Stream[T]
        try:
            self.subscriber, self._stream = self._call(self._enter(make, pick))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._loop.is_closed():
            raise StopIteration
        try:
            return self._call(self._next())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End the subscription and the thread. May be called twice."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(StreamingError):
            self._call(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A loop that was left with `break` drops its iterator: the thread must not stay.
        with contextlib.suppress(Exception):
            self.close()

    async def _enter(
        self, make: Callable[[], FeatureSubscriber], pick: Callable[[FeatureSubscriber], Stream[T]]
    ) -> tuple[FeatureSubscriber, Stream[T]]:
        subscriber = await self._stack.enter_async_context(make())
        stream = pick(subscriber)
        await stream.ready()
        return subscriber, stream

    async def _next(self) -> T:
        async with asyncio.timeout(self._timeout_s):
            return await anext(self._stream)

    def _call(self, work: Coroutine[Any, Any, R]) -> R:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the waiting thread
            raise


def subscribe(
    url: str, *, camera: str | None = None, model: str | None = None, timeout_s: float | None = None, **options: Any
) -> BlockingStream[Feature]:
    """Vectors, one after the other. `options` are those of `FeatureSubscriber` and of its `features`."""
    of_features = {
        name: options.pop(name) for name in ("max_age_s", "include_held", "allow_model_change") if name in options
    }
    return BlockingStream(
        lambda: FeatureSubscriber(url, **options),
        lambda subscriber: subscriber.features(camera, model=model, **of_features),
        timeout_s,
    )


def subscribe_events(
    url: str,
    *,
    camera: str | None = None,
    event_type: str | None = None,
    timeout_s: float | None = None,
    **options: Any,
) -> BlockingStream[Event]:
    """Events, one after the other. `options` are those of `FeatureSubscriber`."""
    return BlockingStream(
        lambda: FeatureSubscriber(url, **options),
        lambda subscriber: subscriber.events(camera, event_type=event_type),
        timeout_s,
    )


def subscribe_states(
    url: str, *, camera: str | None = None, timeout_s: float | None = None, **options: Any
) -> BlockingStream[CameraState]:
    """States of cameras, one after the other. `options` are those of `FeatureSubscriber`."""
    return BlockingStream(
        lambda: FeatureSubscriber(url, **options), lambda subscriber: subscriber.states(camera), timeout_s
    )
