"""Which frame to encode next: newest of each camera, earliest deadline first, never one that must be late.

Pure: no clock, no thread, no model; time comes in as nanoseconds with each call. Liu and Layland's earliest deadline first
is best while all waiting frames can be in time, and unfair when they cannot; so under overload the camera goes first that
has had the least service for its weight (start-time fair queueing, Goyal et al. 1996). Frames predicted to miss are
dropped before they start (Clockwork, OSDI 2020).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar

from encoders_core.config import Priority
from encoders_core.errors import InputError, OptionError
from encoders_core.realtime.load import CAPACITY, Costs, Demand, fair_shares

FrameT = TypeVar("FrameT")
DropCause = Literal["superseded", "late", "failed", "stopped"]

WEIGHTS: Final[dict[Priority, float]] = {"low": 1.0, "normal": 2.0, "high": 4.0}
"""Share of the processor under overload; a low camera keeps a quarter of what a high one gets."""
_ACTIVE_NS: Final = 2_000_000_000
_FLOOR_NS: Final = 2_000_000_000
_MAX_LAG: Final = 10  # jobs that a camera may be owed
_STEP_UP: Final = 0.8  # share of the time that a larger picture may take to be tried again


@dataclass(slots=True)
class Job(Generic[FrameT]):
    """A frame and when it is due. `must_run`: cold or lossless, it runs however late it is."""

    camera: str
    frame: FrameT
    arrived_ns: int
    deadline_ns: int
    rung: int
    cold: bool
    lossless: bool
    order: int
    started_ns: int = 0

    @property
    def must_run(self) -> bool:
        """Whether lateness does not matter."""
        return self.cold or self.lossless


@dataclass(frozen=True, slots=True)
class Held(Generic[FrameT]):
    """The last vector stands for this frame."""

    camera: str
    frame: FrameT


@dataclass(frozen=True, slots=True)
class Dropped(Generic[FrameT]):
    """This frame will not be encoded."""

    camera: str
    frame: FrameT
    cause: DropCause


Outcome = Held[FrameT] | Dropped[FrameT]


@dataclass(frozen=True, slots=True)
class CameraCounts:
    """What became of a camera's frames: `offered = encoded + held + sum(dropped) + waiting + running`, always."""

    offered: int
    encoded: int
    held: int
    dropped: dict[str, int]
    waiting: int
    running: int


@dataclass(slots=True)
class _Camera(Generic[FrameT]):
    budget_ns: int
    weight: float
    rung: int = 0
    waiting: Job[FrameT] | None = None
    running: Job[FrameT] | None = None
    service: float = 0.0
    """Weighted service received, nanoseconds: the queueing tag."""
    hungry_since_ns: int | None = None
    """Since when frames were wanted of it and none was started."""
    demand: Demand = field(default_factory=Demand)
    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


class FrameScheduler(Generic[FrameT]):
    """One slot per camera in front of one encoder. The caller has gated each frame and says so with `held`."""

    def __init__(self) -> None:
        self._cameras: dict[str, _Camera[FrameT]] = {}
        self._costs = Costs()
        self._order = 0
        self._service_now = 0.0
        self._now_ns = 0

    def add_camera(self, camera: str, *, budget_ms: float = 100.0, priority: Priority = "normal") -> None:
        """Take frames of `camera` from now on. Raises OptionError for a bad budget or priority, or if it is there."""
        if camera in self._cameras:
            raise OptionError(f"camera {camera!r} is there already")
        if not budget_ms > 0:
            raise OptionError(f"budget_ms: expected a positive number, got {budget_ms}")
        if priority not in WEIGHTS:
            raise OptionError(f"priority: expected one of {', '.join(WEIGHTS)}, got {priority!r}")
        self._cameras[camera] = _Camera(round(budget_ms * 1e6), WEIGHTS[priority], service=self._service_now)

    def remove_camera(self, camera: str) -> list[Dropped[FrameT]]:
        """Forget `camera`; returns the frame that was waiting, dropped. A running job may still be finished."""
        state = self._camera(camera)
        outcomes = [self._drop(camera, state, "stopped")] if state.waiting else []
        del self._cameras[camera]
        return outcomes

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
        rung: int = 0,
    ) -> list[Outcome[FrameT]]:
        """A frame that came: what this settles, oldest first. A newer frame always takes the place of a waiting one.

        Raises InputError for a second lossless frame while one waits: its source has to wait for the first.
        """
        state = self._camera(camera)
        if state.waiting is not None and state.waiting.lossless:
            raise InputError(f"camera {camera!r}: a lossless frame is waiting; offer the next when it is done")
        self._now_ns = max(self._now_ns, now_ns)
        state.counts["offered"] += 1
        state.demand.arrived(now_ns, passed=not held)
        outcomes: list[Outcome[FrameT]] = [self._drop(camera, state, "superseded")] if state.waiting else []
        if held:
            state.counts["held"] += 1
            state.hungry_since_ns = None
            return [*outcomes, Held(camera, frame)]
        self._order += 1
        deadline_ns = arrived_ns + state.budget_ns
        state.waiting = Job(camera, frame, arrived_ns, deadline_ns, rung, cold, lossless, self._order)
        state.rung = rung
        owed = _MAX_LAG * self._costs.mean_ns(rung) / state.weight
        state.service = max(state.service, self._service_now - owed)
        if state.hungry_since_ns is None:
            state.hungry_since_ns = now_ns
        return outcomes

    def next(self, now_ns: int, *, camera: str | None = None) -> tuple[Job[FrameT] | None, list[Dropped[FrameT]]]:
        """The job to start now, if any (of `camera` alone, if named), and the frames given up because they would be late.

        May be called while a job is suspended: a camera has one job at a time, and of cold jobs one runs at a time.
        """
        self._now_ns = max(self._now_ns, now_ns)
        dropped = self._drop_late(now_ns)
        a_cold_runs = any(state.running.cold for state in self._cameras.values() if state.running)
        ready = [
            (state.waiting, state)
            for name, state in self._cameras.items()
            if camera in (None, name)
            and state.waiting
            and not state.running
            and not (a_cold_runs and state.waiting.cold)
        ]
        if not ready:
            return None, dropped
        ready.sort(key=lambda pair: (pair[0].deadline_ns, pair[0].order))
        if not self._all_in_time([job for job, _ in ready], now_ns):
            ready.sort(key=lambda pair: (pair[1].service, pair[0].deadline_ns, pair[0].order))
        job, state = ready[0]
        if self._starving(state, now_ns) and not job.must_run and self._is_late(job, state, now_ns):
            self._costs.forget(job.rung)  # it kept everything from running, so measure anew
        self._service_now = state.service
        state.service += self._costs.mean_ns(job.rung) / state.weight
        state.waiting, state.running, state.hungry_since_ns = None, job, None
        job.started_ns = now_ns
        return job, dropped

    def finish(self, job: Job[FrameT], now_ns: int, *, cost_ns: int | None = None, failed: bool = False) -> None:
        """`job` is done. `cost_ns`: time spent on it, when it was suspended in between."""
        self._now_ns = max(self._now_ns, now_ns)
        if not failed:
            self._costs.add(job.rung, now_ns - job.started_ns if cost_ns is None else cost_ns)
        state = self._cameras.get(job.camera)
        if state is None or state.running is not job:
            return
        state.running = None
        if failed:
            state.dropped["failed"] += 1
        else:
            state.counts["encoded"] += 1

    def measured(self, rung: int, cost_ns: int) -> None:
        """A cost from elsewhere, such as a warm-up pass."""
        self._costs.add(rung, cost_ns)

    def fit_rung(self, camera: str, arrived_ns: int, now_ns: int, rungs: Sequence[int]) -> int:
        """The largest of `rungs` (input sizes in pixels, largest first) with which a frame can meet its deadline.

        What other sizes cost follows from what this camera's present one costs, as the area; to step up again a fifth of
        the time must stay free. When none fits, the smallest.
        """
        state = self._camera(camera)
        left_ns = arrived_ns + state.budget_ns - now_ns
        present = state.rung if state.rung in rungs else rungs[0]
        cost_ns = self._costs.p95_ns(present)
        for rung in rungs:
            if cost_ns * (rung / present) ** 2 <= left_ns * (_STEP_UP if rung > present else 1.0):
                if rung > present:
                    self._costs.forget(rung)  # it was measured when it was too slow
                return rung
        return rungs[-1]

    def pace_us(self, camera: str) -> int:
        """How far apart frames of `camera` should come, microseconds, so that what comes can be used; 0: no limit."""
        active = {
            name: state
            for name, state in self._cameras.items()
            if state.demand.last_ns is not None and self._now_ns - state.demand.last_ns < _ACTIVE_NS
        }
        if camera not in active:
            return 0
        loads = {name: state.demand.load(self._costs.mean_ns(state.rung)) for name, state in active.items()}
        if sum(loads.values()) <= CAPACITY:
            return 0
        share = fair_shares(loads, {name: state.weight for name, state in active.items()}, CAPACITY)[camera]
        if share >= loads[camera]:
            return 0
        return round(active[camera].demand.interval_ns * loads[camera] / share / 1000)

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
        )

    def _camera(self, camera: str) -> _Camera[FrameT]:
        try:
            return self._cameras[camera]
        except KeyError:
            known = ", ".join(sorted(self._cameras)) or "none"
            raise OptionError(f"unknown camera {camera!r}; there are: {known}") from None

    def _drop(self, camera: str, state: _Camera[FrameT], cause: DropCause) -> Dropped[FrameT]:
        job, state.waiting = state.waiting, None
        state.dropped[cause] += 1
        if job is None:
            raise AssertionError("dropped from an empty slot")
        return Dropped(camera, job.frame, cause)

    def _drop_late(self, now_ns: int) -> list[Dropped[FrameT]]:
        return [
            self._drop(camera, state, "late")
            for camera, state in self._cameras.items()
            if state.waiting
            and not state.waiting.must_run
            and self._is_late(state.waiting, state, now_ns)
            and not self._starving(state, now_ns)
        ]

    def _is_late(self, job: Job[FrameT], state: _Camera[FrameT], now_ns: int) -> bool:
        """Predicted to miss, by the 95th percentile of what jobs cost; for a camera that is owed service, by the median.

        Cameras that run in step arrive in the same order each time: with one quantile for all, the last of them would
        lose every frame to the caution that the first never feels.
        """
        owed = state.service + self._costs.mean_ns(job.rung) / state.weight <= self._service_now
        cost_ns = self._costs.p50_ns(job.rung) if owed else self._costs.p95_ns(job.rung)
        return now_ns + cost_ns > job.deadline_ns

    @staticmethod
    def _starving(state: _Camera[FrameT], now_ns: int) -> bool:
        """The floor: a camera that has waited this long for one frame gets it, in time or not."""
        return state.hungry_since_ns is not None and now_ns - state.hungry_since_ns >= _FLOOR_NS

    def _all_in_time(self, ready: list[Job[FrameT]], now_ns: int) -> bool:
        """Whether all of `ready`, run in this order, meet their deadlines."""
        finish_ns = now_ns
        for job in ready:
            finish_ns += self._costs.p95_ns(job.rung)
            if finish_ns > job.deadline_ns and not job.must_run:
                return False
        return True
