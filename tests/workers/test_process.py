import asyncio

import msgspec

from workers import process
from workers.control import Assignment, Status, Stop
from workers.process import Child

ASSIGNMENT = Assignment(
    role="capture", worker="w", config="{}", session="s", cameras=(), encoders={}, listen="", publisher="", board=""
)


class FakeHandle:
    """A worker that says the given lines and then ends, or stays until it is told to stop or killed."""

    pid = 1

    def __init__(self, lines=(), *, stays=True, obeys=True):
        self.sent, self.killed, self._lines = [], False, [msgspec.json.encode(line) + b"\n" for line in lines]
        self._ended = asyncio.Event()
        self._obeys = obeys
        if not stays:
            self._ended.set()

    def send(self, command):
        self.sent.append(command)
        if isinstance(command, Stop) and self._obeys:
            self._ended.set()

    async def readline(self):
        if self._lines:
            return self._lines.pop(0)
        await self._ended.wait()
        return b""

    async def wait(self):
        await self._ended.wait()
        return 0

    def kill(self):
        self.killed = True
        self._ended.set()


def spawner(*handles):
    waiting = list(handles)

    async def spawn():
        return waiting.pop(0)

    return spawn


async def test_child_that_dies_is_started_again_with_its_newest_assignment(monkeypatch):
    monkeypatch.setattr(process.Backoff, "next_s", lambda _: 0.0)
    second = FakeHandle([Status("ready")])
    child = Child(ASSIGNMENT, lambda _: None, spawner(FakeHandle(stays=False), second))
    keeping = asyncio.create_task(child.keep())
    async with asyncio.timeout(5):
        while not child.ready:
            await asyncio.sleep(0)
        assert child.restarts == 1
        assert second.sent == [ASSIGNMENT]
        await child.stop(1.0)
        await keeping


async def test_child_that_is_silent_is_killed_and_replaced(monkeypatch):
    monkeypatch.setattr(process.Backoff, "next_s", lambda _: 0.0)
    monkeypatch.setattr(process, "SILENCE_LIMIT_S", 0.05)
    stuck, fresh = FakeHandle([Status("ready")]), FakeHandle([Status("ready")] * 2)
    child = Child(ASSIGNMENT, lambda _: None, spawner(stuck, fresh, FakeHandle(), FakeHandle()))
    keeping = asyncio.create_task(child.keep())
    async with asyncio.timeout(5):
        while not stuck.killed:
            await asyncio.sleep(0.01)
        await child.stop(1.0)
        await keeping


async def test_child_that_does_not_stop_in_time_is_killed():
    deaf = FakeHandle([Status("ready")], obeys=False)
    child = Child(ASSIGNMENT, lambda _: None, spawner(deaf))
    keeping = asyncio.create_task(child.keep())
    async with asyncio.timeout(5):
        while not child.ready:
            await asyncio.sleep(0)
        await child.stop(0.05)
        await keeping
    assert deaf.killed


async def test_child_that_has_finished_is_not_started_again():
    child = Child(ASSIGNMENT, lambda _: None, spawner(FakeHandle([Status("finished")], stays=False)))
    async with asyncio.timeout(5):
        await child.keep()
    assert child.finished
