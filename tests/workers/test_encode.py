import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders_core.preprocessing import InputSpec
from encoders_core.realtime.frame_encoder import DenseState, EncoderDescriptor, Plan
from encoders_core.realtime.frame_gate import GateCalibration
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder
from streaming.config import load_text
from streaming.frames import CaptureTime, Frame, Since
from streaming.records import FeatureRecord
from streaming.transport import Event, FrameArrived, Readable
from workers import encode
from workers.control import Assignment, Stop

SIZE = 32
COMMANDS_FD = 99


class FakeModel:
    """Two blocks a frame."""

    calibration = GateCalibration(variance=1.0, gain=1.0)
    descriptor = EncoderDescriptor(
        "fake", "fake", "0" * 16, dim=3, trained=True, pooling="mean", input=InputSpec((SIZE, SIZE))
    )

    buckets = (1,)

    def new_state(self) -> DenseState:
        return DenseState()

    def set_fidelity(self, state: DenseState, scale: float) -> None:
        pass

    def plan(self, state: DenseState, frame: NDArray[np.uint8], change: Any = None) -> Plan:  # noqa: ARG002
        return Plan(state, frame, 1, 1, change=1.0, cut=False, cold=not state.warm)

    def encode(self, plans: Sequence[Plan]) -> Generator[None, None, NDArray[np.float32]]:
        yield
        return np.stack([plan.frame.mean(axis=(0, 1)) for plan in plans]).astype(np.float32)


@dataclass
class FakeEnds:
    """The sockets of the worker: the first look brings `first`, and the first wait after it an order to stop."""

    first: list[Event]
    features: list[str] = field(default_factory=list)
    acked: list[tuple[str, int]] = field(default_factory=list)
    waited_with: list[list[str]] = field(default_factory=list)
    """At each wait: the cameras whose vectors had been sent by then."""
    looked_after: list[int] = field(default_factory=list)
    """At each look without waiting: how many vectors had been sent."""
    bad_messages = 0
    fd, closed = COMMANDS_FD, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def watch(self, _descriptor: int) -> None:
        pass

    def ack(self, camera: str, up_to_seq: int, _pace_us: int = 0) -> None:
        self.acked.append((camera, up_to_seq))

    def poll(self, timeout_ms: float) -> list[Event]:
        if self.first:
            events, self.first = self.first, []
            return events
        if timeout_ms == 0:
            self.looked_after.append(len(self.features))
            return []
        self.waited_with.append(list(self.features))
        return [Readable(COMMANDS_FD)]

    def read_available(self) -> list[Stop]:
        return [Stop(grace_s=1.0)]

    def send(self, message: Any) -> bool:
        if isinstance(message, FeatureRecord):
            self.features.append(message.camera)
        return True


def frame(camera: str) -> FrameArrived:
    pixels, now_ns = np.full((SIZE, SIZE, 3), 100, np.uint8), time.monotonic_ns()
    return FrameArrived(
        Frame(camera, 0, pixels, 0, CaptureTime(0, "arrival", 0), now_ns, 0, 0, 0, Since()), "capture-0", 0
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], FakeEnds]:
    def run(cameras: list[str]) -> FakeEnds:
        ends = FakeEnds([frame(camera) for camera in cameras])
        model = RealtimeVideoEncoder(FakeModel(), budget_ms=5000, gate=None)
        monkeypatch.setattr(encode, "build_encoder", lambda _config: model)
        monkeypatch.setattr(encode, "EncoderInbox", lambda *_, **__: ends)
        monkeypatch.setattr(encode, "RecordSender", lambda *_, **__: ends)
        lines = "".join(f"\n  {camera}: {{url: 'scene:street', budget_ms: 5000}}" for camera in cameras)
        config = load_text(f"cameras:{lines}")
        assignment = Assignment(
            *("encode", "encode-0", config.to_json(), "s", tuple(cameras), {}, "ipc:///a", "ipc:///b", "")
        )
        encode.run_encode(assignment, config, ends, SimpleNamespace(send=lambda _status: None))  # type: ignore[arg-type]
        return ends

    return run


def test_encoder_does_not_wait_while_frames_of_other_cameras_are_there(run: Callable[[list[str]], FakeEnds]) -> None:
    ends = run(["a", "b", "c"])
    assert sorted(ends.waited_with[0]) == ["a", "b", "c"]
    assert sorted(ends.acked) == [("a", 0), ("b", 0), ("c", 0)]


def test_encoder_waits_when_there_is_nothing_to_do(run: Callable[[list[str]], FakeEnds]) -> None:
    assert run(["a"]).waited_with == [["a"]]


def test_encoder_looks_for_newer_frames_after_each_pass(run: Callable[[list[str]], FakeEnds]) -> None:
    assert {1, 2} <= set(run(["a", "b", "c"]).looked_after)
