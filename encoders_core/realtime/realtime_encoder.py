"""Streams of frames to vectors, under a latency budget, for many cameras with one model.

Three ways in. `encode_stream` takes frames and returns their vectors, all of them, for notebooks and files. `stream` is
the same for an async source, newest first. A worker process drives `offer`, `next_job` and `RealtimeJob.step` from its own loop.
One thread calls everything, but for `RealtimeJob.step`, which may run in another.
"""

import contextlib
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders_core.config import QUALITY_TARGETS, AuditConfig, GateConfig, Priority, QualityLevel, TemporalConfig
from encoders_core.errors import EncoderError, InputError, OptionError
from encoders_core.realtime import change
from encoders_core.realtime.audit import Auditor
from encoders_core.realtime.fidelity import Fidelity
from encoders_core.realtime.frame_encoder import EncoderDescriptor, FrameEncoder, ScalableFrameEncoder, fingerprint
from encoders_core.realtime.intake import Frames, as_frames
from encoders_core.realtime.jobs import CameraCounts, Dropped, Held, Outcome
from encoders_core.realtime.live_stream import run, stream_all, stream_newest
from encoders_core.realtime.load import Level
from encoders_core.realtime.profile import profile
from encoders_core.realtime.realtime_job import Arrival, RealtimeJob, feature_of
from encoders_core.realtime.results import StreamFeature, StreamFeatures, StreamQuality, stack
from encoders_core.realtime.scheduler import FrameScheduler
from encoders_core.realtime.session import Session
from encoders_core.realtime.temporal import temporal_stepper

_NOMINAL_INTERVAL_US = 40_000
_BLOCK_MEMORY = 0.99


@dataclass(frozen=True, slots=True)
class CameraStatistics:
    """`counts` adds up at any moment; `estimated_fvu` is what holding frames has cost, as the gate's own samples suggest.

    `estimated_fvu` is None for a gate that cannot tell, `fidelity` without audits.
    """

    counts: CameraCounts
    estimated_fvu: float | None
    fidelity: Fidelity | None = None


class RealtimeVideoEncoder:
    """One model for many cameras; what it remembers of each is its own.

    `budget_ms`: from a frame's arrival to its vector, for cameras that name none. `gate`: a fidelity level, a GateConfig,
    or None to encode every frame. `temporal`: adds the temporal head. `rungs`: sizes of the model, in pixels, largest
    first, to step down when the predicted cost misses the budget; without them only the model's own. `lossless`: `stream`
    encodes or holds every frame in order, and its source waits. `audit`: measures how far vectors are from those of full
    passes, in slack time, and steers the gates to `target_fvu` (None: that of the gate). `caching`: a model that can computes
    only what changed within a picture; without it each pass is a full one. `clock`: monotonic nanoseconds;
    `cpu_clock`: those that the calling thread computed; a clock of one's own counts for both.
    """

    def __init__(
        self,
        frame_encoder: FrameEncoder,
        *,
        budget_ms: float = 100.0,
        gate: GateConfig | QualityLevel | None = "balanced",
        temporal: TemporalConfig | None = None,
        rungs: Sequence[int] | None = None,
        lossless: bool = False,
        audit: AuditConfig | None = None,
        target_fvu: float | None = None,
        caching: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
        cpu_clock: Callable[[], int] | None = None,
    ) -> None:
        self.frame_encoder, self.clock = frame_encoder, clock
        self.cpu_clock = cpu_clock or (time.thread_time_ns if clock is time.monotonic_ns else clock)
        self.budget_ms = budget_ms
        self._gate = _gate_config(gate)
        target_fvu = target_fvu if target_fvu is not None else (self._gate or GateConfig()).target_fvu
        self._row_scale = math.sqrt(target_fvu / QUALITY_TARGETS["balanced"]) if caching else None
        self._auditor = Auditor(audit, frame_encoder, target_fvu) if audit else None
        self._block_ns = 0
        self._stepper = temporal_stepper(frame_encoder.descriptor.dim, temporal) if temporal else None
        self._sessions: dict[str, Session] = {}
        self.scheduler: FrameScheduler[Arrival] = FrameScheduler(frame_encoder.buckets, _rungs(frame_encoder, rungs))
        self.lossless = lossless

    @property
    def temporal_descriptor(self) -> EncoderDescriptor | None:
        """Which model the temporal vectors come from, a second one beside that of the frames; None without a head."""
        if self._stepper is None:
            return None
        weights, config, frames = (
            self._stepper.head.state_dict(),
            self._stepper.config,
            self.frame_encoder.descriptor,
        )
        pooling = f"{config.kind}, causal over {config.window} frames, held frames {config.skipped}"
        mark = fingerprint(weights, frames.input, pooling=pooling, head=frames.fingerprint, variant=repr(config))
        name = f"{frames.name}, temporal head without training"
        return replace(
            frames, model_id=f"{frames.model_id}-temporal", name=name, fingerprint=mark, trained=False, pooling=pooling
        )

    # Cameras

    def add_camera(self, camera: str, *, budget_ms: float | None = None, priority: Priority = "normal") -> None:
        """Take frames of `camera`. Raises OptionError when it is there already, or for a bad budget or priority."""
        self.scheduler.add_camera(
            camera, budget_ms=self.budget_ms if budget_ms is None else budget_ms, priority=priority
        )
        self._sessions[camera] = self._new_session(camera)

    def remove_camera(self, camera: str) -> list[Outcome[Arrival]]:
        """Forget `camera`; returns the frame that waited, if one did."""
        dropped = self.scheduler.remove_camera(camera)
        self._settle(dropped)
        self._sessions.pop(camera).close()
        if self._auditor:
            self._auditor.forget(camera)
        return dropped

    def reset(self, camera: str) -> None:
        """Forget what was seen of `camera`: its next frame is cold."""
        self._session(camera).close()
        self._sessions[camera] = self._new_session(camera)

    # Frames and vectors, in one call

    def encode_stream(
        self,
        frames: Frames,
        *,
        update_temporal_context: bool = True,
        camera: str = "default",
        timestamps_us: Sequence[int] | None = None,
    ) -> StreamFeatures:
        """(T, C, H, W) or (C, H, W), or channels last, or a list; uint8, or float from 0 to 1 -> StreamFeatures of T.

        Frames of another size are resized. They continue the stream of `camera`; with `update_temporal_context=False` the
        result is the same, and the stream stays where it was. `timestamps_us` increase; without them frames count as
        40 ms apart. Raises InputError for frames or timestamps that do not fit.
        """
        pixels = list(as_frames(frames, self.frame_encoder.descriptor.input))
        times = _timestamps(timestamps_us, len(pixels))
        if camera not in self._sessions:
            self.add_camera(camera)
        with contextlib.nullcontext() if update_temporal_context else self._looking(camera):
            done = [self._encode_one(camera, *pair) for pair in zip(pixels, times, strict=True)]
        while self.audit_step():
            pass
        return stack(done, self.frame_encoder.descriptor.dim, temporal=self._stepper is not None)

    async def stream(
        self, frames: AsyncIterable[torch.Tensor | NDArray[Any]], *, camera: str = "default"
    ) -> AsyncIterator[StreamFeature]:
        """Frames as they come, each (C, H, W) or (H, W, C) -> the vectors of those that could be encoded or held in time.

        Newest wins: a frame that comes while another is encoded takes the place of one that waits, and what it replaced
        is counted in `statistics`. Ends with `frames`; raises what `frames` raises.
        """
        if camera not in self._sessions:
            self.add_camera(camera)
        features = stream_all(self, frames, camera) if self.lossless else stream_newest(self, frames, camera)
        async for feature in features:
            yield feature

    # The surface of a worker's loop

    def offer(
        self,
        camera: str,
        pixels: NDArray[np.uint8],
        arrived_ns: int,
        *,
        pts_us: int | None = None,
        lossless: bool = False,
        reset: bool = False,
        tag: Any = None,
    ) -> list[Outcome[Arrival]]:
        """A frame of the model's size that came: gated now; returns what this settles, oldest first.

        `reset` starts the camera anew with this frame. A held frame that comes while a job of its camera runs follows
        that job's frame: account for it after the job's result.
        """
        expected = (*self.frame_encoder.descriptor.input.size_hw, 3)
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise InputError(
                f"camera {camera!r}: expected a uint8 frame of shape {expected}, got {pixels.dtype} of {pixels.shape}"
            )
        if reset:
            self.reset(camera)
        session = self._session(camera)
        ticket = self._auditor.draw(camera, pixels) if self._auditor else None
        at_ns = arrived_ns if pts_us is None else pts_us * 1000
        decision = session.decide(pixels, at_ns, slack=not lossless and self._has_slack(came=camera))
        arrival = Arrival(pixels, arrived_ns, at_ns, tag, session, decision, ticket)
        wish = session.wish(pixels, decision)
        outcomes = self.scheduler.offer(
            camera,
            arrival,
            arrived_ns,
            now_ns=self.clock(),
            held=not decision.encode,
            cold=decision.reason in ("cold", "cut") or (wish is not None and wish.cold),
            lossless=lossless,
            background=decision.early,
            whole=session.whole or decision.reason == "max_hold",
            rows=None if wish is None else wish.rows,
        )
        self._settle(outcomes)
        return outcomes

    def next_job(
        self, now_ns: int | None = None, *, camera: str | None = None, packed: bool = False
    ) -> tuple[RealtimeJob | None, list[Dropped[Arrival]]]:
        """The job to do now, if any (of `camera` alone, if named), and the frames given up because they would be late.

        `packed`: it may bring `companions`, jobs of other cameras that go through the model in one pass with it.
        """
        now_ns = self.clock() if now_ns is None else now_ns
        job, dropped = self.scheduler.next(now_ns, camera=camera)
        self._settle(dropped)
        if job is None:
            return None, dropped
        others = self.scheduler.companions(job, now_ns) if packed else []
        return RealtimeJob(self, job, [RealtimeJob(self, other) for other in others]), dropped

    @property
    def idle(self) -> bool:
        """Whether neither a frame nor an audit waits: until something comes, there is nothing to ask for."""
        return self.scheduler.idle and (self._auditor is None or self._auditor.idle)

    def may_step(self, job: RealtimeJob) -> bool:
        """Whether `job` should go on now: one in the background only in slack time, or when its camera waits for it."""
        return not job.background or self.scheduler.waits(job.camera) or self._has_slack()

    def audit_step(self, *, in_slack: bool = False) -> bool:
        """One block of an audit, if a frame waits for one; `in_slack`: and if nothing else is to do or expected meanwhile."""
        if self._auditor is None or self._auditor.idle or (in_slack and not self._has_slack()):
            return False
        started_ns = self.clock()
        stepped = self._auditor.step()
        if stepped:
            self.block_took(self.clock() - started_ns)
        return stepped

    def pace_us(self, camera: str) -> int:
        """How far apart frames of `camera` should come, so that what comes can be used; 0: no limit."""
        return self.scheduler.pace_us(camera)

    def warm_up(self, passes: int = 5) -> float:
        """Median milliseconds of a full pass here, after one that does not count; the scheduler starts from it.

        Of a model that can do with fewer rows, each of its row caps is timed as well.
        """
        if self._gate:
            change.prepare(self.frame_encoder.descriptor.input.size_hw)
        costs_ns = profile(self.frame_encoder, passes, clock=self.clock, cpu_clock=self.cpu_clock)
        for row_cap, costs in costs_ns.items():
            for cost_ns, cpu_ns in costs:
                self.scheduler.measured(cost_ns, level=Level(self.scheduler.ladder.rungs[0], row_cap), cpu_ns=cpu_ns)
        return float(np.median([cost_ns for cost_ns, _ in costs_ns[self.frame_encoder.buckets[-1]]])) / 1e6

    def held_feature(self, outcome: Held[Arrival]) -> StreamFeature:
        """The vector that stands for a frame that was held."""
        arrival = outcome.frame
        output = arrival.session.output
        if output is None:
            raise AssertionError("held before anything was encoded")
        latency_ns = self.clock() - arrival.arrived_ns
        quality = StreamQuality(
            reason="held",
            rung=arrival.session.rung,
            tokens_updated=0,
            tokens_total=arrival.session.tokens_total,
            cold=False,
            change=arrival.decision.change.share,
            cut=False,
            encode_us=0,
            budget_met=True,
        )
        return feature_of(outcome.camera, output, quality, latency_ns, arrival.tag)

    def statistics(self) -> dict[str, CameraStatistics]:
        """What became of each camera's frames."""
        return {
            camera: CameraStatistics(
                self.scheduler.counts(camera),
                session.estimated_fvu,
                self._auditor.fidelity(camera) if self._auditor else None,
            )
            for camera, session in self._sessions.items()
        }

    def forget(self, camera: str, session: Session) -> None:
        """Start `camera` anew if `session` is still its memory."""
        if self._sessions.get(camera) is session:
            self.reset(camera)

    # What a job tells

    def block_took(self, duration_ns: int) -> None:
        """How long a block of the model took: slack time is worth using from there on."""
        self._block_ns = max(duration_ns, round(_BLOCK_MEMORY * self._block_ns))

    def stood(self, arrival: Arrival, features: NDArray[np.float32] | None) -> None:
        """(D,) float32, un-normalised: what stands for a frame; None: nothing will."""
        if self._auditor is None:
            return
        if features is None:
            self._auditor.void(arrival.ticket)
        else:
            self._auditor.stood(arrival.ticket, features)

    # Inside

    def _settle(self, outcomes: Sequence[Outcome[Arrival]]) -> None:
        for outcome in outcomes:
            arrival = outcome.frame
            if isinstance(outcome, Held):
                arrival.session.hold(partial(self.stood, arrival) if arrival.ticket else None)
            else:
                self.stood(arrival, None)

    def _has_slack(self, *, came: str | None = None) -> bool:
        """Whether a block of background work is in nobody's way; `came`: a frame of this camera is being looked at."""
        return self.scheduler.slack_ns(self.clock(), came=came) > self._block_ns

    def _new_session(self, camera: str) -> Session:
        session = Session(self.frame_encoder, self._gate, self._stepper, row_scale=self._row_scale)
        if self._auditor:
            self._auditor.steer(camera, session)
        return session

    def _session(self, camera: str) -> Session:
        if camera not in self._sessions:
            known = ", ".join(sorted(self._sessions)) or "none"
            raise OptionError(f"unknown camera {camera!r}; there are: {known}")
        return self._sessions[camera]

    @contextlib.contextmanager
    def _looking(self, camera: str) -> Iterator[None]:
        """What is done to `camera` leaves no trace in its memory, nor in its audits."""
        session, auditor = self._sessions[camera], self._auditor
        self._sessions[camera], self._auditor = session.copy(), None
        try:
            yield
        finally:
            self._sessions[camera], self._auditor = session, auditor

    def _encode_one(self, camera: str, frame: NDArray[np.uint8], pts_us: int | None) -> StreamFeature:
        if pts_us is None:
            pts_us = self._sessions[camera].at_ns // 1000 + _NOMINAL_INTERVAL_US
        for outcome in self.offer(camera, frame, self.clock(), pts_us=pts_us, lossless=True):
            if isinstance(outcome, Held):
                return self.held_feature(outcome)
        job, _ = self.next_job(camera=camera)
        if job is None:
            raise EncoderError(f"camera {camera!r}: another frame of it is being encoded; finish that job first")
        run(job)
        return job.result()


def _gate_config(gate: GateConfig | QualityLevel | None) -> GateConfig | None:
    if gate is None or isinstance(gate, GateConfig):
        return gate
    if gate not in QUALITY_TARGETS:
        raise OptionError(f"gate: expected one of {', '.join(QUALITY_TARGETS)}, a GateConfig or None, got {gate!r}")
    return GateConfig(target_fvu=QUALITY_TARGETS[gate])


def _rungs(frame_encoder: FrameEncoder, rungs: Sequence[int] | None) -> list[int]:
    """The sizes to choose from, largest first. Raises OptionError for one that the model does not take."""
    own = frame_encoder.descriptor.input.size_hw[0]
    if rungs is None:
        return [own]
    known = frame_encoder.sizes_px if isinstance(frame_encoder, ScalableFrameEncoder) else (own,)
    if not rungs or rungs[0] != own or sorted(set(rungs), reverse=True) != list(rungs) or not set(rungs) <= set(known):
        raise OptionError(
            f"rungs: expected some of {list(known)}, largest first, beginning with {own}, got {list(rungs)}"
        )
    if isinstance(frame_encoder, ScalableFrameEncoder):
        frame_encoder.prepare(rungs)
    return list(rungs)


def _timestamps(timestamps_us: Sequence[int] | None, count: int) -> Sequence[int | None]:
    if timestamps_us is None:
        return [None] * count
    if len(timestamps_us) != count:
        raise InputError(f"timestamps_us: expected one for each of {count} frames, got {len(timestamps_us)}")
    if any(later <= earlier for earlier, later in pairwise(timestamps_us)):
        raise InputError(f"timestamps_us: expected increasing microseconds, got {list(timestamps_us)}")
    return timestamps_us
