"""The records of one camera: what the encoder found out, with the account of all the frames in between."""

import time
from typing import Final

import numpy as np

from encoders_core.realtime.results import StreamFeature
from streaming.frames import DropCause, Frame, Since
from streaming.records import FeatureRecord, HeldRecord, ModelDescriptor, Quality, Stages
from streaming.transport import RecordSender
from streaming.wire import Tail
from workers.chain import Chain

_FLOAT32: Final = np.dtype("<f4")


class CameraRecords:
    """Turns outcomes into records for the publisher; what could not be sent is told by the next record."""

    def __init__(self, camera: str, sender: RecordSender, *, heartbeat_s: float) -> None:
        self.camera = camera
        self._sender = sender
        self._heartbeat_ns = int(heartbeat_s * 1e9)
        self._chain = Chain()
        self._told_ns = 0
        self._held: tuple[Frame, float] | None = None
        self._held_since_us = 0

    def arrived(self, frame: Frame) -> None:
        """A frame to come to terms with."""
        self._chain.open(frame.frame_seq, frame.since)

    def passed_over(self, tail: Tail) -> None:
        """Frames that capture accounts for by itself."""
        self._chain.settle(tail.up_to_seq, tail.since)

    def dropped(self, frame: Frame, cause: DropCause) -> None:
        """This frame will not be encoded."""
        self._chain.settle(frame.frame_seq, Since(dropped={cause: 1}))

    def held(self, frame: Frame, change: float) -> None:
        """The last vector stands for this frame too."""
        if self._held is None:
            self._held_since_us = frame.captured.at_us
        self._held = (frame, change)
        self._chain.settle(frame.frame_seq, Since(held=1))
        if time.monotonic_ns() - self._told_ns >= self._heartbeat_ns:
            self.flush()

    def encoded(
        self, frame: Frame, feature: StreamFeature, model: ModelDescriptor, stages: Stages, deadline_ns: int
    ) -> bool:
        """Send the vector of this frame; False when the publisher is behind."""
        since = self._chain.encoded(frame.frame_seq)
        quality = feature.quality
        record = FeatureRecord(
            camera=self.camera,
            frame_seq=frame.frame_seq,
            since=since,
            model_id=model.model_id,
            model=model.fingerprint,
            dim=model.dim,
            vector=feature.vector.astype(_FLOAT32, copy=False).tobytes(),
            norm=feature.norm,
            pts_us=frame.pts_us,
            captured_at_us=frame.captured.at_us,
            clock=frame.captured.clock,
            captured_error_us=frame.captured.error_us,
            arrived_ns=frame.arrived_ns,
            deadline_ns=deadline_ns,
            stages=stages,
            quality=Quality(quality.rung, quality.tokens_updated, quality.tokens_total, quality.cold, quality.change),
            cut=quality.cut,
            reset=frame.reset,
            lossless=frame.lossless,
            temporal=None if feature.temporal is None else feature.temporal.astype(_FLOAT32, copy=False).tobytes(),
        )
        self._held = None
        if self._sender.send(record):
            self._told_ns = time.monotonic_ns()
            return True
        since.drop("publisher_behind")
        self._chain.unsent(frame.frame_seq, since)
        return False

    def flush(self, *, end: bool = False) -> None:
        """Tell what no record has told of yet, as far as it is settled: a heartbeat when the picture stands still.

        `end`: nothing more will come of this camera. A heartbeat could be carried over to a message that never follows.
        """
        if end:
            self._chain.give_up("stopped")
        up_to_seq = self._chain.settled_up_to()
        if up_to_seq is None:
            return
        since = self._chain.take_settled(up_to_seq)
        if not end and self._held is not None and self._held[0].frame_seq == up_to_seq:
            frame, change = self._held
            record: HeldRecord | Tail = HeldRecord(
                self.camera, up_to_seq, since, self._held_since_us, frame.captured.at_us, change
            )
        else:
            record = Tail(self.camera, up_to_seq, since)
        if self._sender.send(record):
            self._told_ns = time.monotonic_ns()
        else:
            self._chain.unsent(up_to_seq, since)
