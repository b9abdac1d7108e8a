from hypothesis import given
from hypothesis import strategies as st

from streaming.chain import Chain
from streaming.frames import Since
from streaming.message import FeatureMessage, Heartbeat, Ledger, Message, MessageQuality

QUALITY = MessageQuality(rung=224, tokens_updated=1, tokens_total=1, cold=False, change=0.0, budget_met=True)
LEDGER = Ledger(**dict.fromkeys(Ledger.__struct_fields__, 0))


def vector(
    seq: int, frame_seq: int, since: Since | None = None, *, session: str = "s", spooled: bool = False
) -> FeatureMessage:
    return FeatureMessage(
        v=1,
        session=session,
        camera="front",
        seq=seq,
        frame_seq=frame_seq,
        since=since or Since(),
        model="m",
        captured_at=0,
        published_at=0,
        dim=1,
        dtype="f4",
        norm=1.0,
        vector=b"\0\0\x80?",
        output="frame",
        clock="arrival",
        captured_error_us=0,
        deadline=10,
        ledger=LEDGER,
        quality=QUALITY,
        pts_us=0,
        cut=False,
        reset=False,
        spooled=spooled,
    )


def beat(seq: int, frame_seq: int, since: Since, *, session: str = "s") -> Heartbeat:
    return Heartbeat(
        v=1,
        session=session,
        camera="front",
        seq=seq,
        frame_seq=frame_seq,
        since=since,
        model="m",
        captured_at=0,
        published_at=0,
        held_since=0,
    )


def test_messages_that_follow_each_other_miss_nothing() -> None:
    chain = Chain()
    chain.see(vector(0, 0), 0)
    chain.see(beat(1, 3, Since(held=3)), 0)
    verdict = chain.see(vector(2, 6, Since(held=1, dropped={"late": 1})), 0)
    assert (verdict.gap, verdict.missing_frames, verdict.restart) == (0, 0, False)
    count = chain.statistics
    assert (count.vectors, count.heartbeats, count.held, count.dropped, count.frames) == (2, 1, 4, {"late": 1}, 7)


def test_lost_messages_take_their_frames_with_them() -> None:
    chain = Chain()
    chain.see(vector(0, 0), 0)
    verdict = chain.see(vector(3, 12, Since(held=2)), 0)
    assert (verdict.gap, verdict.missing_frames) == (2, 9)
    assert chain.statistics.frames == 13


def test_a_repeat_is_a_duplicate_and_counts_no_frame() -> None:
    chain = Chain()
    chain.see(vector(0, 0), 0)
    chain.see(vector(1, 1), 0)
    assert chain.see(vector(1, 1), 0).duplicate
    assert (chain.statistics.duplicates, chain.statistics.frames) == (1, 2)


def test_a_new_session_is_a_restart_and_no_gap() -> None:
    chain = Chain()
    chain.see(vector(41, 100), 0)
    verdict = chain.see(vector(0, 3, Since(held=3), session="t"), 0)
    assert (verdict.restart, verdict.gap) == (True, 0)
    assert chain.statistics.restarts == 1


def test_frame_numbers_that_begin_anew_are_a_restart() -> None:
    chain = Chain()
    chain.see(vector(0, 1000), 0)
    assert chain.see(vector(1, 5, Since(held=5)), 0).restart


def test_what_comes_from_the_spool_is_outside_of_the_chain() -> None:
    chain = Chain()
    chain.see(vector(5, 50), 0)
    assert chain.see(vector(0, 7, session="earlier", spooled=True), 0).gap == 0
    assert not chain.see(vector(6, 51), 0).restart
    assert chain.statistics.recovered == 1


def test_late_is_after_the_deadline() -> None:
    chain = Chain()
    chain.see(vector(0, 0), 10)
    chain.see(vector(1, 1), 11)
    assert chain.statistics.late == 1


fates = st.lists(
    st.sampled_from(["vector", "held", "dropped", "beat", "lost vector", "lost beat", "twice"]),
    min_size=1,
    max_size=100,
)


@given(fates=fates)
def test_every_frame_up_to_the_last_message_is_accounted_for(fates: list[str]) -> None:
    chain, since, seq = Chain(), Since(), 0
    arrived: list[Message] = [vector(0, 0)]
    chain.see(arrived[0], 0)
    for frame_seq, fate in enumerate(fates, start=1):
        if fate in {"held", "dropped"}:
            since.add(Since(held=1) if fate == "held" else Since(dropped={"late": 1}))
            continue
        seq += 1
        if fate.endswith("beat"):
            since.held += 1
        message = beat(seq, frame_seq, since) if fate.endswith("beat") else vector(seq, frame_seq, since)
        since = Since()
        if not fate.startswith("lost"):
            arrived.append(message)
            chain.see(message, 0)
            if fate == "twice":
                chain.see(message, 0)
    count = chain.statistics
    assert count.frames == arrived[-1].frame_seq + 1
    assert count.vectors + count.heartbeats == len(arrived)
    assert count.missing_messages == arrived[-1].seq + 1 - len(arrived)
