"""One frame on its way through the model, block by block."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from encoders_core.errors import EncoderError
from encoders_core.realtime.audit import Ticket
from encoders_core.realtime.frame_encoder import FrameEncoder
from encoders_core.realtime.frame_gate import Decision
from encoders_core.realtime.jobs import Job
from encoders_core.realtime.load import Level
from encoders_core.realtime.results import StreamFeature, StreamQuality
from encoders_core.realtime.scheduler import FrameScheduler
from encoders_core.realtime.session import Output, Session


@dataclass(slots=True)
class Arrival:
    """A frame that was offered, with what was handed over beside it."""

    pixels: NDArray[np.uint8]
    arrived_ns: int
    at_ns: int
    tag: Any
    session: Session
    decision: Decision
    ticket: Ticket | None = None
    """Set when the frame is to be audited."""


class JobOwner(Protocol):
    """What a job needs of the realtime encoder that it belongs to."""

    @property
    def frame_encoder(self) -> FrameEncoder:
        """The model."""
        ...

    @property
    def scheduler(self) -> FrameScheduler[Arrival]:
        """Hears when the job is done."""
        ...

    def clock(self) -> int:
        """Monotonic nanoseconds."""
        ...

    def cpu_clock(self) -> int:
        """Nanoseconds that this thread has computed."""
        ...

    def block_took(self, duration_ns: int) -> None:
        """Hears how long each block takes."""
        ...

    def stood(self, arrival: Arrival, features: NDArray[np.float32] | None) -> None:
        """(D,) float32, what stands for the frame; None: nothing."""
        ...

    def forget(self, camera: str, session: Session) -> None:
        """Start a camera anew."""
        ...


class RealtimeJob:
    """The encoding of one frame, in steps. Call `step` until it is True, then `result` once.

    With `companions`, jobs of other cameras, it is one pass for all of them: step this one, take the result of each.
    """

    def __init__(self, encoder: JobOwner, job: Job[Arrival], companions: Sequence["RealtimeJob"] = ()) -> None:
        self._owner, self._job = encoder, job
        arrival = job.frame
        self.camera, self.tag, self.companions = job.camera, arrival.tag, tuple(companions)
        self._features: NDArray[np.float32] | None = None
        self._error: Exception | None = None
        self._spent_ns = self._computed_ns = 0
        self._share = 1.0
        level = Level(job.level.rung, encoder.frame_encoder.buckets[-1]) if job.whole else job.level
        try:
            self._plan = arrival.session.begin(arrival.pixels, arrival.at_ns, arrival.decision, level)
            together = [job for job in self.companions if job._error is None]  # noqa: SLF001  our own
            self._steps = encoder.frame_encoder.encode([self._plan, *(job._plan for job in together)])  # noqa: SLF001  our own
        except Exception as error:  # noqa: BLE001  as in `step`
            self._fail(error)

    @property
    def cold(self) -> bool:
        """Whether it runs however late it is."""
        return self._job.cold

    @property
    def gives_way(self) -> bool:
        """Whether jobs of other cameras should be let through between its steps: it is cold, or renews what still stands."""
        return self._job.gives_way

    @property
    def background(self) -> bool:
        """Whether it should run in slack time only."""
        return self._job.background

    @property
    def started_ns(self) -> int:
        """When the scheduler let it start, in the encoder's clock."""
        return self._job.started_ns

    @property
    def deadline_ns(self) -> int:
        """When its budget ends."""
        return self._job.deadline_ns

    def step(self) -> bool:
        """One block of the model. True when nothing is left to do. Never raises; an error comes out of `result`."""
        if self._error is not None:
            return True
        started_ns, computed_ns = self._owner.clock(), self._owner.cpu_clock()
        try:
            next(self._steps)
        except StopIteration as done:
            self._features = done.value[0]
            self._hand_out(done.value[1:])
        except Exception as error:  # noqa: BLE001  whatever a model raises, the frame must be booked as failed
            self._fail(error)
        took_ns = self._owner.clock() - started_ns
        self._spent_ns += took_ns
        self._computed_ns += self._owner.cpu_clock() - computed_ns
        self._owner.block_took(took_ns)
        over = self._features is not None or self._error is not None
        if over and self.companions:
            self._share_costs()
        return over

    def _fail(self, error: Exception) -> None:
        """What went wrong, for the frames of the whole pass."""
        for job in (self, *self.companions):
            job._error = job._error or error  # noqa: SLF001  our own

    def _hand_out(self, features: NDArray[np.float32]) -> None:
        """(B, D): the vectors of the companions."""
        together = [job for job in self.companions if job._error is None]  # noqa: SLF001  our own
        for other, vector in zip(together, features, strict=True):
            other._features = vector  # noqa: SLF001  our own

    def _share_costs(self) -> None:
        """Each job took the time of the pass; of its cost it bears what its rows are of all rows."""
        jobs = [self, *self.companions]
        rows = [max(1, self._rows(job)) for job in jobs]
        for job, own in zip(jobs, rows, strict=True):
            job._spent_ns, job._computed_ns = self._spent_ns, self._computed_ns  # noqa: SLF001  our own
            job._share = own / sum(rows)  # noqa: SLF001  our own

    @staticmethod
    def _rows(job: "RealtimeJob") -> int:
        """Rows that a job's pass may have computed."""
        plan = job._plan  # noqa: SLF001  our own
        return plan.rows_total if plan.cold or plan.refresh else min(plan.rows, plan.row_cap or plan.rows)

    def result(self) -> StreamFeature:
        """The vector. Raises EncoderError when the model failed; the frame is then booked as `abandon` does."""
        if self._error is not None:
            self.abandon()
            raise EncoderError(f"camera {self.camera!r}: encoding failed: {self._error}") from self._error
        if self._features is None:
            raise AssertionError("result() before step() returned True")
        now_ns = self._owner.clock()
        arrival, plan = self._job.frame, self._plan
        output = arrival.session.complete(self._features)
        rows = plan.rows_total if plan.cold or plan.refresh else min(plan.rows, plan.row_cap or plan.rows)
        self._owner.scheduler.finish(
            self._job, now_ns, cost_ns=self._cost_ns(now_ns), cpu_ns=self._computed_ns, rows=self._counted(rows)
        )
        self._owner.stood(arrival, output.features)
        quality = StreamQuality(
            reason=arrival.decision.reason,
            rung=self._job.level.rung,
            tokens_updated=rows if plan.computed is None else plan.computed,
            tokens_total=plan.rows_total,
            cold=plan.cold,
            change=plan.change,
            cut=plan.cut,
            encode_us=self._spent_ns // 1000,
            budget_met=now_ns <= self._job.deadline_ns,
        )
        return feature_of(self.camera, output, quality, now_ns - self._job.arrived_ns, self.tag)

    def _cost_ns(self, now_ns: int) -> int:
        """What the next such job has to reckon with: the gating of frames that came meanwhile counts, giving way does not."""
        return self._spent_ns if self._job.gives_way else now_ns - self._job.started_ns

    def _counted(self, rows: int) -> int | None:
        """Rows as the scheduler's buckets count them, which are those of the model's own size; None: all."""
        return rows if len(self._owner.frame_encoder.buckets) > 1 else None

    def abandon(self) -> None:
        """Give the job up: its frame counts as failed, and its camera, whose memory may be half written, starts anew."""
        self._owner.scheduler.finish(self._job, self._owner.clock(), failed=True)
        self._owner.stood(self._job.frame, None)
        self._owner.forget(self.camera, self._job.frame.session)


def feature_of(camera: str, output: Output, quality: StreamQuality, latency_ns: int, tag: Any) -> StreamFeature:
    """What a session has for a frame, as users get it: of unit length."""
    vector, norm = _unit(output.features)
    temporal = None if output.temporal is None else _unit(output.temporal)[0]
    return StreamFeature(camera, vector, norm, temporal, quality, latency_ns / 1e6, tag)


def _unit(vector: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    norm = math.sqrt(float(vector.dot(vector)))
    return (vector / np.float32(norm) if norm > 0 else vector), norm
