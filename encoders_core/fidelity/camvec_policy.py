"""What ships, as one of the policies: `RealtimeVideoEncoder.encode_stream`, one frame at a time so that each can be timed."""

import numpy as np

from encoders_core.config import GateConfig
from encoders_core.fidelity.frame_policies import plain_cost
from encoders_core.fidelity.policy import Frame, Step
from encoders_core.fidelity.subject import Subject
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder


class Camvec:
    """The realtime encoder with its own gate at `target_fvu`: its scheduler and its results are in the time too."""

    name = "camvec"

    def __init__(self, subject: Subject, target_fvu: float) -> None:
        self._encoder, self._gate = subject.encoder, GateConfig(target_fvu=target_fvu)
        self.reset()

    def reset(self) -> None:
        """Forget the camera."""
        self._realtime = RealtimeVideoEncoder(self._encoder, gate=self._gate)

    def step(self, frame: Frame, at_ns: int) -> Step:
        """One frame through the realtime encoder."""
        result = self._realtime.encode_stream([frame], timestamps_us=[at_ns // 1000])
        quality = result.quality[0]
        rows, macs = plain_cost(self._encoder)
        share = quality.tokens_updated / quality.tokens_total if quality.tokens_total else 0.0
        return Step(
            np.asarray(result.features[0] * result.norms[0], np.float32),
            round(rows * share),
            rows,
            macs * share,
            macs,
            encoded=not quality.held,
            full=share == 1.0,
        )
