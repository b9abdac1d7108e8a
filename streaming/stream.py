"""A bounded stream of what a subscription brings: an async iterator that drops the oldest, and counts it."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Stream(Generic[T]):
    """`async for item in stream`. Leave the loop and forget it, or `aclose()` it: its subscription ends.

    At most `size` items wait; a consumer that is slower gets the newest, and `dropped` says how many it did not get.
    """

    def __init__(self, topic_filter: str, accepts: Callable[..., bool], size: int) -> None:
        self.topic_filter = topic_filter
        self.accepts = accepts
        self.dropped = 0
        self._items: deque[T] = deque()
        self._size = size
        self._more = asyncio.Event()
        self._ready = asyncio.Event()
        self._end: BaseException | None = None
        self.on_close: Callable[[], None] = lambda: None

    async def ready(self) -> None:
        """Return when the broker has confirmed the subscription: what is published from now on arrives."""
        await self._ready.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._end is not None:
                raise self._end
            self._more.clear()
            await self._more.wait()
        return self._items.popleft()

    async def aclose(self) -> None:
        """End the stream; what waits is dropped."""
        self._items.clear()
        self.end(StopAsyncIteration())
        self.on_close()

    # For the subscriber

    def offer(self, item: T) -> None:
        """Let an item wait."""
        if self._end is not None:
            return
        if len(self._items) >= self._size:
            self._items.popleft()
            self.dropped += 1
        self._items.append(item)
        self._more.set()

    def end(self, why: BaseException) -> None:
        """Raise this after what waits."""
        if self._end is None:
            self._end = why
        self._ready.set()
        self._more.set()

    def confirmed(self) -> None:
        """The broker has confirmed the subscription."""
        self._ready.set()

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._end is not None

    def matches(self, *what: Any) -> bool:
        """Whether this stream asked for such an item."""
        return self._end is None and self.accepts(*what)
