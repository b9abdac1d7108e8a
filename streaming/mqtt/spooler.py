"""The spool on disk as the event loop sees it: what goes in and out is buffered, the disk works in a thread."""

import asyncio
from collections import Counter, deque
from pathlib import Path
from typing import Final

from streaming.mqtt.settings import MqttSettings
from streaming.spool import Spool, Spooled, SpoolError

MAX_BUFFERED: Final = 2000
"""Payloads that wait for the disk."""
PREFETCH: Final = 32


class Spooler:
    """Takes payloads while the broker is away, hands them out one by one when it is back. `step` does the disk's part."""

    def __init__(self, settings: MqttSettings) -> None:
        self._settings = settings
        self._spool: Spool | None = None
        self._incoming: deque[tuple[str, str, bytes]] = deque()
        self._outgoing: deque[Spooled] = deque()
        self._done: list[int] = []
        self._last_id = 0
        self.spooled: Counter[str] = Counter()
        """Taken in, by camera."""
        self.dropped: Counter[str] = Counter()
        """Given up: the disk was too slow or full, or a limit was reached."""
        self.problem = ""

    @property
    def enabled(self) -> bool:
        """Whether there is a spool at all."""
        return self._settings.offline == "spool"

    async def open(self) -> None:
        """Open the spool. Raises SpoolError if the folder cannot be used: say so at the start, not in the night."""
        directory = self._settings.spool_dir
        if self.enabled and directory is not None:
            self._spool = await asyncio.to_thread(self._make, directory)

    def _make(self, directory: Path) -> Spool:
        settings = self._settings
        return Spool(
            directory,
            max_items=settings.spool_max_items,
            max_bytes=settings.spool_max_mb * 1_000_000,
            max_age_s=settings.spool_max_age_s,
        )

    def put(self, camera: str, topic: str, payload: bytes) -> None:
        """Keep this for later; with a disk that does not follow, the oldest of the buffer goes."""
        self.spooled[camera] += 1
        self._incoming.append((camera, topic, payload))
        if len(self._incoming) > MAX_BUFFERED:
            self.dropped[self._incoming.popleft()[0]] += 1

    def next(self) -> Spooled | None:
        """The oldest that is at hand."""
        return self._outgoing.popleft() if self._outgoing else None

    def acknowledged(self, spool_id: int) -> None:
        """The broker has it: it may go."""
        self._done.append(spool_id)

    def rewind(self) -> None:
        """The connection is gone: what was not acknowledged will be read again."""
        self._outgoing.clear()
        self._last_id = 0

    async def step(self, *, want: bool) -> None:
        """Write, remove, and with `want` read ahead. A disk that fails is a problem with a name, never an exception."""
        if self._spool is None:
            return
        incoming, self._incoming = list(self._incoming), deque()
        done, self._done = self._done, []
        want = want and not self._outgoing
        if not (incoming or done or (want and self._spool.items)):
            return
        try:
            found = await asyncio.to_thread(self._work, self._spool, incoming, done, want)
            self.problem = ""
        except SpoolError as exc:
            self.problem = str(exc)
            self.dropped.update(camera for camera, _, _ in incoming)
            self._done += done
            return
        if want and found:
            self._last_id = found[-1].id
            self._outgoing.extend(found)

    def _work(self, spool: Spool, incoming: list[tuple[str, str, bytes]], done: list[int], want: bool) -> list[Spooled]:
        if incoming:
            spool.append(incoming)
        if done:
            spool.remove(done)
        self.dropped.update(spool.dropped)
        spool.dropped.clear()
        return spool.oldest(PREFETCH, after_id=self._last_id) if want else []

    async def close(self) -> None:
        """Write what waits and close the file."""
        if self._spool is not None:
            await self.step(want=False)
            await asyncio.to_thread(self._spool.close)
            self._spool = None
