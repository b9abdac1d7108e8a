import asyncio
import threading
from pathlib import Path

from streaming.board import AccountBoard
from streaming.config import load_text
from streaming.frames import DropCause, Frame, FrameSpec
from streaming.records import StateRecord
from streaming.wire import Tail
from workers.camera import CameraCapture
from workers.health import Health


class FakeLink:
    """An encoder that takes what it is told to, and remembers it."""

    spec = FrameSpec(size_hw=(32, 32))

    def __init__(self, refusals: list[DropCause | None]) -> None:
        self.refusals = refusals
        self.frames: list[Frame] = []
        self.records: list[StateRecord | Tail] = []
        self.threads: list[str] = []
        self.free = True

    async def ready(self) -> FrameSpec:
        return self.spec

    async def credit(self, _camera: str) -> None:
        await asyncio.sleep(0 if self.free else 0.35)
        self.free = True

    def blocked(self, _camera: str) -> DropCause | None:
        return None if self.free else "superseded"

    def add_camera(self, _camera: str, *, lossless: bool = False) -> None:
        self.lossless = lossless

    def send_frame(self, frame: Frame) -> DropCause | None:
        cause = self.refusals.pop(0) if self.refusals else None
        if cause is None:
            self.frames.append(frame)
            self.threads.append(threading.current_thread().name)
        return cause

    def send_record(self, record: StateRecord | Tail) -> bool:
        self.records.append(record)
        return True


async def run_scene(tmp_path: Path, refusals: list[DropCause | None]) -> FakeLink:
    settings = load_text("cameras: {a: 'scene:busy?realtime=0&frames=6&fps=10'}").cameras["a"]
    link = FakeLink(refusals)
    with AccountBoard.create(tmp_path / "board") as board:
        capture = CameraCapture("a", settings, link, board.allocate("a"), Health("test"), max_pixels=0)  # type: ignore[arg-type]
        async with asyncio.timeout(30):
            await capture.run()
        capture.stop()
    return link


async def test_camera_sends_every_frame_of_a_file_in_order(tmp_path: Path) -> None:
    link = await run_scene(tmp_path, [])
    assert [frame.frame_seq for frame in link.frames] == [0, 1, 2, 3, 4, 5]
    assert [frame.reset for frame in link.frames] == [True, False, False, False, False, False]
    assert all(frame.pixels.shape == (32, 32, 3) for frame in link.frames)
    assert link.lossless


async def test_camera_whose_first_frame_was_not_taken_says_reset_with_the_next(tmp_path: Path) -> None:
    link = await run_scene(tmp_path, ["encoder_away", "encoder_away"])
    first = link.frames[0]
    assert (first.frame_seq, first.reset) == (2, True)
    assert first.since.dropped == {"encoder_away": 2}
    assert not link.frames[1].reset


async def test_camera_tells_at_its_end_what_was_never_sent(tmp_path: Path) -> None:
    link = await run_scene(tmp_path, [None, None, None, None, "encoder_away", "encoder_away"])
    tails = [record for record in link.records if isinstance(record, Tail)]
    assert [(tail.up_to_seq, tail.since.dropped) for tail in tails] == [(5, {"encoder_away": 2})]


async def run_live(tmp_path: Path, *, free: bool) -> FakeLink:
    """Until six frames have been sent; `free`: whether there is a credit from the start."""
    settings = load_text("cameras: {a: 'scene:busy?fps=10'}").cameras["a"]
    link = FakeLink([])
    link.free = free
    with AccountBoard.create(tmp_path / "board") as board:
        capture = CameraCapture("a", settings, link, board.allocate("a"), Health("test"), max_pixels=0)  # type: ignore[arg-type]
        running = asyncio.create_task(capture.run())
        async with asyncio.timeout(30):
            while len(link.frames) < 6:  # noqa: ASYNC110 - the frames come from a thread
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait({running})
        capture.stop()
    return link


async def test_camera_sends_what_can_go_at_once_from_the_thread_that_read_it(tmp_path: Path) -> None:
    link = await run_live(tmp_path, free=True)
    assert [frame.frame_seq for frame in link.frames[:6]] == [0, 1, 2, 3, 4, 5]
    assert set(link.threads) == {"read a"}


async def test_camera_sends_the_newest_from_the_loop_when_it_had_to_wait_for_a_credit(tmp_path: Path) -> None:
    link = await run_live(tmp_path, free=False)
    assert link.threads[0] != "read a"
    assert link.threads[-1] == "read a"
    first = link.frames[0]
    assert first.frame_seq >= 1
    assert first.reset
    assert first.since.dropped == {"superseded": first.frame_seq}
    assert [frame.frame_seq for frame in link.frames] == [first.frame_seq + n for n in range(len(link.frames))]
