"""One camera for as long as it is wanted: opens, reads, waits and opens again, and says what it does."""

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec

from streaming.clock import SYSTEM_CLOCK, Clock
from streaming.errors import Reason, SourceError
from streaming.frames import DropCause, Since
from streaming.records import CameraStatus, StateRecord
from streaming.redaction import redact
from streaming.retry import Backoff, Cooldown
from streaming.slot import NewestSlot
from streaming.sources import open_source
from streaming.sources.account import FrameAccount, Taken
from streaming.sources.base import Source, SourceConfig, StreamInfo
from streaming.sources.connection import Connection
from streaming.sources.options import comes_back
from streaming.sources.watchdog import Watchdog

__all__ = ["CameraReader", "Taken"]

MAX_STUCK_THREADS: Final = 4


def _no_state(_record: StateRecord) -> None:
    pass


def _no_count(_captured: int) -> None:
    pass


def _superseded() -> DropCause:
    return "superseded"


class CameraReader:
    """Reads one source into `slot`: for ever if it is live, else to its end. Made on a running event loop.

    `on_state` is called on the loop whenever the state changes; `state()` gives it with fresh figures. From the reader thread:
    `on_count` gets the total of captured frames, `supersede_cause` says why a picture was overtaken in the slot. A read that
    is stuck is abandoned with its thread: it delays neither the next attempt nor the end of `run`.
    """

    def __init__(
        self,
        camera: str,
        config: SourceConfig,
        *,
        first_seq: int = 0,
        on_state: Callable[[StateRecord], None] = _no_state,
        on_count: Callable[[int], None] = _no_count,
        supersede_cause: Callable[[], DropCause] = _superseded,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
        backoff: Backoff | None = None,
        cooldown: Cooldown | None = None,
        open_source: Callable[[SourceConfig, Clock], Source] = open_source,
    ) -> None:
        rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self.camera, self.config = camera, config
        self.slot: NewestSlot[Taken] = NewestSlot()
        self._on_state, self._clock, self._open_source = on_state, clock, open_source
        self._backoff, self._cooldown = backoff or Backoff(rng=rng), cooldown or Cooldown(rng=rng)
        self._account = FrameAccount(self.slot, first_seq, clock, on_count, supersede_cause)
        self._watchdog = Watchdog(config)
        self._connection: Connection | None = None
        self._threads: list[threading.Thread] = []
        self._opens, self._repaired = 0, 0
        self._info: StreamInfo | None = None
        self._record = StateRecord(camera, "connecting", None, "", clock.unix_us())

    async def run(self) -> None:
        """Read until the end of a file, or until cancelled; a live source never ends by itself.

        Raises SourceError("internal") when so many reads are stuck that only a new process helps.
        """
        try:
            while (error := await self._connect()) is not None:
                if self._is_final(error):
                    self._set_state("ended", error.reason, str(error))
                    return
                await self._wait_after(error)
            self._set_state("ended", None, "end of file")
        except asyncio.CancelledError:
            self._set_state("stopped")
            raise
        except SourceError as error:
            self._set_state("stopped", error.reason, str(error))
            raise

    def state(self) -> StateRecord:
        """What the camera is doing now, with fresh figures."""
        account, live = self._account, self._record.state == "streaming"
        return msgspec.structs.replace(
            self._record,
            captured=account.captured,
            last_frame_at_us=account.last_frame_at_us,
            fps_in=account.fps() if live else 0.0,
            clock=account.last_clock,
            repaired_pts=self._repaired + (self._connection.repaired_pts if self._connection else 0),
            reconnects=max(0, self._opens - 1),
        )

    def tail(self) -> tuple[int, Since]:
        """After `run`: the last frame_seq, and what became of the frames since the last one that was taken."""
        return self._account.tail()

    # ---- the listener of a connection

    def streaming(self, info: StreamInfo, *, opened: bool) -> None:
        """Good pictures come (again)."""
        self._backoff.reset()
        self._cooldown.reset()
        self._opens += opened
        self._record.codec, self._record.size = info.codec, (info.width, info.height)
        self._set_state("streaming")

    def stalled(self, silent_s: float) -> None:
        """Nothing has come for a while."""
        self._set_state("stalled", "stalled", f"nothing came for {silent_s:.1f} s")

    # ---- the way round

    async def _connect(self) -> SourceError | None:
        """One connection from its opening to its end; returns why it ended."""
        self._forget_ended_threads()
        self._set_state("connecting")
        config = replace(self.config, read_timeout_s=self._watchdog.read_timeout_s)
        source = self._open_source(config, self._clock)
        connection = Connection(
            source,
            self._account,
            self._watchdog,
            self._clock,
            self,
            name=f"read {self.camera}",
            max_pixels=self.config.max_pixels,
        )
        self._connection = connection
        self._threads.append(connection.thread)
        try:
            error = await connection.run()
        finally:
            self._connection = None
            self._info = connection.info
            self._repaired += connection.repaired_pts
        self._watchdog.closed(silent=error is not None and error.reason in ("timeout", "stalled"))
        return error

    def _is_final(self, error: SourceError) -> bool:
        """Files, patterns and wrong scene names: trying again would bring the same."""
        opened_file = self._info is not None and not self._info.live
        no_scene = error.reason == "not_found" and self.config.url.startswith("scene:")
        return opened_file or no_scene or not comes_back(self.config.url)

    async def _wait_after(self, error: SourceError) -> None:
        """Back-off; after a refused password a long cool-down, so that the camera does not lock the account."""
        refused = error.reason == "auth"
        delay_s = self._cooldown.next_s() if refused else self._backoff.next_s()
        retry_at_us = self._clock.unix_us() + round(delay_s * 1e6)
        self._set_state("auth_failed" if refused else "backoff", error.reason, str(error), retry_at_us)
        await asyncio.sleep(delay_s)

    def _forget_ended_threads(self) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) >= MAX_STUCK_THREADS:
            raise SourceError(
                "internal",
                f"{len(self._threads)} reads of this camera are stuck and cannot be ended; restart the process",
            )

    def _set_state(
        self, status: CameraStatus, reason: Reason | None = None, detail: str = "", retry_at_us: int | None = None
    ) -> None:
        record = self._record
        record.state, record.reason, record.detail = status, reason, redact(detail)
        record.since_us, record.next_retry_at_us = self._clock.unix_us(), retry_at_us
        self._on_state(self.state())
