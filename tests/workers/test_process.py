import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import pytest

from workers import process
from workers.control import Assignment, Command, Status, Stop
from workers.process import Child
from workers.spawn import Handle

ASSIGNMENT = Assignment(
    role="capture", worker="w", config="{}", session="s", cameras=(), encoders={}, listen="", publisher="", board=""
)


class FakeHandle:
    """A worker that says the given lines and then ends, or stays until it is told to stop or killed."""

    pid = 1

    def __init__(self, lines: Sequence[Status] = (), *, stays: bool = True, obeys: bool = True) -> None:
        self.sent: list[Command] = []
        self.killed = False
        self._lines = [msgspec.json.encode(line) + b"\n" for line in lines]
        self.ended = asyncio.Event()
        self._obeys = obeys
        if not stays:
            self.ended.set()

    def send(self, command: Command) -> None:
        self.sent.append(command)
        if isinstance(command, Stop) and self._obeys:
            self.ended.set()

    async def readline(self) -> bytes:
        if self._lines:
            return self._lines.pop(0)
        await self.ended.wait()
        return b""

    async def wait(self) -> int:
        await self.ended.wait()
        return 0

    def kill(self) -> None:
        self.killed = True
        self.ended.set()


def spawner(*handles: FakeHandle) -> Callable[[], Awaitable[Handle]]:
    waiting = list(handles)

    async def spawn() -> Handle:
        return waiting.pop(0)

    return spawn


async def until_ready(child: Child) -> None:
    while not child.ready:  # noqa: ASYNC110 - a child has no event of its own: its owner gets a call
        await asyncio.sleep(0)


async def test_child_that_dies_is_started_again_with_its_newest_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.Backoff, "next_s", lambda _: 0.0)
    second = FakeHandle([Status("ready")])
    child = Child(ASSIGNMENT, lambda _: None, spawner(FakeHandle(stays=False), second))
    keeping = asyncio.create_task(child.keep())
    async with asyncio.timeout(5):
        await until_ready(child)
        assert child.restarts == 1
        assert second.sent == [ASSIGNMENT]
        await child.stop(1.0)
        await keeping


async def test_child_that_is_silent_is_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.Backoff, "next_s", lambda _: 0.0)
    monkeypatch.setattr(process, "SILENCE_LIMIT_S", 0.05)
    stuck, fresh = FakeHandle([Status("ready")]), FakeHandle([Status("ready")] * 2)
    child = Child(ASSIGNMENT, lambda _: None, spawner(stuck, fresh, FakeHandle(), FakeHandle()))
    keeping = asyncio.create_task(child.keep())
    async with asyncio.timeout(5):
        await stuck.ended.wait()
        await child.stop(1.0)
        await keeping


async def test_child_that_does_not_stop_in_time_is_killed() -> None:
    deaf = FakeHandle([Status("ready")], obeys=False)
    child = Child(ASSIGNMENT, lambda _: None, spawner(deaf))
    keeping = asyncio.create_task(child.keep())
    async with asyncio.timeout(5):
        await until_ready(child)
        await child.stop(0.05)
        await keeping
    assert deaf.killed


async def test_child_that_has_finished_is_not_started_again() -> None:
    child = Child(ASSIGNMENT, lambda _: None, spawner(FakeHandle([Status("finished")], stays=False)))
    async with asyncio.timeout(5):
        await child.keep()
    assert child.finished
