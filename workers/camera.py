"""One camera of a capture worker: its reader, and the loop that sends its newest picture when the encoder has a credit."""

import asyncio
import threading
import time
from dataclasses import replace

from streaming.board import Row
from streaming.config import CameraConfig
from streaming.errors import StreamingError
from streaming.frames import DropCause, Frame, FrameSpec, Since
from streaming.logs import get_logger
from streaming.records import StateRecord
from streaming.sources import open_source
from streaming.sources.ahead import ConvertedAhead, converted
from streaming.sources.base import Converted
from streaming.sources.reader import CameraReader, Taken
from streaming.transport import CaptureLink
from streaming.wire import Tail
from workers.health import Health

_log = get_logger("capture")


class CameraCapture:
    """Reads and sends one camera. What is not sent is counted by cause and told with the next frame.

    A picture that can go at once is sent by the reader's thread that decoded it: the event loop sleeps on. One that must
    wait for a credit, for its pace or for an encoder stays in the slot, and the loop sees to it. `_turn` is held by
    whichever of the two is sending; what belongs to the account of what was sent is touched by that one alone.
    """

    def __init__(
        self, camera: str, settings: CameraConfig, link: CaptureLink, row: Row, health: Health, *, max_pixels: int
    ) -> None:
        self.camera = camera
        self.finished = False
        self._link = link
        self._row = row
        self._health = health
        self._interval_ns = int(1e9 / settings.max_fps) if settings.max_fps else 0
        self._not_before_ns = 0
        self._carried = Since()
        self._reset = False
        """The first frame after an open could not be sent: the next one has to say that caches start anew."""
        self._last_seq = row.captured - 1
        self._told: StateRecord | None = None
        self._sending, self._turn = asyncio.Lock(), threading.Lock()
        self._stopped = False
        self.reader = CameraReader(
            camera,
            replace(settings.source(), max_pixels=max_pixels),
            first_seq=row.captured,
            on_state=self._on_state,
            on_count=self._count,
            supersede_cause=self._cause,
            open_source=lambda config, clock: ConvertedAhead(open_source(config, clock), self._wanted, health.spend),
        )
        self.reader.slot.forward = self._send_at_once

    @property
    def captured(self) -> int:
        """Frames that have been numbered so far."""
        return self._row.captured

    def _count(self, captured: int) -> None:
        self._row.captured = captured

    def _cause(self) -> DropCause:
        """Why a picture that is being overtaken in the slot was not sent."""
        blocked = self._link.blocked(self.camera)
        if blocked in (None, "superseded") and time.monotonic_ns() < self._not_before_ns:
            return "paced"
        return blocked or "superseded"

    def _wanted(self) -> FrameSpec | None:
        """What to convert a picture to that could go now; from any thread."""
        try:
            blocked = self._link.blocked(self.camera)
        except KeyError:  # the camera has just been removed
            return None
        return self._link.spec if blocked is None and time.monotonic_ns() >= self._not_before_ns else None

    async def run(self) -> None:
        """Until cancelled, or until a file has ended and its last frame has been sent."""
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(self._send_all(), name=f"send {self.camera}")
            await self.reader.run()
            await self.reader.slot.emptied()
            async with self._sending:
                sending.cancel()
        self.finished = True

    async def _send_all(self) -> None:
        while True:
            await self.reader.slot.filled()
            await self._link.credit(self.camera)
            if (early_ns := self._not_before_ns - time.monotonic_ns()) > 0:
                await asyncio.sleep(early_ns / 1e9)
            async with self._sending:
                await asyncio.to_thread(self._send_newest)

    def _send_newest(self) -> None:
        with self._turn:
            self._send_if_possible()

    def _send_at_once(self) -> bool:
        """From the reader's thread: whether what has just come needs no waiting for, and has been sent."""
        if not self._turn.acquire(blocking=False):
            return False
        try:
            return self._send_if_possible()
        finally:
            self._turn.release()

    def _send_if_possible(self) -> bool:
        spec = None if self._stopped else self._wanted()
        if spec is None:
            return False
        taken = self.reader.slot.take()
        if taken is not None:
            self._send(taken, spec)
        return True

    def _send(self, taken: Taken, spec: FrameSpec) -> None:
        cause: DropCause | None = "stopped"
        try:
            if taken.info.lossless and taken.picture.reset:
                self._link.add_camera(self.camera, lossless=True)
            ahead = taken.picture.converted
            if ahead is None or ahead.spec != spec:
                ahead = converted(taken.picture, spec, taken.info.strip_px)
            frame = self._frame(taken, ahead)
            cause = self._link.send_frame(frame)
        except (StreamingError, ValueError) as error:
            cause = "corrupt"
            _log.warning("picture cannot be converted", camera=self.camera, error=str(error))
        finally:
            self._settle(taken, cause)
        if cause is None:
            self._remember(frame)

    def _settle(self, taken: Taken, cause: DropCause | None) -> None:
        """Whatever happened to a picture that was taken from the slot, its frame is accounted for."""
        self._last_seq = taken.frame_seq
        if cause is None:
            self._carried, self._reset = Since(), False
        else:
            self._carried.add(taken.since).drop(cause)
            self._reset |= taken.picture.reset

    def _remember(self, frame: Frame) -> None:
        self._not_before_ns = time.monotonic_ns() + self._interval_ns
        self._health.time("decode", frame.decode_us)
        self._health.time("convert", frame.convert_us)
        self._health.count("sent")

    def _frame(self, taken: Taken, ahead: Converted) -> Frame:
        picture = taken.picture
        since_arrival_us = (time.monotonic_ns() - picture.arrived_ns) // 1000
        return Frame(
            camera=self.camera,
            frame_seq=taken.frame_seq,
            pixels=ahead.pixels,
            pts_us=picture.pts_us,
            captured=picture.captured,
            arrived_ns=picture.arrived_ns,
            decode_us=picture.decode_us,
            convert_us=ahead.convert_us,
            wait_us=max(0, since_arrival_us - picture.decode_us - ahead.convert_us),
            since=Since().add(self._carried).add(taken.since),
            reset=picture.reset or self._reset,
            lossless=taken.info.lossless,
        )

    def _on_state(self, state: StateRecord) -> None:
        """A change: for the log, where somebody looks when the broker is down too, and for the publisher."""
        say = _log.warning if state.reason else _log.info
        retry_in_s = state.next_retry_at_us and round(state.next_retry_at_us / 1e6 - time.time(), 1)
        say(
            "camera",
            camera=self.camera,
            state=state.state,
            reason=state.reason,
            detail=state.detail,
            retry_in_s=retry_in_s,
        )
        self.tell(state)

    def tell(self, state: StateRecord) -> None:
        """Hand a change of state on; `beat` repeats what could not be handed on."""
        self._told = state if self._link.send_record(state) else None

    def beat(self) -> None:
        """Once a second: the state, fresh numbers included."""
        self.tell(self.reader.state())

    def stop(self) -> None:
        """After `run` has ended: tell what was numbered and never sent, and the last state."""
        with self._turn:  # a read that is stuck may come back at any time
            self._stopped = True
        end, since = self.reader.tail()
        since = self._carried.add(since)
        if end > self._last_seq or since.frames:
            self._link.send_record(Tail(self.camera, end, since))
        self.tell(self.reader.state())
