"""The encoder worker: a plain loop that polls its inbox between the blocks of a job. One thread, one model, no asyncio."""

import time
from contextlib import ExitStack
from dataclasses import dataclass

from encoders_core.errors import EncoderError
from encoders_core.hardware_threads import configure_threads
from encoders_core.realtime.jobs import Dropped, Held
from encoders_core.realtime.realtime_job import Arrival, RealtimeJob
from streaming.config import Config
from streaming.errors import ConfigError
from streaming.frames import Frame
from streaming.logs import get_logger
from streaming.records import Stages, StateRecord, WorkerStats
from streaming.transport import (
    CamerasChanged,
    EncoderInbox,
    Event,
    FrameArrived,
    Readable,
    RecordSender,
    WorkerStarted,
    WorkerVanished,
)
from streaming.wire import Tail
from workers.camera_records import CameraRecords
from workers.control import Assignment, CommandReader, Status, StatusWriter, Stop
from workers.encoding import (
    build_encoder,
    describe,
    describe_temporal,
    fidelity_record,
    frame_spec_of,
    over_budget,
    temporal_config,
)
from workers.endpoints import shared_context
from workers.health import Health
from workers.keys import server_keys

_log = get_logger("encode")
BEAT_NS = 1_000_000_000
STATS_EVERY = 5
IDLE_MS = 200.0
LOOK_EVERY_NS = 4_000_000
"""While something runs that gives way: a look at the inbox between each two blocks would cost more than it gains."""
LOOK_IN_PASS_NS = 20_000_000
"""While a warm pass runs, which gives way to nothing: so that credits go back, and a stop is heard."""
_STOP_SHARE = 0.7
"""Of the grace of a stop: for the jobs in hand; the rest is for the records on their way."""


@dataclass(slots=True)
class Arrived:
    """A frame with the time at which this process had it."""

    frame: Frame
    received_ns: int


class EncodeWorker:
    """Owns a model and the caches of its cameras. A crash loses these: the cameras come back and start cold."""

    def __init__(self, assignment: Assignment, config: Config, commands: CommandReader, status: StatusWriter) -> None:
        configure_threads()
        self._assignment, self._config = assignment, config
        self._commands, self._status = commands, status
        self._encoder = build_encoder(config)
        self._model = describe(self._encoder.frame_encoder.descriptor, full_ms=self._encoder.warm_up())
        head = temporal_config(config)
        self._models = [self._model, *([describe_temporal(self._model, head)] if head else [])]
        self._health = Health(assignment.worker)
        self._cameras: dict[str, CameraRecords] = {}
        self._warm: RealtimeJob | None = None
        self._cold: RealtimeJob | None = None
        self._stop_at_ns: int | None = None
        self._busy = False
        self._looked_ns = 0
        self._beat_at_ns = 0
        self._beats = 0
        self._done = 0
        self._encode_cpu_ns = self._audit_cpu_ns = 0
        self._broken: set[str] = set()
        """Cameras whose gates the audits have switched off."""

    def run(self) -> None:
        """Until the supervisor says stop or is gone; what is in hand is finished first."""
        assignment = self._assignment
        spec = frame_spec_of(self._encoder.frame_encoder.descriptor.input)
        with ExitStack() as stack:
            self._sender = stack.enter_context(
                RecordSender(assignment.publisher, assignment.worker, context=shared_context(assignment.publisher))
            )
            self._inbox = stack.enter_context(
                EncoderInbox(
                    assignment.listen,
                    spec,
                    self._model.model_id,
                    keys=server_keys(self._config, assignment.listen),
                    context=shared_context(assignment.listen),
                )
            )
            self._inbox.watch(self._commands.fd)
            self._start()
            while self._turn():
                pass
            for records in self._cameras.values():
                records.flush(end=True)

    def _start(self) -> None:
        for camera in self._assignment.cameras:
            self._add_camera(camera)
        budgets = [self._config.camera(camera).budget_ms for camera in self._assignment.cameras]
        warning = over_budget(self._model.full_pass_ms, min(budgets, default=self._config.encoder.budget_ms))
        if warning:
            _log.warning(warning, model=self._model.model_id)
        _log.info("encoder is up", model=self._model.model_id, full_pass_ms=self._model.full_pass_ms)
        self._status.send(Status("ready"))

    # ---- the loop

    def _turn(self) -> bool:
        """A look at the inbox if it is time for one, some work. False when stopped and nothing is left to do."""
        wait_ns = LOOK_EVERY_NS if self._warm is None else LOOK_IN_PASS_NS
        if not self._busy or time.monotonic_ns() >= self._looked_ns + wait_ns:
            for event in self._inbox.poll(0 if self._busy else IDLE_MS):
                self._on_event(event)
            self._looked_ns = time.monotonic_ns()
        self._busy = self._work()
        now_ns = time.monotonic_ns()
        if now_ns >= self._beat_at_ns:
            self._beat(now_ns)
        return self._stop_at_ns is None or (self._busy and now_ns < self._stop_at_ns)

    def _work(self) -> bool:
        """The most urgent job until the next look, a block of one that gives way, else one of an audit.

        False when nothing is left to do until something comes.
        """
        if self._warm is None:
            job, late = self._encoder.next_job(packed=True)
            for outcome in late:
                self._settle(outcome)
            if job is not None and job.gives_way:
                self._cold = job
            else:
                self._warm = job
        job = self._warm or self._cold
        stopping = self._stop_at_ns is not None
        if job is None or not (stopping or self._encoder.may_step(job)):
            return not stopping and self._audit()
        started_ns = time.thread_time_ns()
        done = job.step()
        while not done and job is self._warm and time.monotonic_ns() < self._looked_ns + LOOK_IN_PASS_NS:
            done = job.step()
        self._encode_cpu_ns += time.thread_time_ns() - started_ns
        if not done:
            return True
        if job is self._warm:
            self._warm = None
        else:
            self._cold = None
        for one in (job, *job.companions):
            self._finish(one)
        self._looked_ns = 0  # what came meanwhile may be newer than what waits
        return stopping or self._cold is not None or not self._encoder.idle

    def _audit(self) -> bool:
        started_ns = time.thread_time_ns()
        stepped = self._encoder.audit_step(in_slack=True)
        if stepped:
            self._audit_cpu_ns += time.thread_time_ns() - started_ns
        return stepped

    def _finish(self, job: RealtimeJob) -> None:
        arrived: Arrived = job.tag
        frame, records = arrived.frame, self._cameras.get(job.camera)
        if frame.lossless:
            self._inbox.ack(job.camera, frame.frame_seq)
        try:
            feature = job.result()
        except EncoderError as error:
            _log.error("a frame could not be encoded", camera=job.camera, error=str(error))
            if records:
                records.dropped(frame, "failed")
            return
        self._done += 1
        now_ns = time.monotonic_ns()
        stages = self._stages(arrived, job.started_ns, now_ns)
        if records and not records.encoded(frame, feature, self._model, stages, job.deadline_ns):
            self._health.count("records_unsent")

    def _stages(self, arrived: Arrived, started_ns: int, now_ns: int) -> Stages:
        """Where the time since arrival went: the stages add up to it."""
        frame = arrived.frame
        before_us = frame.decode_us + frame.convert_us + frame.wait_us
        stages = Stages(
            decode_us=frame.decode_us,
            convert_us=frame.convert_us,
            wait_us=frame.wait_us,
            transfer_us=max(0, (arrived.received_ns - frame.arrived_ns) // 1000 - before_us),
            queue_us=max(0, (started_ns - arrived.received_ns) // 1000),
            encode_us=max(0, (now_ns - started_ns) // 1000),
        )
        self._health.time("transfer", stages.transfer_us)
        self._health.time("queue", stages.queue_us)
        self._health.time("encode", stages.encode_us)
        return stages

    # ---- what comes in

    def _on_event(self, event: Event) -> None:
        match event:
            case FrameArrived():
                self._on_frame(event.frame)
            case Tail():
                self._records(event.camera).passed_over(event)
            case StateRecord() | WorkerStats():
                self._sender.send(event)  # repeated every second or so: one that is lost is no loss
            case Readable():
                self._on_commands()
            case WorkerStarted():
                _log.info("capture worker connected", capture=event.worker, cameras=event.cameras)
            case WorkerVanished():
                say = _log.info if event.why == "bye" else _log.warning
                say("capture worker is gone", capture=event.worker, why=event.why)
            case CamerasChanged():
                _log.info("cameras changed", capture=event.worker, added=event.added, removed=event.removed)

    def _on_frame(self, frame: Frame) -> None:
        records = self._records(frame.camera)
        records.arrived(frame)
        started_ns = time.thread_time_ns()
        outcomes = self._encoder.offer(
            frame.camera,
            frame.pixels,
            frame.arrived_ns,
            pts_us=frame.pts_us,
            lossless=frame.lossless,
            reset=frame.reset,
            tag=Arrived(frame, time.monotonic_ns()),
        )
        self._health.spend("gate", time.thread_time_ns() - started_ns)
        for outcome in outcomes:
            self._settle(outcome)
        if not frame.lossless:
            # Back at once: the slot here keeps the newest, and the pace keeps out what could not be used.
            self._inbox.ack(frame.camera, frame.frame_seq, self._encoder.pace_us(frame.camera))

    def _settle(self, outcome: Held[Arrival] | Dropped[Arrival]) -> None:
        arrival = outcome.frame
        frame: Frame = arrival.tag.frame
        records = self._cameras[outcome.camera]
        if isinstance(outcome, Held):
            records.held(frame, arrival.decision.change.share)
        else:
            records.dropped(frame, outcome.cause)
        if frame.lossless:
            self._inbox.ack(frame.camera, frame.frame_seq)

    def _on_commands(self) -> None:
        for command in self._commands.read_available():
            if isinstance(command, Stop):
                self._stop(command.grace_s)
            else:
                self._follow(command)
        if self._commands.closed:
            self._inbox.unwatch(self._commands.fd)
            self._stop(1.0)

    def _stop(self, grace_s: float) -> None:
        self._stop_at_ns = time.monotonic_ns() + int(grace_s * _STOP_SHARE * 1e9)

    # ---- cameras

    def _follow(self, assignment: Assignment) -> None:
        before, self._config = self._config, Config.from_json(assignment.config)
        self._assignment = assignment
        for camera in list(self._cameras):
            old, new = before.camera(camera), self._config.camera(camera)
            if camera not in assignment.cameras or (old.budget_ms, old.priority) != (new.budget_ms, new.priority):
                self._remove_camera(camera)
        for camera in assignment.cameras:
            self._records(camera)

    def _records(self, camera: str) -> CameraRecords:
        return self._cameras.get(camera) or self._add_camera(camera)

    def _add_camera(self, camera: str) -> CameraRecords:
        settings = self._config.camera(camera)
        self._encoder.add_camera(camera, budget_ms=settings.budget_ms, priority=settings.priority)
        records = CameraRecords(camera, self._sender, heartbeat_s=self._config.mqtt.heartbeat_s)
        self._cameras[camera] = records
        return records

    def _remove_camera(self, camera: str) -> None:
        for outcome in self._encoder.remove_camera(camera):
            self._settle(outcome)
        self._cameras.pop(camera).flush(end=True)
        self._broken.discard(camera)

    # ---- once a second

    def _beat(self, now_ns: int) -> None:
        self._beat_at_ns = now_ns + BEAT_NS
        self._beats += 1
        for records in self._cameras.values():
            records.flush()
        self._status.send(Status("alive", progress=self._done))
        self._tell_fidelity(every=False)
        if self._beats % STATS_EVERY == 1:
            for model in self._models:
                self._sender.send(model)
            self._health.counters |= {
                "bad_messages": self._inbox.bad_messages,
                "encoded": self._done,
                "encode_cpu_us": self._encode_cpu_ns // 1000,
                "audit_cpu_us": self._audit_cpu_ns // 1000,
            }
            for camera, found in self._encoder.statistics().items():
                if found.estimated_fvu is not None:
                    self._health.counters[f"estimated_fvu_ppm.{camera}"] = round(found.estimated_fvu * 1e6)
                self._health.counters[f"capped.{camera}"] = found.counts.capped
            self._tell_fidelity(every=True)
            self._sender.send(self._health.snapshot())

    def _tell_fidelity(self, *, every: bool) -> None:
        """How good the vectors are, of every camera or of those whose gates have been switched off."""
        for camera, found in self._encoder.statistics().items():
            if found.fidelity is None:
                continue
            broken = found.fidelity.gates == "off" and camera not in self._broken
            if broken:
                self._broken.add(camera)
                _log.error(
                    "vectors are far from full passes: every frame gets one from now on",
                    camera=camera,
                    fvu=found.fidelity.fvu,
                )
            if every or broken:
                self._sender.send(fidelity_record(camera, found.fidelity))


def run_encode(assignment: Assignment, config: Config, commands: CommandReader, status: StatusWriter) -> None:
    """The encode role: blocks until it is told to stop. Raises ConfigError when the model cannot be had."""
    try:
        worker = EncodeWorker(assignment, config, commands, status)
    except EncoderError as error:
        raise ConfigError(f"model: {error}") from error
    worker.run()
