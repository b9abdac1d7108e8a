"""One connection to a source: a daemon thread that may get stuck, and a watch that never does."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from streaming.clock import Clock
from streaming.errors import SourceError
from streaming.redaction import redact
from streaming.sources.account import FrameAccount
from streaming.sources.base import Picture, Source, StreamInfo
from streaming.sources.watchdog import Watchdog

GRACE_S: Final = 0.2
"""How long a thread may take to notice that it is not wanted any more before it is left behind."""

LOOK_S: Final = 0.5
"""How often the watch looks: the limits move with what the camera does."""


class Listener(Protocol):
    """Who is told, on the event loop."""

    def streaming(self, info: StreamInfo, *, opened: bool) -> None:
        """A good picture came: the first (`opened`), one of another size, or one after a silence."""

    def stalled(self, silent_s: float) -> None:
        """Nothing has come for a while; the connection still stands."""


class Connection:
    """Opens and reads `source` in a thread of its own, delivers to `account`, and is watched by `watchdog`."""

    def __init__(
        self,
        source: Source,
        account: FrameAccount,
        watchdog: Watchdog,
        clock: Clock,
        listener: Listener,
        *,
        name: str,
        max_pixels: int = 0,
    ) -> None:
        self._source, self._account, self._watchdog = source, account, watchdog
        self._max_pixels = max_pixels
        self._clock, self._listener = clock, listener
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[SourceError | None] = self._loop.create_future()
        self._closed: asyncio.Future[SourceError | None] = self._loop.create_future()
        self._abandoned = threading.Event()
        self._info: StreamInfo | None = None
        self._announce, self._streamed = True, False
        self.thread = threading.Thread(target=self._read, name=name, daemon=True)

    @property
    def info(self) -> StreamInfo | None:
        """What the source sends, once it is open."""
        return self._info

    @property
    def repaired_pts(self) -> int:
        """Repaired timestamps of this connection."""
        return self._source.repaired_pts

    async def run(self) -> SourceError | None:
        """Read until it ends; returns why, None at the end of a file. Returns in time even if the thread is stuck."""
        self._account.connect()
        started_ns = self._clock.monotonic_ns()
        self.thread.start()
        try:
            return await self._watch(started_ns)
        finally:
            self._abandoned.set()
            self._account.wake()
            await asyncio.wait({self._closed}, timeout=GRACE_S)

    # ---- the thread

    def _read(self) -> None:
        error: SourceError | None = None
        try:
            info = self._source.open()
            if not self._abandoned.is_set():
                self._read_pictures(info)
        except SourceError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001 - a fault of ours must not take the camera down for good
            error = SourceError("internal", redact(f"{type(exc).__name__}: {exc}"))
        self._post(_settle, self._ended, error)
        with contextlib.suppress(Exception):
            self._source.close()
        self._post(_settle, self._closed, None)

    def _read_pictures(self, info: StreamInfo) -> None:
        self._watchdog.opened(self._clock.monotonic_ns())  # before the watch can see that it is open
        self._info = info
        for picture in self._source.pictures():
            if not self._deliver(picture):
                break

    def _deliver(self, picture: Picture) -> bool:
        """False once abandoned: then nothing of this thread counts any more, neither here nor in the account."""
        info = self._info
        if self._abandoned.is_set() or info is None:
            return False
        if picture.image is not None and picture.reset:
            info = self._info = replace(info, width=picture.image.width, height=picture.image.height)
            self._check_size(info)
        if not picture.damaged:
            self._watchdog.picture(picture.arrived_ns)
            if self._announce or picture.reset:
                self._post(self._streaming, info)
                self._announce = False
        return self._account.deliver(picture, info, self._abandoned)

    def _check_size(self, info: StreamInfo) -> None:
        if 0 < self._max_pixels < info.width * info.height:
            raise SourceError(
                "codec",
                f"pictures of {info.width} x {info.height} do not fit: expected at most {self._max_pixels} pixels; "
                "take a smaller stream of the camera, or raise capture.frame_memory_mb",
            )

    def _post(self, call: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            self._loop.call_soon_threadsafe(call, *args)

    # ---- the event loop

    def _streaming(self, info: StreamInfo) -> None:
        if not self._abandoned.is_set():
            self._listener.streaming(info, opened=not self._streamed)
            self._streamed = True

    async def _watch(self, started_ns: int) -> SourceError | None:
        while not self._ended.done():
            now_ns = self._clock.monotonic_ns()
            left_s, verdict = self._limit(now_ns, started_ns)
            if left_s <= 0:
                return verdict
            self._tell_of_silence(now_ns)
            await asyncio.wait({self._ended}, timeout=min(left_s, LOOK_S))
        return self._ended.result()

    def _limit(self, now_ns: int, started_ns: int) -> tuple[float, SourceError]:
        """Seconds left, and what it is called when they are over."""
        dog = self._watchdog
        if self._info is None:
            left_s = dog.open_limit_s - (now_ns - started_ns) / 1e9
            return left_s, SourceError("timeout", f"not open after {dog.open_limit_s:.1f} s; the attempt is abandoned")
        if self._info.lossless:
            return float("inf"), SourceError("stalled", "")
        silence_s = dog.stall_limit_s - dog.silent_s(now_ns, self._source.last_packet_ns)
        undecodable_s = dog.undecodable_left_s(now_ns)
        if undecodable_s < silence_s:
            return undecodable_s, SourceError("codec", "packets come, but no picture can be made of them")
        return silence_s, SourceError("stalled", f"nothing came for {dog.stall_limit_s:.1f} s; the read is abandoned")

    def _tell_of_silence(self, now_ns: int) -> None:
        if self._announce or self._info is None or self._info.lossless:
            return
        silent_s = self._watchdog.silent_s(now_ns, self._source.last_packet_ns)
        if silent_s > self._watchdog.notice_s:
            self._announce = True
            self._listener.stalled(silent_s)


def _settle(future: "asyncio.Future[SourceError | None]", result: SourceError | None) -> None:
    if not future.done():
        future.set_result(result)
