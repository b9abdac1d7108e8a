"""Cameras in front of one encoder, on a clock of their own: the worker's loop in forty lines."""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from encoders_core.realtime.jobs import Held, Job
from encoders_core.realtime.load import Level
from encoders_core.realtime.scheduler import FrameScheduler

MS = 1_000_000
BLOCKS = 12


@dataclass
class Camera:
    """Frames every `interval_ms`; `passing` of them pass the gate and want `rows`; every `renew_s` one in the background."""

    interval_ms: float
    budget_ms: float = 100.0
    priority: Any = "normal"
    passing: float = 1.0
    rows: int | None = None
    renew_s: float = 0.0
    phase_ms: float | None = None
    ends_s: float = 1e9


@dataclass
class Simulation:
    """`cost_ms` is the work of a pass at a level, `slowness` how much longer it takes here and now."""

    cameras: dict[str, Camera]
    cost_ms: Callable[[Level], float]
    slowness: Callable[[random.Random, float], float] = lambda source, _: source.uniform(0.9, 1.1)
    buckets: tuple[int, ...] = (49,)
    seed: int = 0
    paced: bool = False
    cold_start: bool = False
    """The first pass of each camera is a cold one."""
    arrived: Counter[str] = field(default_factory=Counter)
    kept_back: Counter[str] = field(default_factory=Counter)
    latency_ms: dict[str, list[float]] = field(default_factory=dict)
    started: list[Job[int]] = field(default_factory=list)
    finished: list[tuple[float, Job[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.scheduler: FrameScheduler[int] = FrameScheduler(self.buckets, (224,))
        for name, camera in self.cameras.items():
            self.scheduler.add_camera(name, budget_ms=camera.budget_ms, priority=camera.priority)
            self.latency_ms[name] = []
        for bucket in self.buckets:
            cost_ns = round(self.cost_ms(Level(224, bucket)) * MS)
            self.scheduler.measured(cost_ns, level=Level(224, bucket))
        self._asked_ms = dict.fromkeys(self.cameras, -1e9)
        self._kept: dict[str, float] = {}
        self._renewed_s = dict.fromkeys(self.cameras, 0.0)

    @property
    def latencies_ms(self) -> list[float]:
        return sorted(latency for found in self.latency_ms.values() for latency in found)

    def quantile_ms(self, share: float) -> float:
        return self.latencies_ms[int(share * len(self.latencies_ms))]

    @property
    def encoded(self) -> dict[str, int]:
        return {name: self.scheduler.counts(name).encoded for name in self.cameras}

    def run(self, seconds: float) -> "Simulation":
        arrivals = self._arrivals(seconds)
        heapq.heapify(arrivals)
        now, warm, giving_way = 0.0, None, None
        while True:
            if warm is None:
                job, _ = self.scheduler.next(round(now * MS))
                if job:
                    self.started.append(job)
                    work = self.cost_ms(job.level)
                    begun = [job, work, work * self.slowness(self.random, now)]
                    warm, giving_way = (warm, begun) if job.gives_way else (begun, giving_way)
            active = warm or giving_way
            if active and active is giving_way and not self._may_step(active, now):
                active = None
            if active is None:
                if not arrivals:
                    if giving_way is None:
                        break
                    now += 1.0
                    continue
                now = max(now, arrivals[0][0])
                self._arrive(arrivals, *heapq.heappop(arrivals))
                continue
            job, work, cost = active
            ends = now + (cost if active is warm else min(cost, work / BLOCKS))
            while arrivals and arrivals[0][0] <= ends:
                self._arrive(arrivals, *heapq.heappop(arrivals))
            active[2] -= ends - now
            now = ends
            if active[2] <= 1e-9:
                self._finish(job, now, work)
                warm, giving_way = (None, giving_way) if active is warm else (warm, None)
        return self

    def _arrivals(self, seconds: float) -> list[tuple[float, str]]:
        found = []
        for name, camera in self.cameras.items():
            phase = self.random.uniform(0, camera.interval_ms) if camera.phase_ms is None else camera.phase_ms
            count = int(min(seconds, camera.ends_s) * 1000 / camera.interval_ms)
            found += [(phase + n * camera.interval_ms + self.random.uniform(0, 2), name) for n in range(count)]
        return found

    def _arrive(self, arrivals: list[tuple[float, str]], at_ms: float, name: str) -> None:
        """At the capture worker, which keeps the newest frame until the encoder's pace lets it go."""
        if name.startswith("pace/"):
            name = name.removeprefix("pace/")
            self._offer(at_ms, name, self._kept.pop(name))
        elif self.paced and at_ms < self._asked_ms[name]:
            if name in self._kept:
                self.kept_back[name] += 1
            else:
                heapq.heappush(arrivals, (self._asked_ms[name], f"pace/{name}"))
            self._kept[name] = at_ms
        else:
            self._offer(at_ms, name, at_ms)

    def _offer(self, at_ms: float, name: str, arrived_ms: float) -> None:
        camera = self.cameras[name]
        number = self.arrived[name]
        self.arrived[name] += 1
        held = self.random.random() >= camera.passing
        renew = held and camera.renew_s > 0 and self._may_renew(name, at_ms)
        self.scheduler.offer(
            name,
            number,
            round(arrived_ms * MS),
            now_ns=round(at_ms * MS),
            held=held and not renew,
            cold=self.cold_start
            and self.scheduler.counts(name).encoded == 0
            and not self.scheduler.counts(name).running,
            background=renew,
            rows=None if renew else camera.rows,
        )
        pace_us = self.scheduler.pace_us(name)
        self._asked_ms[name] = at_ms + pace_us / 1000

    def _may_renew(self, name: str, at_ms: float) -> bool:
        camera = self.cameras[name]
        due = at_ms / 1000 >= self._renewed_s[name] + 0.75 * camera.renew_s
        return (
            due
            and self.scheduler.slack_ns(round(at_ms * MS), came=name)
            > self.cost_ms(Level(224, self.buckets[-1])) / BLOCKS * MS
        )

    def _may_step(self, active: list[Any], now: float) -> bool:
        job, work, _ = active
        block_ns = work / BLOCKS * MS
        return (
            not job.background
            or self.scheduler.waits(job.camera)
            or self.scheduler.slack_ns(round(now * MS)) > block_ns
        )

    def _finish(self, job: Job[int], now: float, work: float) -> None:
        spent = now - job.started_ns / MS
        cost_ns = round(work * MS) if job.gives_way else round(spent * MS)
        self.scheduler.finish(job, round(now * MS), cost_ns=cost_ns, cpu_ns=round(work * MS))
        self.finished.append((now, job))
        if job.background:
            self._renewed_s[job.camera] = now / 1000
        self.latency_ms[job.camera].append(now - job.arrived_ns / MS)


def newest_frame_loop(simulation: Simulation, seconds: float) -> list[float]:
    """Latencies of the loop that one would write otherwise: always the newest frame of each camera in turn, never dropped."""
    arrivals = deque(sorted(simulation._arrivals(seconds)))
    waiting: dict[str, float] = {}
    now, latencies = 0.0, []
    while arrivals or waiting:
        while arrivals and arrivals[0][0] <= now:
            at, name = arrivals.popleft()
            if simulation.random.random() < simulation.cameras[name].passing:
                waiting[name] = at
        if not waiting:
            if not arrivals:
                break
            now = arrivals[0][0]
            continue
        name = next(iter(waiting))
        arrived = waiting.pop(name)
        now += simulation.cost_ms(Level(224, simulation.buckets[-1])) * simulation.slowness(simulation.random, now)
        latencies.append(now - arrived)
    return latencies


def outcome_kinds(outcomes: list[Any]) -> list[str]:
    return ["held" if isinstance(one, Held) else one.cause for one in outcomes]
