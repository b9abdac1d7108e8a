"""What the scheduler promises under load, each on a simulated clock."""

import random

import pytest

from encoders_core.realtime.load import Costs, Level
from encoders_core.realtime.scheduler import FrameScheduler
from tests.encoders_core.realtime.simulated import MS, Camera, Simulation, newest_frame_loop

SEEDS = range(3)


def conv(_: Level) -> float:
    return 25.0


def tokens(level: Level) -> float:
    return 4.0 + 36.0 * level.row_cap / 196


def heavy_tail(source: random.Random, _: float) -> float:
    """Four times as slow in the median, ten times in one of twenty: eight busy processes on two cores."""
    return max(1.0, 3.5 * source.lognormvariate(0, 0.6))


def cameras(count: int, **words: float) -> dict[str, Camera]:
    return {f"c{index}": Camera(**words) for index in range(count)}  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
def test_twofold_overload_keeps_the_budget_and_starves_nobody(seed: int) -> None:
    run = Simulation(cameras(8, interval_ms=100.0), conv, seed=seed).run(60)
    arrived, encoded = sum(run.arrived.values()), sum(run.encoded.values())
    assert run.quantile_ms(0.99) <= 100
    assert 0.45 <= encoded / arrived <= 0.55
    assert max(run.encoded.values()) / min(run.encoded.values()) <= 1.2


@pytest.mark.parametrize("load", [5.0, 25.0, 60.0])
def test_every_arrival_is_encoded_held_or_dropped_and_outputs_increase(load: float) -> None:
    run = Simulation(cameras(6, interval_ms=80.0, passing=0.7, renew_s=3.0), lambda _: load).run(20)
    for name in run.cameras:
        counts = run.scheduler.counts(name)
        assert counts.waiting == counts.running == 0
        assert run.arrived[name] == counts.offered == counts.encoded + counts.held + sum(counts.dropped.values())
        numbers = [job.frame for _, job in run.finished if job.camera == name]
        assert numbers == sorted(set(numbers))
        times = [now for now, job in run.finished if job.camera == name]
        assert times == sorted(set(times))


@pytest.mark.parametrize("slowness", [lambda source, _: source.uniform(0.9, 1.1), heavy_tail])
def test_no_expired_frame_is_started(slowness: object) -> None:
    run = Simulation(cameras(6, interval_ms=50.0), conv, slowness=slowness).run(30)  # type: ignore[arg-type]
    assert all(job.started_ns < job.deadline_ns for job in run.started)


def test_at_low_load_earliest_deadline_first_is_first_in_first_out() -> None:
    run = Simulation(cameras(4, interval_ms=100.0), lambda _: 5.0).run(20)
    arrivals = [job.arrived_ns for job in run.started]
    assert arrivals == sorted(arrivals)
    assert sum(run.encoded.values()) == sum(run.arrived.values()) == 800


def test_a_stalled_camera_does_not_delay_the_others() -> None:
    given = {f"c{index}": Camera(100.0, phase_ms=30.0 * index) for index in range(3)}
    alone = Simulation(given, conv).run(30)
    beside = Simulation({**given, "stalled": Camera(100.0, ends_s=0.1, phase_ms=10.0)}, conv).run(30)
    for name in alone.cameras:
        assert beside.encoded[name] >= 0.99 * alone.encoded[name]
    assert beside.quantile_ms(0.99) <= 1.1 * alone.quantile_ms(0.99)


@pytest.mark.parametrize("seed", SEEDS)
def test_refreshes_that_coincide_do_not_show_in_the_tail(seed: int) -> None:
    """Eight cameras that were started together, each with a full pass of 40 ms every ten seconds."""
    quiet = {f"c{index}": Camera(100.0, passing=0.5, rows=8, renew_s=10.0, phase_ms=12.5 * index) for index in range(8)}
    run = Simulation(quiet, tokens, buckets=(8, 32, 196), seed=seed).run(120)
    warm = sorted(now - job.arrived_ns / MS for now, job in run.finished if not job.background)
    assert sum(job.background for _, job in run.finished) >= 8 * 9
    assert warm[int(0.99 * len(warm))] <= 1.3 * warm[len(warm) // 2]


def test_under_overload_frames_get_fewer_rows_before_any_is_dropped() -> None:
    run = Simulation(cameras(8, interval_ms=100.0), tokens, buckets=(8, 32, 64, 128, 196)).run(30)
    assert sum(run.encoded.values()) >= 0.99 * sum(run.arrived.values())
    assert run.quantile_ms(0.99) <= 100
    settled = [job.level.row_cap for _, job in run.finished[200:]]
    assert max(settled) < 128  # all rows for all cameras would be 3.2 times what there is
    assert sum(run.scheduler.counts(name).capped for name in run.cameras) == len(
        [job for _, job in run.finished if job.level != job.wants]
    )


def test_at_low_load_frames_get_the_rows_that_they_want() -> None:
    run = Simulation(cameras(2, interval_ms=100.0, rows=50), tokens, buckets=(8, 64, 196)).run(20)
    assert {job.level.row_cap for job in run.started} == {64}


@pytest.mark.parametrize(("count", "interval_ms"), [(1, 33.0), (3, 100.0)])
def test_a_starved_machine_encodes_nearly_what_a_plain_loop_does_and_more_of_it_in_time(
    count: int, interval_ms: float
) -> None:
    given = cameras(count, interval_ms=interval_ms)
    run = Simulation(given, lambda _: 13.0, slowness=heavy_tail, paced=True).run(60)
    plain = newest_frame_loop(Simulation(given, lambda _: 13.0, slowness=heavy_tail), 60)
    assert sum(run.encoded.values()) >= 0.85 * len(plain)
    ours, theirs = (sum(latency <= 100 for latency in found) for found in (run.latencies_ms, plain))
    assert ours >= 0.9 * theirs


def test_a_stall_is_heeded_within_seconds_and_its_end_as_well() -> None:
    def hiccup(_: random.Random, now: float) -> float:
        return 20.0 if 5_000 < now < 15_000 else 1.0

    run = Simulation(cameras(1, interval_ms=40.0), lambda _: 13.0, slowness=hiccup).run(25)
    probes = [job for job in run.started if 11_000e6 < job.started_ns < 15_000e6]
    assert len(probes) <= 6  # a pass takes 260 ms: more would all be late
    after = [job for job in run.started if job.started_ns > 17_000e6]
    assert len(after) >= 0.98 * 8_000 / 40


def test_costs_follow_the_machine_for_all_levels_at_once() -> None:
    costs = Costs()
    small, full = Level(224, 8), Level(224, 196)
    for number in range(64):
        costs.add(full, 40 * MS, now_ns=number, cpu_ns=40 * MS)
        costs.add(small, 6 * MS, now_ns=number, cpu_ns=6 * MS)
    for number in range(64):
        costs.add(small, 18 * MS, now_ns=number * 100 * MS, cpu_ns=6 * MS)
    assert costs.mean_ns(full) == pytest.approx(120 * MS, rel=0.1)
    assert costs.share_within(full, 100 * MS) < 0.1
    assert costs.share_within(small, 20 * MS) == pytest.approx(1)


def test_costs_of_a_level_that_never_ran_follow_from_its_neighbours() -> None:
    costs = Costs()
    assert costs.share_within(Level(224, 8), 1) == 1
    costs.add(Level(224, 64), 10 * MS, now_ns=0)
    assert costs.work_ns(Level(224, 8)) == 10 * MS
    assert costs.work_ns(Level(224, 128)) == 20 * MS
    assert costs.work_ns(Level(112, 64)) == 2.5 * MS


def test_a_background_frame_that_is_overtaken_counts_as_held() -> None:
    one: FrameScheduler[int] = FrameScheduler()
    one.add_camera("a")
    one.offer("a", 1, 0, now_ns=0, background=True)
    assert one.slack_ns(1) > 0
    one.offer("a", 2, 40 * MS, now_ns=40 * MS)
    counts = one.counts("a")
    assert (counts.held, counts.dropped, counts.waiting) == (1, {}, 1)
    assert one.slack_ns(41 * MS) == 0


def test_slack_ends_with_the_next_frame_that_is_due_and_a_stopped_camera_is_not_waited_for() -> None:
    one: FrameScheduler[int] = FrameScheduler()
    one.add_camera("a")
    assert one.slack_ns(0) == float("inf")
    for at in range(0, 500, 100):
        one.offer("a", at, at * MS, now_ns=at * MS, held=True)
    assert one.slack_ns(430 * MS) == pytest.approx(70 * MS)
    assert one.slack_ns(520 * MS) == 0
    assert one.slack_ns(700 * MS) == float("inf")


def test_cold_passes_come_to_their_end_under_overload() -> None:
    """All cameras start at once, and from then on there is always a warm frame to do."""
    run = Simulation(cameras(8, interval_ms=50.0), lambda _: 12.5, cold_start=True).run(20)
    assert max(run.encoded.values()) / min(run.encoded.values()) <= 1.2
    first = {}
    for now, job in run.finished:
        first.setdefault(job.camera, (now, job.cold))
    assert all(cold for _, cold in first.values())
    assert max(now for now, _ in first.values()) <= 2_000


def test_a_camera_whose_frames_come_expired_gets_its_floor_and_no_more() -> None:
    """As of a file with B frames and a small budget: each frame is 150 ms old when it comes."""
    one: FrameScheduler[int] = FrameScheduler()
    one.add_camera("a")
    started = []
    for number in range(250):
        now_ns = number * 40 * MS
        one.offer("a", number, now_ns - 150 * MS, now_ns=now_ns)
        job, _ = one.next(now_ns)
        if job:
            started.append(number)
            one.finish(job, now_ns + 13 * MS)
    assert 4 <= len(started) <= 5  # every two seconds
    counts = one.counts("a")
    assert counts.dropped["late"] + counts.encoded == 250
