"""One child process: spawn, talk, watch, stop, and spawn again with back-off when it dies."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from streaming.logs import get_logger
from streaming.retry import Backoff
from workers.control import Assignment, Command, Stop, decode_status
from workers.spawn import Handle, ProcessHandle

_log = get_logger("supervisor")
SILENCE_LIMIT_S = 20.0
"""A child says `alive` every second; one that is silent for this long is stuck and gets replaced."""
START_LIMIT_S = 120.0
"""Until its first word: imports and model loading on a slow board."""


class Child:
    """A worker process under care. `assignment` may be replaced while it runs; a restart takes the newest one."""

    def __init__(
        self,
        assignment: Assignment,
        on_change: Callable[["Child"], None],
        spawn: Callable[[], Awaitable[Handle]] = ProcessHandle.spawn,
    ) -> None:
        self.assignment = assignment
        self.up = asyncio.Event()
        self.finished = False
        self.progress = 0
        self.restarts = 0
        self.pid: int | None = None
        self._on_change = on_change
        self._spawn = spawn
        self._handle: Handle | None = None
        self._heard_at = 0.0
        self._stopping = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether it has said so since it was started last."""
        return self.up.is_set()

    @property
    def name(self) -> str:
        """The worker's name, as in the log and in `stats`."""
        return self.assignment.worker

    @property
    def silent_s(self) -> float:
        """Seconds since its last word."""
        return time.monotonic() - self._heard_at

    async def keep(self) -> None:
        """Run it until `stop`; restart it with back-off whenever it exits or falls silent."""
        backoff = Backoff(base_s=0.5, cap_s=10.0)
        while not self._stopping.is_set():
            started = time.monotonic()
            code = await self._run_once()
            if self._stopping.is_set() or self.finished:
                return
            self.restarts += 1
            if time.monotonic() - started > 30.0:
                backoff.reset()
            delay_s = backoff.next_s()
            _log.error("worker exited; restarting", name=self.name, exit_code=code, retry_in_s=round(delay_s, 2))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _run_once(self) -> int:
        handle = await self._spawn()
        self._handle, self.pid, self._heard_at = handle, handle.pid, time.monotonic()
        _log.info("worker started", name=self.name, pid=handle.pid)
        handle.send(self.assignment)
        watch = asyncio.create_task(self._kill_when_silent(handle), name=f"watch {self.name}")
        try:
            while line := await handle.readline():
                self._take(line)
            return await handle.wait()
        finally:
            watch.cancel()
            handle.kill()
            self.up.clear()
            self._handle = self.pid = None
            self._on_change(self)

    def _take(self, line: bytes) -> None:
        status = decode_status(line)
        if status is None:
            _log.debug("worker printed", name=self.name, line=line.decode(errors="replace").strip())
            return
        self._heard_at = time.monotonic()
        self.progress = max(self.progress, status.progress)
        if status.kind == "ready":
            self.up.set()
        elif status.kind == "finished":
            self.finished = True
        elif status.kind == "failed":
            _log.error("worker failed", name=self.name, detail=status.detail)
        if status.kind != "alive":
            self._on_change(self)

    async def _kill_when_silent(self, handle: Handle) -> None:
        while (left_s := (SILENCE_LIMIT_S if self.ready else START_LIMIT_S) - self.silent_s) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left_s)
        _log.error("worker is silent; killing it", name=self.name, silent_s=round(self.silent_s, 1))
        handle.kill()

    def send(self, command: Command) -> None:
        """Hand it a command; one that is down gets the newest assignment when it starts."""
        if isinstance(command, Assignment):
            self.assignment = command
        if self._handle is not None:
            self._handle.send(command)

    async def stop(self, grace_s: float) -> None:
        """Ask it to stop, and kill it when it has not within `grace_s`."""
        self._stopping.set()
        handle = self._handle
        if handle is None:
            return
        handle.send(Stop(grace_s))
        try:
            await asyncio.wait_for(handle.wait(), grace_s)
        except TimeoutError:
            _log.warning("worker did not stop in time; killing it", name=self.name, grace_s=grace_s)
            handle.kill()
