"""Two ways to run a worker, with one face: a process of its own, or a thread of this one (`--single-process`)."""

import asyncio
import contextlib
import os
import sys
import threading
from typing import Protocol

from workers.control import Command, encode_command


class Handle(Protocol):
    """A running worker: commands in, status lines out."""

    pid: int

    def send(self, command: Command) -> None:
        """Hand it one command."""
        ...

    async def readline(self) -> bytes:
        """Its next status line; empty when it has ended."""
        ...

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        ...

    def kill(self) -> None:
        """End it without asking. A thread cannot be killed: it sees its commands end and stops by itself."""
        ...


class ProcessHandle:
    """`python -m workers.child`, in a session of its own so that Ctrl-C in a terminal reaches only the supervisor."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def spawn(cls) -> "ProcessHandle":
        """Start the process; it waits for its assignment."""
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "workers.child"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        )

    def send(self, command: Command) -> None:
        """Hand it one command; a process that is already gone takes none."""
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(encode_command(command))

    async def readline(self) -> bytes:
        """Its next status line; empty when it has ended."""
        assert self._process.stdout is not None  # noqa: S101 - spawn asked for the pipe
        return await self._process.stdout.readline()

    async def wait(self) -> int:
        """Its exit code; negative for a signal."""
        return await self._process.wait()

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class ThreadHandle:
    """The same worker code in a thread: the same pipes, and `inproc://` in place of `ipc://`."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        commands_read, self._commands = os.pipe()
        status_read, status_write = os.pipe()
        self._status_fd = status_read
        self._reader: asyncio.StreamReader | None = None
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[int] = self._loop.create_future()
        self._killed = False
        threading.Thread(target=self._run, args=(commands_read, status_write), daemon=True).start()

    @classmethod
    async def spawn(cls) -> "ThreadHandle":
        """Start the thread; it waits for its assignment."""
        handle = cls()
        handle._reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(handle._reader)
        await handle._loop.connect_read_pipe(lambda: protocol, os.fdopen(handle._status_fd, "rb", buffering=0))
        return handle

    def _run(self, commands_fd: int, status_fd: int) -> None:
        from workers.child import run_worker

        code = run_worker(commands_fd, status_fd)
        os.close(status_fd)
        os.close(commands_fd)
        with contextlib.suppress(RuntimeError):  # the loop may be gone when the whole program ends
            self._loop.call_soon_threadsafe(self._done.set_result, code)

    def send(self, command: Command) -> None:
        """Hand it one command."""
        if not self._killed:
            with contextlib.suppress(BrokenPipeError, OSError):
                os.write(self._commands, encode_command(command))

    async def readline(self) -> bytes:
        """Its next status line; empty when it has ended."""
        assert self._reader is not None  # noqa: S101 - spawn made it
        return await self._reader.readline()

    async def wait(self) -> int:
        """The exit code that the process would have had."""
        return await asyncio.shield(self._done)

    def kill(self) -> None:
        """Close its commands: it takes that as the end of its supervisor and stops."""
        if not self._killed:
            self._killed = True
            os.close(self._commands)
