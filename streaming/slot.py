"""One place between a reader thread and the event loop: newest wins, or, for files, wait until it is free."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class NewestSlot(Generic[T]):
    """Holds at most one item; a live source overwrites it, a lossless one waits. `None` is not an item.

    Made on the event loop that reads it. One thread writes at a time; `get` and `take` belong to the loop, though `take`
    and `drain` are safe from any thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._filled, self._emptied = asyncio.Event(), asyncio.Event()
        self._changed = threading.Condition()
        self._item: T | None = None
        self._waiting: T | None = None
        self._to_be_emptied = False
        self.forward: Callable[[], bool] | None = None
        """Asked by the writing thread whenever something was placed: True if it has taken that, and nobody need wake up."""

    def put(self, item: T) -> T | None:
        """Place `item` without ever waiting, and tell; returns the item that it superseded."""
        superseded = self.place(item)
        self.wake()
        return superseded

    def place(self, item: T) -> T | None:
        """Place `item` without ever waiting; `wake` has to follow. Returns the item that it superseded."""
        with self._changed:
            superseded, self._item = self._item, item
        return superseded

    def wake(self) -> None:
        """Something has been placed: `forward` takes it, or whoever waits for it is told."""
        if self.forward is None or not self.forward():
            self._post(self._filled)

    def put_wait(self, item: T, abandoned: threading.Event) -> bool:
        """Place `item` as soon as the place is free; blocks the thread. False if `abandoned` came first.

        An abandoned item stays with the slot, for `drain`. Whoever sets `abandoned` calls `wake_writer`.
        """
        with self._changed:
            if self._item is None:
                self._item = item
            else:
                self._waiting = item
        self.wake()
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not item or abandoned.is_set())
            return self._waiting is not item

    def wake_writer(self) -> None:
        """Let a blocked `put_wait` look at its `abandoned` event."""
        with self._changed:
            self._changed.notify_all()

    def take(self) -> T | None:
        """The item, or None at once if there is none."""
        with self._changed:
            item, self._item, self._waiting = self._item, self._waiting, None
            self._changed.notify_all()
        if self._to_be_emptied:
            self._post(self._emptied)
        return item

    def drain(self) -> list[T]:
        """Everything that is held, oldest first: what nobody will take any more."""
        with self._changed:
            items = [item for item in (self._item, self._waiting) if item is not None]
            self._item = self._waiting = None
            self._changed.notify_all()
            return items

    async def get(self) -> T:
        """The item, as soon as there is one."""
        while (item := self.take()) is None:
            await self.filled()
        return item

    async def filled(self) -> None:
        """Wait until there is something to take."""
        while self._item is None:
            self._filled.clear()
            if self._item is None:
                await self._filled.wait()

    async def emptied(self) -> None:
        """Wait until everything has been taken: for the end of a stream, when the writer has ended."""
        self._to_be_emptied = True
        while self._item is not None or self._waiting is not None:
            self._emptied.clear()
            if self._item is not None or self._waiting is not None:
                await self._emptied.wait()

    def _post(self, event: asyncio.Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody reads any more
            self._loop.call_soon_threadsafe(event.set)
