from random import Random

from hypothesis import given
from hypothesis import strategies as st

from streaming.frames import DropCause, Since
from workers.chain import Chain


def held() -> Since:
    return Since(held=1)


def dropped(cause: DropCause = "superseded") -> Since:
    return Since(dropped={cause: 1})


def test_record_of_a_frame_tells_only_of_frames_before_it() -> None:
    chain = Chain()
    chain.open(6, Since())
    chain.settle(6, held())
    chain.open(7, Since(dropped={"paced": 2}))
    chain.open(10, Since())
    chain.settle(10, held())
    assert chain.encoded(7) == Since(held=1, dropped={"paced": 2})
    assert chain.settled_up_to() == 10
    assert chain.take_settled(10) == held()


def test_held_frame_is_not_told_while_an_earlier_one_is_being_encoded() -> None:
    chain = Chain()
    chain.open(0, Since())
    chain.open(1, Since())
    chain.settle(1, held())
    assert chain.settled_up_to() is None


def test_unsent_record_is_told_by_its_successor() -> None:
    chain = Chain()
    chain.open(0, Since())
    lost = chain.encoded(0)
    lost.drop("publisher_behind")
    chain.unsent(0, lost)
    chain.open(1, Since())
    assert chain.encoded(1) == Since(dropped={"publisher_behind": 1})


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["encode", "hold", "drop"])), max_size=60), st.randoms())
def test_sums_match_the_gaps_for_any_order_of_settling(steps: list[tuple[int, str]], random: Random) -> None:
    chain, seq, last_told, waiting = Chain(), -1, -1, []
    for missing, _ in steps:
        seq += missing + 1
        since = Since()
        since.drop("corrupt", missing)
        chain.open(seq, since)
        waiting.append(seq)
        while len(waiting) > random.randint(0, 3):
            action = random.choice(["encode", "hold", "drop"])
            if action == "encode":
                frame = waiting.pop(0)  # records leave in order
                assert frame - last_told == 1 + chain.encoded(frame).frames
                last_told = frame
            else:
                chain.settle(waiting.pop(random.randrange(len(waiting))), held() if action == "hold" else dropped())
    for frame in waiting:
        chain.settle(frame, dropped("stopped"))
    end = chain.settled_up_to()
    assert (-1 if end is None and not steps else seq) == seq
    if end is not None:
        assert end - last_told == chain.take_settled(end).frames
        last_told = end
    assert last_told == seq


def test_frames_that_are_given_up_are_told_by_cause() -> None:
    chain = Chain()
    chain.open(0, Since(dropped={"paced": 1}))
    chain.open(2, Since())
    chain.settle(2, held())
    chain.give_up("stopped")
    assert chain.settled_up_to() == 2
    assert chain.take_settled(2) == Since(held=1, dropped={"paced": 1, "stopped": 1})
