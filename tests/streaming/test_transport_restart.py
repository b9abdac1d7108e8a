import asyncio
import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from streaming.board import AccountBoard
from streaming.frames import Since
from streaming.records import FeatureRecord
from streaming.transport import CaptureLink, EncoderInbox, FrameArrived, RecordReceiver, WorkerStarted, WorkerVanished
from streaming.transport.records import SEND_HWM
from streaming.wire import Tail
from tests.streaming.transport_gear import (
    PATIENCE_S,
    REPOSITORY,
    SMALL,
    EncoderThread,
    Ledger,
    encoder_process,
    frame,
    until,
)

CAMERAS = ("a", "b", "c", "d")

CAPTURE_WORKER = """
import asyncio, sys
from pathlib import Path
from streaming.board import AccountBoard
from streaming.transport import CaptureLink
from tests.streaming.transport_gear import frame

async def main(endpoint, board):
    row = AccountBoard.open(Path(board)).row("front")
    async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
        await link.ready()
        while True:
            await link.credit("front")
            seq = row.captured
            row.captured = seq + 1
            link.send_frame(frame("front", seq))
            await asyncio.sleep(0.001)

asyncio.run(main(*sys.argv[1:]))
"""


async def stream(link: CaptureLink, camera: str, count: int) -> None:
    """All frames of a camera, read at the encoder's pace; ends with a tail when the last frame is accounted for."""
    for seq in range(count):
        while True:
            await link.credit(camera)
            if link.send_frame(frame(camera, seq)) is None:
                break
            await asyncio.sleep(0)
    while not link.send_record(Tail(camera, count, Since(0, {"stopped": 1}))):
        await link.credit(camera)


async def collect(receiver: RecordReceiver, ledger: Ledger, last_seq: int) -> None:
    """Records until each camera has reached its end; every picture must be whole."""
    async for record in receiver:
        assert not isinstance(record, FeatureRecord) or record.vector == b"\0\0\x80?", "torn pixels"
        ledger.book_record(record)
        if len(ledger.last) == len(CAMERAS) and min(ledger.last.values()) == last_seq:
            return


async def run_with_killed_encoder(folder: Path, count: int) -> None:
    """R26: `count` frames over four cameras; the encoder is killed in the middle and another takes its place."""
    encoders, records = f"ipc://{folder}/encoder", f"ipc://{folder}/records"
    ledger = Ledger()
    each = count // len(CAMERAS)
    async with RecordReceiver(records) as receiver, CaptureLink(encoders, "capture-0", CAMERAS) as link:
        process = await asyncio.to_thread(encoder_process, encoders, records)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(collect(receiver, ledger, each), name="collect")
            for camera in CAMERAS:
                tasks.create_task(stream(link, camera, each), name=camera)
            await until(lambda: ledger.frames >= count // 2)
            process.kill()
            await asyncio.to_thread(process.communicate)
            process = await asyncio.to_thread(encoder_process, encoders, records)
        said, _ = await asyncio.to_thread(process.communicate, "", PATIENCE_S)
    assert json.loads(said)["bad"] == 0
    assert receiver.bad_messages == 0
    # Every frame was sent, so all that is missing is what the killed process can have held: frames and records.
    assert ledger.last == dict.fromkeys(CAMERAS, each)
    assert ledger.lost <= 2 * len(CAMERAS) + SEND_HWM
    assert ledger.dropped["stopped"] == len(CAMERAS)
    assert ledger.dropped["worker_lost"] <= 2 * len(CAMERAS)  # sent to the dead one, received by the next
    assert set(ledger.dropped) <= {"stopped", "worker_lost", "publisher_behind"}
    assert ledger.frames + ledger.dropped.total() + ledger.lost == len(CAMERAS) * (each + 1)


async def test_frames_flow_on_when_the_encoder_is_killed_in_the_middle(tmp_path: Path) -> None:
    await run_with_killed_encoder(tmp_path, 20_000)


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_hundred_thousand_frames_with_an_encoder_killed_in_the_middle(tmp_path: Path) -> None:
    await run_with_killed_encoder(tmp_path, 100_000)


def test_killed_capture_worker_goes_on_where_it_was(tmp_path: Path) -> None:
    endpoint, ledger = f"ipc://{tmp_path}/encoder", Ledger()
    seen: list[object] = []
    with AccountBoard.create(tmp_path / "board") as board, EncoderInbox(endpoint, SMALL, "model") as inbox:
        row = board.allocate("front")
        for _ in range(3):
            worker = subprocess.Popen([sys.executable, "-c", CAPTURE_WORKER, endpoint, str(board.path)], cwd=REPOSITORY)
            target = ledger.frames + 200
            while ledger.frames < target:
                for event in inbox.poll(100):
                    if isinstance(event, FrameArrived):
                        ledger.book("front", event.frame.frame_seq, event.frame.since, is_frame=True)
                        inbox.ack("front", event.frame.frame_seq)
                    else:
                        seen.append(event)
            worker.send_signal(signal.SIGKILL)
            worker.wait(PATIENCE_S)
        assert inbox.bad_messages == 0
        # Numbers were given once each; what the dead took with it shows as a hole of at most what may be in flight.
        assert row.captured - 4 <= ledger.last["front"] + 1 <= row.captured + 4
    assert ledger.lost <= 3 * 3
    assert [type(event) for event in seen] == [
        WorkerStarted,
        WorkerVanished,
        WorkerStarted,
        WorkerVanished,
        WorkerStarted,
    ]
    assert {event.why for event in seen if isinstance(event, WorkerVanished)} <= {"replaced", "silent"}


async def test_encoder_that_is_stopped_and_started_again_voids_the_credits(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/encoder"
    welcomed: list[int] = []
    async with CaptureLink(
        endpoint, "capture-0", ["front"], on_welcome=lambda welcome: welcomed.append(welcome.epoch)
    ) as link:
        seq = 0
        for _ in range(3):
            with EncoderThread(endpoint, lambda *_: None) as encoder:  # takes two frames, acknowledges none
                epoch = encoder.inbox.epoch
                await until(lambda: link.epoch == epoch)  # noqa: B023 - awaited at once
                for _ in range(2):
                    await asyncio.wait_for(link.credit("front"), PATIENCE_S)
                    assert link.send_frame(frame("front", seq)) is None
                    seq += 1
                assert link.blocked("front") == "superseded"
                frames = partial(encoder.of, FrameArrived)
                await until(lambda: len(frames()) == 2)  # noqa: B023 - awaited at once
    assert len(set(welcomed)) == len(welcomed) == 3


async def test_publisher_that_is_started_again_gets_the_next_records(tmp_path: Path) -> None:
    encoders, records = f"ipc://{tmp_path}/encoder", f"ipc://{tmp_path}/records"
    async with RecordReceiver(records):
        process = await asyncio.to_thread(encoder_process, encoders, records)
    async with CaptureLink(encoders, "capture-0", ["front"]) as link:
        sent = 0
        for _ in range(3):
            ledger = Ledger()
            ledger.last["front"] = sent - 1
            async with RecordReceiver(records) as receiver:
                while ledger.frames < 20:
                    await asyncio.wait_for(link.credit("front"), PATIENCE_S)
                    sent += link.send_frame(frame("front", sent)) is None
                    while (record := receiver.receive_nowait()) is not None:
                        ledger.book_record(record)
                    await asyncio.sleep(0.001)
            # While it was away the encoder kept the account, so that nothing is missing but what it had taken itself.
            assert receiver.bad_messages == 0
    said, _ = await asyncio.to_thread(process.communicate, "", PATIENCE_S)
    assert json.loads(said)["bad"] == 0
