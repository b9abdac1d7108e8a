import random

from hypothesis import given
from hypothesis import strategies as st

from streaming.retry import Backoff, Cooldown


@given(st.integers(), st.integers(1, 2000))
def test_backoff_is_bounded_and_never_gives_up(seed: int, failures: int) -> None:  # R6, R8
    backoff = Backoff(base_s=0.5, cap_s=60.0, rng=random.Random(seed))
    for failure in range(failures):
        assert 0.0 <= backoff.next_s() <= min(60.0, 0.5 * 2 ** min(failure, 20))


def test_backoff_uses_the_whole_range() -> None:  # full jitter: many cameras of one dead switch do not return at once
    backoff = Backoff(rng=random.Random(1), failures=20)
    delays = [backoff.next_s() for _ in range(1000)]
    assert min(delays) < 3
    assert max(delays) > 57
    assert 28 < sum(delays) / 1000 < 32


def test_backoff_reset_starts_from_base() -> None:
    backoff = Backoff(base_s=0.5, rng=random.Random(1), failures=20)
    backoff.reset()
    assert backoff.next_s() <= 0.5


def test_cooldown_makes_few_tries_an_hour() -> None:  # R7: cameras lock an account after a handful of failures
    cooldown = Cooldown(rng=random.Random(1))
    delays = [cooldown.next_s() for _ in range(8)]
    assert all(delay >= 300 for delay in delays)
    tries_in_30_min = 1 + sum(sum(delays[: n + 1]) < 1800 for n in range(8))
    assert tries_in_30_min <= 3
    assert max(delays) <= 3960
    cooldown.reset()
    assert cooldown.next_s() <= 330
