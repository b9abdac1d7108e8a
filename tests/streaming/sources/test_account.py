import asyncio
import threading

from hypothesis import given
from hypothesis import strategies as st

from streaming.clock import SYSTEM_CLOCK
from streaming.frames import CaptureTime, Since
from streaming.slot import NewestSlot
from streaming.sources.account import FrameAccount, Taken
from streaming.sources.base import Picture, StreamInfo

LIVE = StreamInfo("h264", 64, 48, 25.0, live=True)
FILE = StreamInfo("h264", 64, 48, 25.0, live=False, lossless=True)


def picture(
    pts_us: int = 0, arrived_ns: int = 0, *, damaged: bool = False, blind: bool = False, reset: bool = False
) -> Picture:
    captured = CaptureTime(1, "arrival", 0)
    return Picture(None, pts_us, captured, arrived_ns, 0, reset=reset, damaged=damaged, blind=blind)


def account_of(
    loop: asyncio.AbstractEventLoop, first_seq: int = 0
) -> tuple[FrameAccount, NewestSlot[Taken], list[int]]:
    counts: list[int] = []
    slot: NewestSlot[Taken] = NewestSlot(loop)
    return FrameAccount(slot, first_seq, SYSTEM_CLOCK, counts.append, lambda: "superseded"), slot, counts


@given(st.integers(0, 1000), st.lists(st.sampled_from(["good", "damaged", "blind", "take", "connect"]), max_size=80))
def test_account_explains_every_gap(first_seq: int, steps: list[str]) -> None:  # invariant 2, R23
    loop, abandoned = asyncio.new_event_loop(), threading.Event()
    try:
        account, slot, counts = account_of(loop, first_seq)
        last_seq, delivered, causes = first_seq - 1, 0, Since()
        for step in steps:
            if step == "connect":
                account.connect()
            elif step == "take":
                if (taken := slot.take()) is not None:
                    assert taken.frame_seq - last_seq == 1 + taken.since.frames
                    last_seq = taken.frame_seq
                    causes.add(taken.since)
            else:
                assert account.deliver(picture(damaged=step == "damaged", blind=step == "blind"), LIVE, abandoned)
                delivered += 1
        up_to_seq, since = account.tail()
        assert up_to_seq - last_seq == since.frames
        assert up_to_seq + 1 == account.captured == first_seq + delivered
        assert counts == list(range(first_seq + 1, first_seq + delivered + 1))
        assert causes.add(since).dropped.get("corrupt", 0) == steps.count("damaged")
        assert causes.dropped.get("blind", 0) == steps.count("blind")
        assert account.tail() == (up_to_seq, Since())
    finally:
        loop.close()


async def test_account_reset_survives_being_superseded() -> None:
    account, slot, _ = account_of(asyncio.get_running_loop())
    account.deliver(picture(reset=True), LIVE, threading.Event())
    account.deliver(picture(), LIVE, threading.Event())
    taken = slot.take()
    assert taken is not None
    assert taken.picture.reset
    assert taken.since == Since(dropped={"superseded": 1})


async def test_account_abandoned_reader_delivers_nothing() -> None:  # R1
    account, slot, counts = account_of(asyncio.get_running_loop())
    abandoned = threading.Event()
    abandoned.set()
    assert not account.deliver(picture(), LIVE, abandoned)
    assert slot.take() is None
    assert counts == []
    assert account.captured == 0


async def test_account_lossless_source_waits_and_its_rest_is_in_the_tail() -> None:  # R24
    account, slot, _ = account_of(asyncio.get_running_loop())
    abandoned = threading.Event()
    account.deliver(picture(), FILE, abandoned)
    account.deliver(picture(damaged=True), FILE, abandoned)
    writer = asyncio.create_task(asyncio.to_thread(account.deliver, picture(), FILE, abandoned))
    await asyncio.sleep(0.02)
    assert not writer.done()
    abandoned.set()
    account.wake()
    assert await asyncio.wait_for(writer, 5) is False
    assert account.tail() == (2, Since(dropped={"stopped": 2, "corrupt": 1}))
    assert slot.take() is None


async def test_account_stream_time_goes_on_over_a_reconnection() -> None:  # R12
    account, slot, _ = account_of(asyncio.get_running_loop())
    times = []
    for pts_us, arrived_s in ((7_000_000, 100.0), (7_040_000, 100.04), (0, 103.04), (40_000, 103.08)):
        if pts_us in (0, 7_000_000):
            account.connect()
        account.deliver(picture(pts_us, round(arrived_s * 1e9)), LIVE, threading.Event())
        taken = slot.take()
        assert taken is not None
        times.append(taken.picture.pts_us)
    assert times == [7_000_000, 7_040_000, 10_040_000, 10_080_000]


async def test_account_fps_sinks_when_nothing_comes() -> None:
    account, _, _ = account_of(asyncio.get_running_loop())
    now_ns = SYSTEM_CLOCK.monotonic_ns()
    assert account.fps() == 0.0
    for number in range(26):
        account.deliver(picture(arrived_ns=now_ns - (25 - number) * 40_000_000), LIVE, threading.Event())
    assert 20 < account.fps() <= 25
    for number in range(50):
        account.deliver(picture(arrived_ns=now_ns - 60_000_000_000 + number * 40_000_000), LIVE, threading.Event())
    assert account.fps() < 1


async def test_account_blind_frames_are_a_sign_of_life() -> None:
    account, slot, _ = account_of(asyncio.get_running_loop())
    now_ns = SYSTEM_CLOCK.monotonic_ns()
    for number in range(26):
        arrived_ns = now_ns - (25 - number) * 40_000_000
        account.deliver(picture(arrived_ns=arrived_ns, blind=number > 0), LIVE, threading.Event())
    assert 20 < account.fps() <= 25
    assert account.last_frame_at_us == 1
    assert account.captured == 26
    assert slot.take() is not None
    assert account.tail() == (25, Since(dropped={"blind": 25}))
