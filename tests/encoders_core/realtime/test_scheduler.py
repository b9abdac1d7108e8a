import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from encoders_core.errors import InputError, OptionError
from encoders_core.realtime.jobs import Dropped, Held, Job
from encoders_core.realtime.load import fair_shares
from encoders_core.realtime.scheduler import FrameScheduler

MS = 1_000_000


def scheduler(*cameras: str, budget_ms: float = 100.0) -> FrameScheduler[int]:
    made: FrameScheduler[int] = FrameScheduler()
    for camera in cameras:
        made.add_camera(camera, budget_ms=budget_ms)
    return made


def offer(to: FrameScheduler[int], camera: str, frame: int, at_ms: float, **words: bool) -> list[object]:
    return list(to.offer(camera, frame, round(at_ms * MS), now_ns=round(at_ms * MS), **words))


def start(at: FrameScheduler[int], now_ms: float) -> Job[int]:
    job, _ = at.next(round(now_ms * MS))
    assert job is not None
    return job


def test_offer_newest_wins_and_the_older_is_counted() -> None:
    one = scheduler("a")
    assert offer(one, "a", 1, 0) == []
    assert offer(one, "a", 2, 10) == [Dropped("a", 1, "superseded")]
    assert start(one, 11).frame == 2


def test_offer_held_takes_the_place_of_a_waiting_frame_so_that_order_is_kept() -> None:
    one = scheduler("a")
    offer(one, "a", 1, 0)
    assert offer(one, "a", 2, 10, held=True) == [Dropped("a", 1, "superseded"), Held("a", 2)]
    assert one.next(11 * MS) == (None, [])


def test_next_takes_the_earliest_deadline_which_at_equal_budgets_is_first_in_first_out() -> None:
    three = scheduler("a", "b", "c")
    for at, camera in enumerate(("c", "a", "b")):
        offer(three, camera, at, at)
    assert [start(three, 5).camera for _ in range(3)] == ["c", "a", "b"]


def test_next_prefers_the_shorter_budget() -> None:
    two = scheduler("slow", budget_ms=500)
    two.add_camera("fast", budget_ms=50)
    offer(two, "slow", 1, 0)
    offer(two, "fast", 2, 10)
    assert start(two, 11).camera == "fast"


def test_next_drops_what_is_predicted_to_miss() -> None:
    one = scheduler("a")
    one.measured(40 * MS)
    offer(one, "a", 1, 0)
    assert one.next(61 * MS) == (None, [Dropped("a", 1, "late")])
    offer(one, "a", 2, 100)
    assert start(one, 160).frame == 2


@pytest.mark.parametrize("words", [{"cold": True}, {"lossless": True}])
def test_next_runs_cold_and_lossless_frames_however_late(words: dict[str, bool]) -> None:
    one = scheduler("a")
    one.measured(400 * MS)
    offer(one, "a", 1, 0, **words)
    assert start(one, 900).frame == 1


def test_offer_second_lossless_frame_while_one_waits_is_refused() -> None:
    one = scheduler("a")
    offer(one, "a", 1, 0, lossless=True)
    with pytest.raises(InputError, match="a lossless frame is waiting"):
        offer(one, "a", 2, 1, lossless=True)
    assert one.counts("a").offered == 1


def test_a_suspended_cold_job_lets_warm_ones_of_other_cameras_through() -> None:
    three = scheduler("a", "b", "c")
    offer(three, "a", 1, 0, cold=True)
    cold = start(three, 1)
    offer(three, "b", 2, 2)
    offer(three, "c", 3, 2, cold=True)
    offer(three, "a", 4, 2)
    assert start(three, 3).frame == 2
    assert three.next(4 * MS) == (None, [])
    three.finish(cold, 5 * MS)
    assert start(three, 6).frame == 3
    assert start(three, 7).frame == 4


def test_estimates_that_keep_a_camera_from_running_are_measured_anew() -> None:
    one = scheduler("a")
    one.measured(400 * MS)  # one hiccup, such as a suspended laptop
    encoded = 0
    for at_ms in range(0, 4000, 100):
        offer(one, "a", at_ms, at_ms)
        job, _ = one.next((at_ms + 1) * MS)
        if job:
            one.finish(job, (at_ms + 11) * MS)
            encoded += 1
    assert encoded >= 19


def test_unknown_camera_and_bad_options_say_what_is_wrong() -> None:
    one = scheduler("front")
    with pytest.raises(OptionError, match="unknown camera 'back'; there are: front"):
        offer(one, "back", 1, 0)
    with pytest.raises(OptionError, match="is there already"):
        one.add_camera("front")
    with pytest.raises(OptionError, match="budget_ms: expected a positive number, got 0"):
        one.add_camera("x", budget_ms=0)
    with pytest.raises(OptionError, match="expected one of low, normal, high, got 'urgent'"):
        one.add_camera("x", priority="urgent")  # type: ignore[arg-type]


def test_remove_camera_returns_what_waited() -> None:
    one = scheduler("a")
    offer(one, "a", 1, 0)
    assert one.remove_camera("a") == [Dropped("a", 1, "stopped")]
    with pytest.raises(OptionError):
        one.counts("a")


def test_fair_shares_leave_small_wishes_whole() -> None:
    shares = fair_shares({"a": 0.1, "b": 0.8, "c": 0.8}, {"a": 1, "b": 1, "c": 1}, 0.9)
    assert shares == pytest.approx({"a": 0.1, "b": 0.4, "c": 0.4})


class Simulation:
    """Cameras with their own phase and jitter in front of one encoder, on a clock of its own."""

    def __init__(self, cameras: dict[str, float], cost_ms: float, *, seed: int = 0, **priorities: str) -> None:
        self.random = random.Random(seed)
        self.scheduler: FrameScheduler[int] = FrameScheduler()
        for camera in cameras:
            self.scheduler.add_camera(camera, priority=priorities.get(camera, "normal"))  # type: ignore[arg-type]
        self.intervals_ms, self.cost_ms = cameras, cost_ms
        self.encoded: Counter[str] = Counter()
        self.latency_ms: list[float] = []

    def run(self, seconds: float) -> None:
        arrivals = sorted(
            (phase + index * interval + self.random.uniform(0, 2), camera)
            for camera, interval in self.intervals_ms.items()
            for phase in [self.random.uniform(0, interval)]
            for index in range(int(seconds * 1000 / interval))
        )
        free_at, position, job = 0.0, 0, None
        while position < len(arrivals) or job:
            if job and (position == len(arrivals) or free_at <= arrivals[position][0]):
                self.scheduler.finish(job, round(free_at * MS))
                self.encoded[job.camera] += 1
                self.latency_ms.append(free_at - job.arrived_ns / MS)
                now, job = free_at, None
            else:
                now, camera = arrivals[position]
                self.scheduler.offer(camera, position, round(now * MS), now_ns=round(now * MS))
                position += 1
            if job is None:
                job, _ = self.scheduler.next(round(now * MS))
                free_at = now + self.cost_ms * self.random.uniform(0.9, 1.1)


@pytest.mark.parametrize("seed", range(5))
def test_overload_twofold_holds_the_budget_and_is_fair(seed: int) -> None:
    cameras = {f"c{index}": 100.0 for index in range(8)}
    simulation = Simulation(cameras, cost_ms=25.0, seed=seed)
    simulation.run(60)
    latencies = sorted(simulation.latency_ms)
    assert latencies[int(0.99 * len(latencies))] <= 100
    assert sum(simulation.encoded.values()) >= 0.95 * 60_000 / 25
    assert max(simulation.encoded.values()) / min(simulation.encoded.values()) <= 1.2
    assert simulation.scheduler.pace_us("c0") <= 105_000  # the newest of two is encoded, the other superseded


def test_overload_fivefold_asks_for_twice_what_fits() -> None:
    simulation = Simulation({f"c{index}": 100.0 for index in range(8)}, cost_ms=62.5)
    simulation.run(30)
    assert 230_000 <= simulation.scheduler.pace_us("c0") <= 270_000


def test_overload_priorities_share_by_weight_and_leave_a_floor() -> None:
    cameras = {f"c{index}": 50.0 for index in range(6)}
    simulation = Simulation(cameras, cost_ms=40.0, c0="high", c1="low")
    simulation.run(60)
    encoded = simulation.encoded
    assert encoded["c0"] > 1.5 * encoded["c2"]
    assert 0.3 * encoded["c2"] < encoded["c1"] < 0.8 * encoded["c2"]


def test_low_load_encodes_everything_without_a_pace() -> None:
    simulation = Simulation({"a": 100.0, "b": 40.0}, cost_ms=10.0)
    simulation.run(20)
    assert simulation.encoded == {"a": 200, "b": 500}
    assert simulation.scheduler.pace_us("a") == 0


def test_a_stalled_camera_delays_nobody_and_asks_for_nothing() -> None:
    with_stalled = Simulation({"a": 100.0, "stalled": 100.0}, cost_ms=10.0)
    with_stalled.intervals_ms = {"a": 100.0}
    with_stalled.run(20)
    assert with_stalled.encoded == {"a": 200}
    assert max(with_stalled.latency_ms) <= 11.1


class Accounting(RuleBasedStateMachine):
    """Whatever happens, in whatever order: each frame offered is somewhere, once, and outputs of a camera increase."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = scheduler("a", "b", "c", budget_ms=50)
        self.now_ns = 0
        self.offered: Counter[str] = Counter()
        self.settled: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        self.running: list[Job[int]] = []

    def settle(self, outcomes: list[Held[int] | Dropped[int]] | list[Dropped[int]]) -> None:
        for outcome in outcomes:
            self.settled[outcome.camera].append(outcome.frame)

    @rule(camera=st.sampled_from("abc"), held=st.booleans(), cold=st.booleans(), lossless=st.booleans())
    def offer(self, camera: str, held: bool, cold: bool, lossless: bool) -> None:
        frame = self.offered[camera]
        try:
            outcomes = self.scheduler.offer(
                camera, frame, self.now_ns, now_ns=self.now_ns, held=held, cold=cold, lossless=lossless
            )
        except InputError:
            return
        self.offered[camera] += 1
        self.settle(outcomes)

    @rule(ms=st.integers(0, 60))
    def wait(self, ms: int) -> None:
        self.now_ns += ms * MS

    @rule()
    def start(self) -> None:
        job, dropped = self.scheduler.next(self.now_ns)
        self.settle(dropped)
        if job:
            assert job.camera not in [other.camera for other in self.running]
            self.running.append(job)

    @rule(failed=st.booleans(), ms=st.integers(1, 30))
    def finish(self, failed: bool, ms: int) -> None:
        if self.running:
            job = self.running.pop()
            self.now_ns += ms * MS
            self.scheduler.finish(job, self.now_ns, failed=failed)
            self.settled[job.camera].append(job.frame)

    @invariant()
    def every_frame_is_accounted_for(self) -> None:
        for camera in "abc":
            counts = self.scheduler.counts(camera)
            done = counts.encoded + counts.held + sum(counts.dropped.values())
            assert counts.offered == self.offered[camera] == done + counts.waiting + counts.running
            assert len(self.settled[camera]) == len(set(self.settled[camera])) == done


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_cameras_in_step_with_noisy_costs_get_equal_service() -> None:
    """Frames of two cameras come 1 ms apart, the same one first each time; one job in ten takes three times as long."""
    scheduler: FrameScheduler[int] = FrameScheduler()
    for camera in "ab":
        scheduler.add_camera(camera, budget_ms=100)
    for cost_ms in [30] * 18 + [80] * 2:
        scheduler.measured(cost_ms * MS)
    now, served = 0, {"a": 0, "b": 0}
    for tick in range(200):
        at = tick * 100 * MS
        now = max(now, at)
        scheduler.offer("a", tick, at, now_ns=now)
        job, _ = scheduler.next(now)
        scheduler.offer("b", tick, at + MS, now_ns=now + MS)
        while job:
            now += (80 if sum(served.values()) % 10 == 0 else 30) * MS
            scheduler.finish(job, now)
            served[job.camera] += 1
            job, _ = scheduler.next(now)
    assert min(served.values()) / max(served.values()) > 0.8, served
