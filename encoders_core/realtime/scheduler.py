"""Which frame to encode next: newest of each camera, earliest deadline first, never one that must be late.

Pure: no clock, no thread, no model; time comes in as nanoseconds with each call. Liu and Layland's earliest deadline first
is best while all waiting frames can be in time, and unfair when they cannot; so under overload the camera goes first that
has had the least service for its weight (start-time fair queueing, Goyal et al. 1996). How much of the model a frame gets is
the ladder's choice; frames that would be late on its lowest step are dropped before they start (Clockwork, OSDI 2020).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic

from encoders_core.config import Priority
from encoders_core.errors import InputError, OptionError
from encoders_core.realtime.jobs import WEIGHTS, CameraCounts, DropCause, Dropped, FrameT, Held, Job, Outcome
from encoders_core.realtime.ladder import Chance, Ladder, choose
from encoders_core.realtime.load import CAPACITY, PACE_LOAD, Costs, Demand, Level, bucket_of, fair_shares

_ACTIVE_NS: Final = 2_000_000_000
_FLOOR_NS: Final = 2_000_000_000
_PROBE_NS: Final = 500_000_000
_MOST_COMPANIONS: Final = 3
_MAX_LAG: Final = 10  # jobs that a camera may be owed
_AGE_RATE: Final = 0.1


@dataclass(slots=True)
class _Camera(Generic[FrameT]):
    budget_ns: int
    weight: float
    rung: int
    """Size of the last picture, pixels."""
    waiting: Job[FrameT] | None = None
    running: Job[FrameT] | None = None
    service: float = 0.0
    """Weighted service received, nanoseconds: the queueing tag."""
    hungry_since_ns: int | None = None
    """Since when frames were wanted of it and none was started."""
    age_ns: float = 0.0
    """How old its frames are when they come; smoothed."""
    demand: Demand = field(default_factory=Demand)
    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


class FrameScheduler(Generic[FrameT]):
    """One slot per camera in front of one encoder. The caller has gated each frame and says so with `held`."""

    def __init__(self, buckets: Sequence[int] = (1,), rungs: Sequence[int] = (0,)) -> None:
        self.costs = Costs()
        self.ladder = Ladder(tuple(buckets), tuple(rungs))
        self._cameras: dict[str, _Camera[FrameT]] = {}
        self._order = 0
        self._service_now = 0.0
        self._now_ns = 0
        self._started_ns: int | None = None
        self._probe_after_ns = _PROBE_NS

    # Cameras

    def add_camera(self, camera: str, *, budget_ms: float = 100.0, priority: Priority = "normal") -> None:
        """Take frames of `camera` from now on. Raises OptionError for a bad budget or priority, or if it is there."""
        if camera in self._cameras:
            raise OptionError(f"camera {camera!r} is there already")
        if not budget_ms > 0:
            raise OptionError(f"budget_ms: expected a positive number, got {budget_ms}")
        if priority not in WEIGHTS:
            raise OptionError(f"priority: expected one of {', '.join(WEIGHTS)}, got {priority!r}")
        self._cameras[camera] = _Camera(
            round(budget_ms * 1e6), WEIGHTS[priority], self.ladder.rungs[0], service=self._service_now
        )

    def remove_camera(self, camera: str) -> list[Outcome[FrameT]]:
        """Forget `camera`; returns the frame that was waiting, dropped. A running job may still be finished."""
        state = self._camera(camera)
        outcomes = [self._drop(camera, state, "stopped")] if state.waiting else []
        del self._cameras[camera]
        return [*outcomes]

    def counts(self, camera: str) -> CameraCounts:
        """What became of the frames of `camera`."""
        state = self._camera(camera)
        return CameraCounts(
            offered=state.counts["offered"],
            encoded=state.counts["encoded"],
            held=state.counts["held"],
            dropped=dict(state.dropped),
            waiting=int(state.waiting is not None),
            running=int(state.running is not None),
            capped=state.counts["capped"],
        )

    # Frames in, jobs out

    def offer(
        self,
        camera: str,
        frame: FrameT,
        arrived_ns: int,
        *,
        now_ns: int,
        held: bool = False,
        cold: bool = False,
        lossless: bool = False,
        background: bool = False,
        whole: bool = False,
        rows: int | None = None,
    ) -> list[Outcome[FrameT]]:
        """A frame that came: what this settles, oldest first. A newer frame always takes the place of a waiting one.

        `rows`: how many its plan wants, None is all; `whole`: they must not be cut. `background`: the last vector stands
        for it unless there is slack time to encode it. Raises InputError for a second lossless frame while one waits: its source has to wait for the first.
        """
        state = self._camera(camera)
        if state.waiting is not None and state.waiting.lossless:
            raise InputError(f"camera {camera!r}: a lossless frame is waiting; offer the next when it is done")
        self._now_ns = max(self._now_ns, now_ns)
        dense = self.ladder.dense
        wants = dense if rows is None or cold else Level(dense.rung, bucket_of(self.ladder.buckets, rows))
        state.counts["offered"] += 1
        state.age_ns += _AGE_RATE * (max(0, now_ns - arrived_ns) - state.age_ns)
        state.demand.arrived(now_ns, None if held else wants)
        outcomes = [self._supersede(camera, state)] if state.waiting else []
        if held:
            state.counts["held"] += 1
            state.hungry_since_ns = None
            return [*outcomes, Held(camera, frame)]
        self._order += 1
        deadline_ns = arrived_ns + state.budget_ns
        whole = whole or cold or lossless or background
        state.waiting = Job(
            camera, frame, arrived_ns, deadline_ns, wants, cold, lossless, background, whole, self._order
        )
        owed = _MAX_LAG * self.costs.mean_ns(wants) / state.weight
        state.service = max(state.service, self._service_now - owed)
        if state.hungry_since_ns is None and not background:
            state.hungry_since_ns = now_ns
        return outcomes

    def next(self, now_ns: int, *, camera: str | None = None) -> tuple[Job[FrameT] | None, list[Dropped[FrameT]]]:
        """The job to start now, if any (of `camera` alone, if named), and the frames given up because they would be late.

        May be called while a job is suspended: a camera has one job at a time, and of those that give way to others
        (cold and background ones) one runs at a time. It gives way until its deadline; from then on to cameras that have
        had less service alone, or under overload it would never end.
        """
        self._now_ns = max(self._now_ns, now_ns)
        dropped = self._drop_late(now_ns)
        one_gives_way = any(state.running.gives_way for state in self._cameras.values() if state.running)
        ready = [
            (state.waiting, state)
            for name, state in self._cameras.items()
            if camera in (None, name)
            and state.waiting
            and not state.running
            and not (one_gives_way and state.waiting.gives_way)
        ]
        if any(not job.background for job, _ in ready):
            ready = [pair for pair in ready if not pair[0].background]
        if not ready:
            return None, dropped
        ready.sort(key=lambda pair: (pair[0].deadline_ns, pair[0].order))
        cap = self._shared_cap([job for job, _ in ready], now_ns)
        if cap is None:
            cap = self.ladder.buckets[0]
            ready.sort(key=lambda pair: (pair[1].service, pair[0].deadline_ns, pair[0].order))
        job, state = ready[0]
        if any(_has_waited(other, now_ns) and other.service < state.service for other in self._cameras.values()):
            return None, dropped
        self._start(job, state, now_ns, cap)
        return job, dropped

    def companions(self, leader: Job[FrameT], now_ns: int) -> list[Job[FrameT]]:
        """Jobs of other cameras that go through the model together with `leader`, just started; they are started, too.

        For a model that computes rows: its weights are then read once for all of them. Taken are those whose deadlines, and
        that of `leader`, would be met even if nothing were gained by it.
        """
        if leader.must_run or leader.level.row_cap >= self.ladder.dense.row_cap:
            return []
        finish_ns, due_ns = now_ns + self.costs.quantile_ns(leader.level, 0.95), leader.deadline_ns
        found: list[Job[FrameT]] = []
        waiting = [(state.waiting, state) for state in self._cameras.values() if state.waiting and not state.running]
        for job, state in sorted(waiting, key=lambda pair: (pair[0].deadline_ns, pair[0].order)):
            if len(found) == _MOST_COMPANIONS or job.must_run or job.whole:
                continue
            after_ns = finish_ns + self.costs.quantile_ns(job.wants, 0.95)
            if job.wants.row_cap < self.ladder.dense.row_cap and after_ns <= min(due_ns, job.deadline_ns):
                self._start(job, state, now_ns, job.wants.row_cap)
                finish_ns, due_ns = after_ns, min(due_ns, job.deadline_ns)
                found.append(job)
        return found

    def finish(
        self,
        job: Job[FrameT],
        now_ns: int,
        *,
        cost_ns: int | None = None,
        cpu_ns: int | None = None,
        rows: int | None = None,
        failed: bool = False,
    ) -> None:
        """`job` is done. `cost_ns`: time spent on it, when it was suspended in between; `cpu_ns`: of that, computing.

        `rows`: how many it computed anew; None: all that it was let in with.
        """
        self._now_ns = max(self._now_ns, now_ns)
        if not failed:
            used = job.level if rows is None else Level(job.level.rung, bucket_of(self.ladder.buckets, rows))
            self.costs.add(used, now_ns - job.started_ns if cost_ns is None else cost_ns, now_ns=now_ns, cpu_ns=cpu_ns)
            if job.probe:
                self._heed_probe(used, in_time=now_ns <= job.deadline_ns)
        state = self._cameras.get(job.camera)
        if state is None or state.running is not job:
            return
        state.running = None
        if failed:
            state.dropped["failed"] += 1
        else:
            state.counts["encoded"] += 1
            state.counts["capped"] += job.level != job.wants

    def measured(self, cost_ns: int, *, level: Level | None = None, cpu_ns: int | None = None) -> None:
        """A cost from elsewhere, such as a warm-up pass; of the full pass if no level is named."""
        self.costs.add(level or self.ladder.dense, cost_ns, now_ns=self._now_ns, cpu_ns=cpu_ns)

    # What others may go by

    def pace_us(self, camera: str) -> int:
        """How far apart frames of `camera` should come, microseconds, so that what comes can be used; 0: no limit."""
        active = self._active()
        if camera not in active:
            return 0
        loads = {name: self._load(state, self.ladder.buckets[0]) for name, state in active.items()}
        if sum(loads.values()) <= CAPACITY:
            return 0
        share = fair_shares(loads, {name: state.weight for name, state in active.items()}, PACE_LOAD)[camera]
        if share >= loads[camera]:
            return 0
        return round(active[camera].demand.interval_ns * loads[camera] / share / 1000)

    def slack_ns(self, now_ns: int, *, came: str | None = None) -> float:
        """How long nothing urgent is expected: 0 while a job waits or runs, else until the next frame should come.

        `came`: a frame of that camera is here and has not been offered yet.
        """
        cameras = self._cameras.values()
        if any(job and not job.background for state in cameras for job in (state.waiting, state.running)):
            return 0.0
        dues = (
            state.demand.interval_ns or float("inf") if name == came else state.demand.due_in_ns(now_ns)
            for name, state in self._cameras.items()
        )
        return min(dues, default=float("inf"))

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not any(state.waiting for state in self._cameras.values())

    def waits(self, camera: str) -> bool:
        """Whether a frame of `camera` waits."""
        state = self._cameras.get(camera)
        return state is not None and state.waiting is not None

    # Inside

    def _camera(self, camera: str) -> _Camera[FrameT]:
        try:
            return self._cameras[camera]
        except KeyError:
            known = ", ".join(sorted(self._cameras)) or "none"
            raise OptionError(f"unknown camera {camera!r}; there are: {known}") from None

    def _active(self) -> dict[str, _Camera[FrameT]]:
        return {
            name: state
            for name, state in self._cameras.items()
            if state.demand.last_ns is not None and self._now_ns - state.demand.last_ns < _ACTIVE_NS
        }

    def _load(self, state: _Camera[FrameT], cap: int) -> float:
        """The share of the time that a camera's frames take when none gets more than `cap` rows."""
        return state.demand.load(lambda wants: self.costs.mean_ns(Level(state.rung, min(cap, wants.row_cap))))

    def _start(self, job: Job[FrameT], state: _Camera[FrameT], now_ns: int, cap: int) -> None:
        level = self._level(job, state, now_ns, cap)
        job.probe = level is None and not job.must_run
        if job.probe:
            self._probe_after_ns = min(2 * self._probe_after_ns, _FLOOR_NS)
        job.level = level or [*self._steps(job, cap)][-1]
        job.started_ns = self._started_ns = now_ns
        self._service_now = state.service
        state.service += self.costs.mean_ns(job.level) / state.weight
        state.waiting, state.running, state.hungry_since_ns = None, job, None
        state.rung = job.level.rung

    def _steps(self, job: Job[FrameT], cap: int) -> list[Level]:
        return list(self.ladder.steps(job.wants, cap=None if job.whole else cap))

    def _level(self, job: Job[FrameT], state: _Camera[FrameT], now_ns: int, cap: int) -> Level | None:
        owed = state.service + self.costs.mean_ns(job.wants) / state.weight <= self._service_now
        fresh_ns = state.budget_ns - state.age_ns
        chance = Chance(job.deadline_ns - now_ns, fresh_ns, state.rung, owed=owed)
        return choose(self.costs, self._steps(job, cap), chance)

    def _drop(self, camera: str, state: _Camera[FrameT], cause: DropCause) -> Dropped[FrameT]:
        job, state.waiting = state.waiting, None
        state.dropped[cause] += 1
        if job is None:
            raise AssertionError("dropped from an empty slot")
        return Dropped(camera, job.frame, cause)

    def _supersede(self, camera: str, state: _Camera[FrameT]) -> Outcome[FrameT]:
        job = state.waiting
        if job is None or not job.background:
            return self._drop(camera, state, "superseded")
        state.waiting = None
        state.counts["held"] += 1
        return Held(camera, job.frame)

    def _drop_late(self, now_ns: int) -> list[Dropped[FrameT]]:
        probing = self._started_ns is not None and now_ns - self._started_ns >= self._probe_after_ns
        return [
            self._drop(camera, state, "late")
            for camera, state in self._cameras.items()
            if state.waiting
            and not state.waiting.must_run
            and not self._starving(state, now_ns)
            and not (probing and now_ns < state.waiting.deadline_ns)
            and self._level(state.waiting, state, now_ns, self.ladder.buckets[0]) is None
        ]

    @staticmethod
    def _starving(state: _Camera[FrameT], now_ns: int) -> bool:
        """The floor: a camera that has waited this long for one frame gets it, in time or not, expired or not."""
        return state.hungry_since_ns is not None and now_ns - state.hungry_since_ns >= _FLOOR_NS

    def _heed_probe(self, level: Level, *, in_time: bool) -> None:
        if in_time:
            self.costs.trust_newest(level)
            self._probe_after_ns = _PROBE_NS

    def _shared_cap(self, ready: list[Job[FrameT]], now_ns: int) -> int | None:
        """The most rows with which all of `ready` meet their deadlines in this order, and all cameras fit; None: no cap does."""
        active = self._active().values()
        for cap in reversed(self.ladder.buckets):
            fits = cap == self.ladder.buckets[0] or sum(self._load(state, cap) for state in active) <= CAPACITY
            if fits and self._all_in_time(ready, now_ns, cap):
                return cap
        return None

    def _all_in_time(self, ready: list[Job[FrameT]], now_ns: int, cap: int) -> bool:
        finish_ns = float(now_ns)
        for job in ready:
            wants = job.wants if job.whole else Level(job.wants.rung, min(cap, job.wants.row_cap))
            finish_ns += self.costs.quantile_ns(wants, 0.95)
            if finish_ns > job.deadline_ns and not job.must_run:
                return False
        return True


def _has_waited(state: _Camera[FrameT], now_ns: int) -> bool:
    """Whether a job of this camera has given way for long enough."""
    job = state.running
    return job is not None and now_ns > job.deadline_ns and (job.cold or (job.background and state.waiting is not None))
