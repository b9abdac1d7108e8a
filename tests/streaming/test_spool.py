from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.spool import Spool, SpoolError

LIMITS = {"max_items": 5, "max_bytes": 1_000_000, "max_age_s": 100.0}


def spool(path: Path, **limits: float) -> Spool:
    return Spool(path, **{**LIMITS, **limits})  # type: ignore[arg-type]


def payloads(one: Spool, now_s: float = 0.0) -> list[bytes]:
    return [item.payload for item in one.oldest(100, now_s=now_s)]


def test_spool_gives_back_in_order_until_removed(tmp_path: Path) -> None:
    with spool(tmp_path) as one:
        one.append([("front", "t/1", b"a"), ("back", "t/2", b"b")], now_s=0)
        one.append([("front", "t/1", b"c")], now_s=1)
        first, second = one.oldest(2, now_s=1)
        assert (first.camera, first.topic, first.payload) == ("front", "t/1", b"a")
        assert [item.payload for item in one.oldest(9, after_id=second.id, now_s=1)] == [b"c"]
        one.remove([first.id])
        assert payloads(one) == [b"b", b"c"]


def test_spool_survives_a_restart(tmp_path: Path) -> None:
    with spool(tmp_path) as one:
        one.append([("front", "t", b"a")], now_s=0)
    with spool(tmp_path) as one:
        assert (payloads(one), one.items) == ([b"a"], 1)


def test_spool_drops_the_oldest_over_its_count_and_says_whose(tmp_path: Path) -> None:
    with spool(tmp_path, max_items=2) as one:
        one.append([("front", "t", b"a"), ("back", "t", b"b"), ("front", "t", b"c")], now_s=0)
        assert payloads(one) == [b"b", b"c"]
        assert one.dropped == Counter(front=1)


def test_spool_drops_the_oldest_over_its_bytes(tmp_path: Path) -> None:
    with spool(tmp_path, max_items=100, max_bytes=5000) as one:
        for n in range(10):
            one.append([("front", "t", bytes([n]) * 1000)], now_s=0)
        assert [payload[0] for payload in payloads(one)] == [6, 7, 8, 9]
        assert one.bytes <= 5000


def test_spool_drops_what_is_too_old(tmp_path: Path) -> None:
    with spool(tmp_path) as one:
        one.append([("front", "t", b"a")], now_s=0)
        one.append([("front", "t", b"b")], now_s=90)
        assert payloads(one, now_s=101) == [b"b"]
        assert one.dropped == Counter(front=1)


def test_spool_sets_a_damaged_file_aside(tmp_path: Path) -> None:
    with spool(tmp_path) as one:
        one.append([("front", "t", b"a")], now_s=0)
    (tmp_path / "embeddings.sqlite").write_bytes(b"no database at all" * 1000)
    with spool(tmp_path) as one:
        assert payloads(one) == []
        one.append([("front", "t", b"b")], now_s=0)
        assert payloads(one) == [b"b"]
    assert (tmp_path / "embeddings.damaged").exists()


def test_spool_in_a_folder_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="expected a folder for the spool that can be written"):
        spool(tmp_path / "file" / "below")


def test_spool_that_is_closed_under_us_is_a_clear_error(tmp_path: Path) -> None:
    one = spool(tmp_path)
    one.close()
    with pytest.raises(SpoolError, match="cannot be used"):
        one.append([("front", "t", b"a")])


steps = st.lists(st.one_of(st.integers(1, 4), st.just("remove"), st.just("reopen")), max_size=25)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_spool_is_a_bounded_queue(tmp_path_factory: pytest.TempPathFactory, steps: list[int | str]) -> None:
    """Against the obvious model: a list cut at its front."""
    path, model, given_up, number = tmp_path_factory.mktemp("spool"), list[bytes](), 0, 0
    one = spool(path)
    for step in steps:
        if step == "remove":
            taken = one.oldest(2, now_s=0)
            one.remove([item.id for item in taken])
            assert [item.payload for item in taken] == model[:2]
            model = model[2:]
        elif step == "reopen":
            one.close()
            given_up -= sum(one.dropped.values())
            one = spool(path)
        else:
            added = [str(number + n).encode() for n in range(int(step))]
            number += len(added)
            one.append([("front", "t", payload) for payload in added], now_s=0)
            given_up += max(0, len(model) + len(added) - 5)
            model = (model + added)[-5:]
        assert payloads(one) == model
        assert (one.items, sum(one.dropped.values())) == (len(model), given_up)
    one.close()
