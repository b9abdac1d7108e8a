"""What the transport tests share: frames with a pattern, an account of what arrived, an encoder in a thread or process."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from streaming.frames import CaptureTime, Frame, FrameSpec, Since
from streaming.records import FeatureRecord, ModelDescriptor, Quality, Stages
from streaming.transport import EncoderInbox, Event, FrameArrived, Readable, RecordSender
from streaming.wire import Tail, ToPublisher

Kind = TypeVar("Kind")
SMALL = FrameSpec((16, 16))
DESCRIPTOR = ModelDescriptor("model", "f", "test", 1, False, SMALL, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "none")
PATIENCE_S = 20
REPOSITORY = Path(__file__).parents[2]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - looks into a thread that has no asyncio events
            await asyncio.sleep(0.01)


def pattern(seq: int, size_hw: tuple[int, int] = SMALL.size_hw) -> NDArray[np.uint8]:
    """Every byte depends on the frame's number and on its own place: half of one frame in another would show."""
    count = size_hw[0] * size_hw[1] * 3
    return ((np.arange(count, dtype=np.uint32) * 7 + seq * 31) % 251).astype(np.uint8).reshape(*size_hw, 3)


def frame(camera: str, seq: int, pixels: NDArray[np.uint8] | None = None, since: Since | None = None) -> Frame:
    """A frame that arrived just now."""
    pixels = pattern(seq) if pixels is None else pixels
    now_ns = time.monotonic_ns()
    return Frame(camera, seq, pixels, seq * 40_000, CaptureTime(seq, "arrival", 0), now_ns, 1, 2, 3, since or Since())


class Ledger:
    """Follows the chain of one receiver: what came, what `since` explains, and the holes that nothing explains."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.frames = self.lost = 0
        self.dropped: Counter[str] = Counter()

    def book(self, camera: str, seq: int, since: Since, *, is_frame: bool) -> None:
        """One message about frames up to and including `seq`."""
        gap = seq - self.last.get(camera, -1)
        assert gap > 0 or (gap == 0 and not is_frame), f"{camera}: {seq} after {self.last[camera]}"
        self.last[camera] = seq
        self.frames += is_frame
        self.dropped.update(since.dropped)
        self.lost += gap - is_frame - since.frames
        assert gap >= is_frame + since.frames, f"{camera}: {seq} explains more than there was"

    def book_record(self, record: ToPublisher) -> None:
        """A record as the publisher gets it."""
        if isinstance(record, FeatureRecord):
            self.book(record.camera, record.frame_seq, record.since, is_frame=True)
        elif isinstance(record, Tail):
            self.book(record.camera, record.up_to_seq, record.since, is_frame=False)


def record_of(arrived: Frame) -> FeatureRecord:
    """The smallest record of an encoded frame; its vector tells whether the pixels were whole."""
    whole = bool((arrived.pixels == pattern(arrived.frame_seq, arrived.pixels.shape[:2])).all())
    return FeatureRecord(
        camera=arrived.camera,
        frame_seq=arrived.frame_seq,
        since=arrived.since,
        model_id="m",
        model="f",
        dim=1,
        vector=np.float32(whole).tobytes(),
        norm=1.0,
        pts_us=arrived.pts_us,
        captured_at_us=arrived.captured.at_us,
        clock=arrived.captured.clock,
        captured_error_us=0,
        arrived_ns=arrived.arrived_ns,
        deadline_ns=arrived.arrived_ns,
        stages=Stages(),
        quality=Quality(16, 1, 1, False, 0.0),
    )


class EncoderThread:
    """An EncoderInbox in a thread of its own, as in an encoder process; `on_event` decides what to acknowledge."""

    def __init__(
        self,
        endpoint: str,
        on_event: Callable[[EncoderInbox, Event], None] | None = None,
        spec: FrameSpec = SMALL,
        **options: Any,
    ) -> None:
        self.inbox = EncoderInbox(endpoint, spec, "model", **options)
        self.events: list[Event] = []
        self._on_event = on_event or acknowledge
        self._stop, self._bound = threading.Event(), threading.Event()
        self._paused = threading.Event()
        self._thread = threading.Thread(target=self._run, name="encoder")
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._bound.wait(5)
        if self.failure:
            raise self.failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5)
        if self.failure and exc is None:
            raise self.failure

    def pause(self) -> None:
        """Stop polling: a frozen encoder."""
        self._paused.set()

    def resume(self) -> None:
        """Go on."""
        self._paused.clear()

    def of(self, kind: type[Kind]) -> list[Kind]:
        """The events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def _run(self) -> None:
        try:
            with self.inbox as inbox:
                self._bound.set()
                while not self._stop.is_set():
                    if self._paused.is_set():
                        time.sleep(0.01)
                        continue
                    for event in inbox.poll(20):
                        self.events.append(event)
                        self._on_event(inbox, event)
        except BaseException as exc:  # noqa: BLE001 - raised again where the thread is joined
            self.failure = exc
        finally:
            self._bound.set()


def acknowledge(inbox: EncoderInbox, event: Event) -> None:
    """The fastest encoder: done at once."""
    if isinstance(event, FrameArrived):
        inbox.ack(event.frame.camera, event.frame.frame_seq)


def encoder_process(endpoint: str, records: str) -> "subprocess.Popen[str]":
    """An encoder that turns each frame into a record and stops when its stdin is closed; says one line when bound."""
    command = [sys.executable, "-m", "tests.streaming.transport_gear", "encoder", endpoint, records]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "bound\n"
    return process


def run_encoder(endpoint: str, records: str) -> None:
    """The body of `encoder_process`."""
    pending: dict[str, Since] = {}
    refused = 0
    with EncoderInbox(endpoint, SMALL, "model") as inbox, RecordSender(records, f"encoder-{os.getpid()}") as sender:
        inbox.watch(sys.stdin.fileno())
        while not sender.send(DESCRIPTOR):  # as an encoder does first of all
            time.sleep(0.001)
        print("bound", flush=True)
        while True:
            events = inbox.poll(100)
            for event in events:
                if isinstance(event, FrameArrived | Tail):
                    refused += not forward(sender, event, pending)
                if isinstance(event, FrameArrived):
                    inbox.ack(event.frame.camera, event.frame.frame_seq)
            if any(isinstance(event, Readable) for event in events):
                break
        print(json.dumps({"bad": inbox.bad_messages, "stale": inbox.stale_frames, "refused": refused}), flush=True)


def forward(sender: RecordSender, event: FrameArrived | Tail, pending: dict[str, Since]) -> bool:
    """Send what arrived on as a record; what the publisher does not take is added to the next."""
    if isinstance(event, Tail):
        kept = pending.pop(event.camera, Since()).add(event.since)
        if sender.send(Tail(event.camera, event.up_to_seq, kept)):
            return True
        pending[event.camera] = kept
        return False
    record = record_of(event.frame)
    record.since = pending.pop(record.camera, Since()).add(record.since)
    if sender.send(record):
        return True
    record.since.drop("publisher_behind")
    pending[record.camera] = record.since
    return False


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("role", choices=["encoder"])
    arguments.add_argument("endpoint")
    arguments.add_argument("records")
    chosen = arguments.parse_args()
    run_encoder(chosen.endpoint, chosen.records)
