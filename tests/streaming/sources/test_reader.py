import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from streaming.clock import Clock
from streaming.errors import SourceError
from streaming.frames import CaptureTime, Since
from streaming.records import StateRecord
from streaming.retry import Backoff, Cooldown
from streaming.sources import SourceConfig
from streaming.sources.base import Picture, StreamInfo
from streaming.sources.reader import CameraReader

QUICK = SourceConfig("rtsp://u:hunter2@camera/x", open_timeout_s=0.1, read_timeout_s=0.1, stall_floor_s=0.3)


@dataclass
class Image:
    width: int = 64
    height: int = 48


@dataclass
class FakeCamera:
    """One connection: `open_error`, then `frames` pictures, then `end` (an error, a stuck read, or the end of a file)."""

    open_error: SourceError | None = None
    frames: int = 3
    end: SourceError | None = None
    stuck: threading.Event | None = None
    live: bool = True
    interval_s: float = 0.005
    last_packet_ns: int = 0
    repaired_pts: int = 1
    closed: int = 0

    def open(self) -> StreamInfo:
        if self.open_error:
            raise self.open_error
        return StreamInfo("h264", 0, 0, 25.0, live=self.live, lossless=not self.live)

    def pictures(self) -> Iterator[Picture]:
        for number in range(self.frames):
            time.sleep(self.interval_s)
            yield self.picture(number)
        if self.stuck:
            self.stuck.wait(30)
            yield self.picture(self.frames)
        if self.end:
            raise self.end

    def picture(self, number: int) -> Picture:
        self.last_packet_ns = time.monotonic_ns()
        image: Any = Image()
        captured = CaptureTime(time.time_ns() // 1000, "arrival", 0)
        return Picture(image, number * 40_000, captured, self.last_packet_ns, 0, reset=number == 0)

    def close(self) -> None:
        self.closed += 1


@dataclass
class Cameras:
    """Hands out one connection after the other; the last one again and again."""

    make: list[Callable[[], FakeCamera]]
    opened: list[FakeCamera] = field(default_factory=list)
    configs: list[SourceConfig] = field(default_factory=list)

    def __call__(self, config: SourceConfig, _clock: Clock) -> FakeCamera:
        camera = self.make[min(len(self.opened), len(self.make) - 1)]()
        self.opened.append(camera)
        self.configs.append(config)
        return camera


@dataclass
class Watched:
    reader: CameraReader
    states: list[StateRecord]
    task: asyncio.Task[None]
    changed: asyncio.Event

    async def until(self, found: Callable[[StateRecord], bool]) -> StateRecord:
        async with asyncio.timeout(20):
            while True:
                if match := next((state for state in self.states if found(state)), None):
                    return match
                self.changed.clear()
                await self.changed.wait()

    async def until_state(self, *names: str) -> StateRecord:
        return await self.until(lambda state: state.state in names)


@asynccontextmanager
async def running(cameras: Any, config: SourceConfig = QUICK, **settings: Any) -> AsyncIterator[Watched]:
    states: list[StateRecord] = []
    changed = asyncio.Event()

    def on_state(state: StateRecord) -> None:
        states.append(state)
        changed.set()

    defaults = {"backoff": Backoff(base_s=0.01, rng=random.Random(1)), "open_source": cameras}
    reader = CameraReader("front", config, on_state=on_state, **(defaults | settings))
    task = asyncio.create_task(reader.run())
    try:
        yield Watched(reader, states, task, changed)
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_reader_states_of_a_camera_that_comes_and_goes() -> None:  # R8, R22
    ended = SourceError("ended", "rtsp://u:hunter2@camera/x: gone")
    cameras = Cameras([lambda: FakeCamera(end=ended), lambda: FakeCamera(frames=10_000)])
    async with running(cameras) as watched:
        await watched.until(lambda state: state.state == "streaming" and state.reconnects == 1)
        assert [state.state for state in watched.states] == [
            *("connecting", "streaming", "backoff", "connecting", "streaming")
        ]
        backoff = watched.states[2]
        assert (backoff.reason, backoff.captured, backoff.repaired_pts) == ("ended", 3, 1)
        assert backoff.next_retry_at_us is not None
        assert backoff.next_retry_at_us >= backoff.since_us
        assert backoff.last_frame_at_us is not None
        assert (watched.states[1].codec, watched.states[1].size) == ("h264", (64, 48))
    assert watched.states[-1].state == "stopped"
    assert "hunter2" not in repr(watched.states)  # R20
    assert cameras.opened[0].closed == 1


async def test_reader_frames_are_numbered_over_reconnections() -> None:
    cameras = Cameras([lambda: FakeCamera(end=SourceError("ended", "gone"))])
    async with running(cameras, first_seq=100) as watched:
        last_seq, resets = 99, 0
        while last_seq < 110:
            taken = await asyncio.wait_for(watched.reader.slot.get(), 10)
            assert taken.frame_seq - last_seq == 1 + taken.since.frames
            last_seq, resets = taken.frame_seq, resets + taken.picture.reset
    assert resets >= 3
    up_to_seq, since = watched.reader.tail()
    assert up_to_seq - last_seq == since.frames
    assert watched.reader.state().captured == up_to_seq + 1


async def test_reader_never_gives_up_and_waits_longer_each_time() -> None:  # R6, R8
    delays: list[float] = []

    class Recorded(Backoff):
        def next_s(self) -> float:
            delays.append(super().next_s())
            return 0.0

    cameras = Cameras([lambda: FakeCamera(open_error=SourceError("refused", "nobody"))])
    async with running(cameras, backoff=Recorded(rng=random.Random(3))) as watched:
        await watched.until(lambda _state: len(delays) >= 40)
    assert max(delays) <= 60
    assert sum(delays[20:]) / 20 > 15


async def test_reader_backoff_is_reset_by_the_first_good_picture() -> None:  # R6
    refused = SourceError("refused", "nobody")
    backoff = Backoff(base_s=0.001, rng=random.Random(1))
    cameras = Cameras([*[lambda: FakeCamera(open_error=refused)] * 4, lambda: FakeCamera(frames=10_000)])
    async with running(cameras, backoff=backoff) as watched:
        await watched.until_state("streaming")
        assert len(cameras.opened) == 5
        assert backoff.failures == 0


async def test_reader_refused_password_is_tried_once_and_then_not_for_minutes() -> None:  # R7
    cameras = Cameras([lambda: FakeCamera(open_error=SourceError("auth", "wrong password"))])
    async with running(cameras, cooldown=Cooldown(rng=random.Random(1))) as watched:
        state = await watched.until_state("auth_failed")
        await asyncio.sleep(0.2)
        assert len(cameras.opened) == 1
        assert state.next_retry_at_us is not None
        assert state.next_retry_at_us - state.since_us >= 299_000_000
        assert state.reason == "auth"


async def test_reader_stuck_read_is_abandoned_and_replaced() -> None:  # R1
    stuck = threading.Event()
    cameras = Cameras([lambda: FakeCamera(stuck=stuck), lambda: FakeCamera(frames=10_000)])
    async with running(cameras) as watched:
        await watched.until(lambda state: state.state == "streaming" and state.reconnects == 1)
        names = [state.state for state in watched.states]
        assert names[:6] == ["connecting", "streaming", "stalled", "backoff", "connecting", "streaming"]
        assert watched.states[3].reason == "stalled"
        captured = watched.reader.state().captured
        stuck.set()  # the old thread wakes up and delivers into the void
        await asyncio.sleep(0.1)
        assert cameras.opened[0].closed == 1
        assert watched.reader.state().captured - captured < 40


async def test_reader_silence_is_told_and_forgotten_when_frames_return() -> None:
    config = SourceConfig("rtsp://camera/x", read_timeout_s=0.2, stall_floor_s=10)
    pause = threading.Event()
    cameras = Cameras([lambda: FakeCamera(stuck=pause, end=SourceError("ended", "gone"))])
    async with running(cameras, config) as watched:
        await watched.until_state("stalled")
        pause.set()
        await watched.until(lambda state: state.state == "backoff")
        assert [state.state for state in watched.states][:5] == [
            *("connecting", "streaming", "stalled", "streaming", "backoff")
        ]
        assert watched.states[3].reconnects == 0


async def test_reader_too_many_stuck_reads_end_with_an_error() -> None:
    stuck = threading.Event()
    try:
        cameras = Cameras([lambda: FakeCamera(frames=2, stuck=stuck)])
        async with running(cameras) as watched:
            async with asyncio.timeout(20):
                with pytest.raises(SourceError, match="restart the process") as raised:
                    await asyncio.shield(watched.task)
            assert raised.value.reason == "internal"
            assert len(cameras.opened) == 4
            assert watched.states[-1].state == "stopped"
    finally:
        stuck.set()


@pytest.mark.parametrize("where", ["open", "read"])
async def test_reader_stops_at_once_with_a_stuck_thread(where: str) -> None:  # R1, R21
    stuck = threading.Event()

    class StuckOpen(FakeCamera):
        def open(self) -> StreamInfo:
            if where == "open":
                stuck.wait(30)
            return super().open()

    try:
        async with running(Cameras([lambda: StuckOpen(stuck=stuck)]), SourceConfig("rtsp://camera/x")) as watched:
            await watched.until_state("connecting" if where == "open" else "streaming")
            await asyncio.sleep(0.1)
            started_s = time.monotonic()
            watched.task.cancel()
            await asyncio.wait({watched.task})
            assert time.monotonic() - started_s < 0.5
            assert watched.reader.state().state == "stopped"
    finally:
        stuck.set()


async def test_reader_stuck_open_is_a_time_out() -> None:
    stuck = threading.Event()

    class StuckOpen(FakeCamera):
        def open(self) -> StreamInfo:
            stuck.wait(30)
            return super().open()

    try:
        async with running(Cameras([StuckOpen])) as watched:
            assert (await watched.until_state("backoff")).reason == "timeout"
    finally:
        stuck.set()


async def test_reader_undecodable_packets_are_not_streaming_for_ever() -> None:
    class Noise(FakeCamera):
        def pictures(self) -> Iterator[Picture]:
            while True:
                time.sleep(0.01)
                picture = self.picture(0)
                picture.damaged, picture.image, picture.reset = True, None, False
                yield picture

    async with running(Cameras([Noise])) as watched:
        state = await watched.until_state("backoff")
        assert state.reason == "codec"
        assert "streaming" not in [state.state for state in watched.states]
        _, since = watched.reader.tail()
        assert since.dropped["corrupt"] == watched.reader.state().captured > 10


async def test_reader_a_slow_camera_gets_more_time_each_try() -> None:  # R10
    timeout = SourceError("timeout", "too slow")
    cameras = Cameras([lambda: FakeCamera(frames=1, end=timeout)])
    async with running(cameras) as watched:
        await watched.until(lambda _state: len(cameras.configs) >= 4)
    assert [round(config.read_timeout_s, 2) for config in cameras.configs[:4]] == [0.1, 0.2, 0.4, 0.8]


async def test_reader_says_why_a_picture_was_overtaken() -> None:
    cameras = Cameras([lambda: FakeCamera(frames=5, end=SourceError("ended", "gone"))])
    async with running(cameras, supersede_cause=lambda: "paced", backoff=Backoff(base_s=100)) as watched:
        await watched.until_state("backoff")
        taken = watched.reader.slot.take()
        assert taken is not None
        assert taken.since == Since(dropped={"paced": 4})


async def test_reader_fault_of_our_own_is_named_and_retried() -> None:
    class Broken(FakeCamera):
        def open(self) -> StreamInfo:
            raise ZeroDivisionError("rtsp://u:hunter2@camera/x")

    async with running(Cameras([Broken])) as watched:
        state = await watched.until_state("backoff")
        assert state.reason == "internal"
        assert "ZeroDivisionError" in state.detail
        assert "hunter2" not in state.detail


async def test_reader_file_ends_and_nothing_of_it_is_lost() -> None:  # R24
    cameras = Cameras([lambda: FakeCamera(frames=200, live=False, interval_s=0)])
    async with running(cameras, SourceConfig("/clip.mp4")) as watched:
        taken = [await asyncio.wait_for(watched.reader.slot.get(), 10) for _ in range(200)]
        await asyncio.wait_for(watched.task, 10)
        assert [one.frame_seq for one in taken] == list(range(200))
        assert all(one.since == Since() for one in taken)
        assert [state.state for state in watched.states] == ["connecting", "streaming", "ended"]
        assert watched.reader.tail() == (199, Since())


@pytest.mark.parametrize("url", ["/no/such.mp4", "scene:nowhere"])
async def test_reader_what_can_never_be_ends_with_its_reason(url: str) -> None:  # R25
    cameras = Cameras([lambda: FakeCamera(open_error=SourceError("not_found", "no such thing"))])
    async with running(cameras, SourceConfig(url)) as watched:
        await asyncio.wait_for(watched.task, 10)
        assert (watched.states[-1].state, watched.states[-1].reason) == ("ended", "not_found")
        assert len(cameras.opened) == 1


async def test_reader_movie_that_breaks_off_does_not_start_again() -> None:
    cameras = Cameras([lambda: FakeCamera(live=False, end=SourceError("ended", "broke off"))])
    async with running(cameras, SourceConfig("http://shelf/movie.mp4")) as watched:
        for frame_seq in range(3):
            assert (await asyncio.wait_for(watched.reader.slot.get(), 10)).frame_seq == frame_seq
        await asyncio.wait_for(watched.task, 10)
        assert (watched.states[-1].state, watched.states[-1].reason) == ("ended", "ended")
        assert len(cameras.opened) == 1


async def test_reader_open_that_returns_too_late_changes_nothing() -> None:  # R1
    late, closed = threading.Event(), threading.Event()

    class LateOpen(FakeCamera):
        def open(self) -> StreamInfo:
            late.wait(30)
            return super().open()

        def close(self) -> None:
            closed.set()

    try:
        async with running(Cameras([LateOpen, lambda: FakeCamera(frames=10_000)])) as watched:
            await watched.until_state("streaming")
            late.set()
            assert await asyncio.to_thread(closed.wait, 10)
            await watched.reader.slot.get()
            assert [state.state for state in watched.states] == ["connecting", "backoff", "connecting", "streaming"]
    finally:
        late.set()


async def test_reader_refuses_pictures_that_do_not_fit_into_the_frame_memory() -> None:
    """R16: frame memory is bounded, and the state says how to go on."""
    reader = CameraReader("front", SourceConfig("lavfi:testsrc2=size=640x360:rate=10", max_pixels=640 * 360 - 1))
    running = asyncio.create_task(reader.run())
    async with asyncio.timeout(20):
        while reader.state().reason is None:  # noqa: ASYNC110 - a few looks
            await asyncio.sleep(0.02)
    state = reader.state()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert state.reason == "codec"
    assert "640 x 360" in state.detail
    assert "frame_memory_mb" in state.detail
