from hypothesis import given
from hypothesis import strategies as st

from streaming.accounting import CameraAccount
from streaming.frames import Since


def test_since_of_what_was_not_sent_is_said_by_the_next_message() -> None:
    account = CameraAccount(next_seq=0)
    first = account.feature(2, Since(held=1, dropped={"late": 1}))
    second = account.feature(3, Since())
    assert first is not None
    assert second is not None
    account.drop(first, "broker_away")
    assert account.take(second) == Since(held=1, dropped={"late": 1, "broker_away": 1})
    assert account.take(Since()) == Since()


def test_a_hole_is_booked_as_worker_lost() -> None:
    account = CameraAccount(next_seq=0)
    account.feature(0, Since())
    assert account.feature(10, Since(held=2)) == Since(held=2, dropped={"worker_lost": 7})
    assert account.accounted_upto == 10


def test_the_first_record_of_an_unknown_camera_is_no_hole() -> None:
    account = CameraAccount()
    assert account.feature(5000, Since(held=3)) == Since(held=3)
    assert account.frames == 4


def test_a_record_seen_before_is_counted_and_refused() -> None:
    account = CameraAccount(next_seq=0)
    account.feature(4, Since(held=4))
    assert account.feature(4, Since()) is None
    assert account.feature(2, Since()) is None
    assert account.span(3, Since(held=1)) is None
    assert (account.duplicates, account.frames) == (3, 5)


def test_numbers_that_begin_anew_after_a_reset_are_a_restart() -> None:
    account = CameraAccount(next_seq=0)
    account.feature(99, Since(held=99))
    assert account.feature(1, Since(held=1), reset=True) == Since(held=1)
    assert (account.restarts, account.frames, account.accounted_upto) == (1, 102, 1)


def test_a_record_that_claims_more_than_the_gap_is_trimmed() -> None:
    account = CameraAccount(next_seq=0)
    assert account.feature(2, Since(held=5, dropped={"late": 1})) == Since(held=1, dropped={"late": 1})
    assert account.surplus == 4


fates = st.lists(
    st.sampled_from(["sent", "held", "heartbeat", "superseded", "killed", "repeated", "broker_away", "expired"]),
    max_size=200,
)


@given(fates=fates)
def test_messages_account_for_every_frame_whatever_is_lost(fates: list[str]) -> None:
    """Drive the chain frame by frame; each fate is what becomes of one frame on its way."""
    account, upstream, messages = CameraAccount(next_seq=0), Since(), list[tuple[int, int, Since]]()
    last, killed = 0, 0
    for seq, fate in enumerate(fates):
        match fate:
            case "held":
                upstream.held += 1
            case "superseded":
                upstream.drop("superseded")
            case "killed":  # the worker dies, and the count that it held goes with it
                killed += 1 + upstream.frames
                upstream = Since()
            case "heartbeat":
                upstream.held += 1
                said, upstream = account.span(seq, upstream), Since()
                assert said is not None
                messages.append((seq, 0, account.take(said)))
            case _:
                said, upstream = account.feature(seq, upstream), Since()
                assert said is not None
                if fate in {"broker_away", "expired"}:
                    account.drop(said, fate)  # type: ignore[arg-type]
                else:
                    messages.append((seq, 1, account.take(said)))
                    account.published += 1
                if fate == "repeated":
                    assert account.feature(seq, Since()) is None
    for seq, itself, said in messages:
        assert seq + 1 - last == itself + said.frames
        last = seq + 1
    told = sum(itself + said.frames for _, itself, said in messages)
    in_flight = upstream.frames
    unseen_kills = len(fates) - account.frames - in_flight  # killed after the last record: nobody has seen that yet
    assert told + account.unsaid == account.frames
    assert 0 <= unseen_kills <= killed
    assert account.published + account.held + sum(account.dropped.values()) == account.frames
