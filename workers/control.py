"""What the supervisor and its children say to each other: JSON lines over the child's stdin and stdout.

The assignment, with every secret in it, comes over stdin: process arguments and environments can be read by others.
A closed stdin means that the supervisor is gone.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Literal

import msgspec

Role = Literal["capture", "encode", "publish"]
ROLES: tuple[Role, ...] = ("capture", "encode", "publish")
_MAX_LINE_BYTES = 16 << 20


class Assignment(msgspec.Struct, tag="assignment", frozen=True):
    """Everything that a child needs to start; sent again, changed, when cameras are added, removed or changed."""

    role: Role
    worker: str
    config: str
    """The whole configuration as JSON, secrets included."""
    session: str
    """New at each start of the daemon; names it on MQTT."""
    cameras: tuple[str, ...]
    """The cameras that this worker serves."""
    encoders: dict[str, str]
    """Camera id to the endpoint of its encoder: sticky, because caches live there."""
    listen: str
    """Encoder: where it binds. Publisher: where it collects records."""
    publisher: str
    board: str
    """Path of the account board."""
    broker_port: int | None = None
    """Port of the embedded broker, when there is one."""


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Finish what is in hand within `grace_s` and exit with 0."""

    grace_s: float


Command = Assignment | Stop


class Status(msgspec.Struct, frozen=True):
    """One line from a child. `progress` grows whenever it did something useful: the watchdog looks at it."""

    kind: Literal["ready", "alive", "finished", "failed"]
    progress: int = 0
    detail: str = ""


class CommandReader:
    """Commands from a file descriptor without ever blocking: for asyncio, for a poll loop, for a first blocking read."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._pending = bytearray()
        self.closed = False

    def wait_first(self) -> Assignment:
        """Block until the assignment is here. EOFError when the supervisor went away first."""
        while True:
            for command in self.read_available():
                if isinstance(command, Assignment):
                    os.set_blocking(self.fd, False)
                    return command
            if self.closed:
                raise EOFError("the supervisor closed the pipe before it sent an assignment")

    def read_available(self) -> list[Command]:
        """Commands that have arrived, in one read(2): blocks only before the first assignment."""
        try:
            chunk = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return []
        if not chunk:
            self.closed = True
            return []
        self._pending += chunk
        if len(self._pending) > _MAX_LINE_BYTES:
            raise ValueError(f"a command line of over {_MAX_LINE_BYTES} bytes")
        *lines, rest = self._pending.split(b"\n")
        self._pending = bytearray(rest)
        return [msgspec.json.decode(line, type=Command) for line in lines if line]


class StatusWriter:
    """Status lines to the supervisor; a supervisor that is gone is no error here, the closed stdin tells it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def send(self, status: Status) -> None:
        """Write one line at once: it is below PIPE_BUF, so it is never torn."""
        try:
            os.write(self._fd, msgspec.json.encode(status)[:3500] + b"\n")
        except (BrokenPipeError, BlockingIOError):
            return  # gone, or not reading for 64 KiB of status lines: its watchdog decides


def encode_command(command: Command) -> bytes:
    """One line for a child's stdin."""
    return msgspec.json.encode(command) + b"\n"


def decode_status(line: bytes) -> Status | None:
    """A status line, or None for anything else that a library printed to stdout."""
    try:
        return msgspec.json.decode(line, type=Status)
    except msgspec.DecodeError:
        return None


async def read_orders(commands: CommandReader) -> AsyncIterator[Command]:
    """Commands as they come, for a worker with an event loop; ends with a Stop when the supervisor is gone."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(commands.fd, readable.set)
    try:
        while not commands.closed:
            await readable.wait()
            readable.clear()
            for command in commands.read_available():
                yield command
        yield Stop(grace_s=1.0)
    finally:
        loop.remove_reader(commands.fd)
