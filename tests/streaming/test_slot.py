import asyncio
import threading

from hypothesis import given
from hypothesis import strategies as st

from streaming.slot import NewestSlot


async def test_slot_newest_wins_and_returns_what_it_superseded() -> None:  # R4
    slot: NewestSlot[int] = NewestSlot()
    assert slot.put(1) is None
    assert slot.put(2) == 1
    assert await slot.get() == 2
    assert slot.take() is None


async def test_slot_get_waits_for_a_thread() -> None:
    slot: NewestSlot[str] = NewestSlot()
    waiting = asyncio.create_task(slot.get())
    await asyncio.sleep(0.01)
    await asyncio.to_thread(slot.put, "a")
    assert await asyncio.wait_for(waiting, 5) == "a"


async def test_slot_get_cancelled_keeps_the_item() -> None:
    slot: NewestSlot[int] = NewestSlot()
    waiting = asyncio.create_task(slot.get())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    slot.put(1)
    assert slot.take() == 1


async def test_slot_put_after_the_loop_closed_is_quiet() -> None:
    loop = asyncio.new_event_loop()
    slot: NewestSlot[int] = NewestSlot(loop)
    loop.close()
    assert slot.put(1) is None


async def test_slot_lossless_loses_nothing_and_keeps_order() -> None:  # R24
    slot: NewestSlot[int] = NewestSlot()
    abandoned = threading.Event()
    writer = asyncio.create_task(
        asyncio.to_thread(lambda: [slot.put_wait(number, abandoned) for number in range(1, 501)])
    )
    received = [await asyncio.wait_for(slot.get(), 5) for _ in range(500)]
    assert received == list(range(1, 501))
    assert all(await writer)


async def test_slot_emptied_waits_for_the_last_item() -> None:
    slot: NewestSlot[int] = NewestSlot()
    await slot.emptied()
    slot.put(1)
    waiting = asyncio.create_task(slot.emptied())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert await slot.get() == 1
    await asyncio.wait_for(waiting, 5)


async def test_slot_abandoned_writer_returns_and_its_item_is_drained() -> None:
    slot: NewestSlot[int] = NewestSlot()
    abandoned = threading.Event()
    assert slot.put_wait(1, abandoned)
    writer = asyncio.create_task(asyncio.to_thread(slot.put_wait, 2, abandoned))
    await asyncio.sleep(0.02)
    assert not writer.done()
    abandoned.set()
    slot.wake_writer()
    assert await asyncio.wait_for(writer, 5) is False
    assert slot.drain() == [1, 2]
    assert slot.drain() == []


@given(st.lists(st.sampled_from(["put", "take"]), max_size=60))
def test_slot_every_item_is_taken_or_superseded_once(steps: list[str]) -> None:
    loop = asyncio.new_event_loop()
    try:
        slot: NewestSlot[int] = NewestSlot(loop)
        number, seen = 0, []
        for step in steps:
            if step == "put":
                number += 1
                seen.append(slot.put(number))
            else:
                seen.append(slot.take())
        seen += slot.drain()
        assert [item for item in seen if item is not None] == list(range(1, number + 1))
    finally:
        loop.close()


async def test_slot_item_that_was_forwarded_wakes_nobody_and_another_one_does() -> None:
    slot: NewestSlot[int] = NewestSlot()
    forwarded: list[int | None] = []
    waiting = asyncio.create_task(slot.get())

    def forward() -> bool:
        if len(forwarded) == 2:
            return False
        forwarded.append(slot.take())
        return True

    slot.forward = forward
    for item in (1, 2):
        await asyncio.to_thread(slot.put, item)
    await asyncio.sleep(0.01)
    assert forwarded == [1, 2]
    assert not waiting.done()
    await asyncio.to_thread(slot.put, 3)
    assert await asyncio.wait_for(waiting, 5) == 3
