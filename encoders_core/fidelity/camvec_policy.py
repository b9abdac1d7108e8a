"""What ships, as one of the policies: `RealtimeVideoEncoder.encode_stream`, one frame at a time so that each can be timed."""

from typing import Final

import numpy as np

from encoders_core.config import GateConfig
from encoders_core.fidelity.frame_policies import encoded, held
from encoders_core.fidelity.policy import Frame, Step
from encoders_core.fidelity.subject import Subject
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder
from encoders_core.realtime.vit_frame_encoder import VitFrameEncoder, VitState


class Camvec:
    """The realtime encoder with its own gates at `target_fvu`: its scheduler and its results are in the time too.

    Without audits: its limits are as shipped, nothing has steered them towards the target.
    """

    name = "camvec"

    def __init__(self, subject: Subject, target_fvu: float) -> None:
        self._subject, self._gate = subject, GateConfig(target_fvu=target_fvu)
        self.reset()

    def reset(self) -> None:
        """Forget the camera."""
        self._realtime = RealtimeVideoEncoder(self._subject.shipped, gate=self._gate)

    def step(self, frame: Frame, at_ns: int) -> Step:
        """One frame through the realtime encoder."""
        result = self._realtime.encode_stream([frame], timestamps_us=[at_ns // 1000], camera=_CAMERA)
        quality = result.quality[0]
        features = np.asarray(result.features[0] * result.norms[0], np.float32)
        state, vit = self._vit_state(), self._subject.vit
        if state is not None and vit is not None:
            embedded, state.embedded = state.embedded, 0
            if quality.held:
                return vit.cost.held(features, embedded=embedded)
            rows = np.asarray(state.counts) if state.counts else vit.cost.plain_rows
            return vit.cost.step(features, rows, embedded=embedded)
        if quality.held:
            return held(self._subject.encoder, features)
        return encoded(self._subject.encoder, features, share=quality.tokens_updated / quality.tokens_total)

    def _vit_state(self) -> VitState | None:
        """What is known of the last frame's rows, of a model that counts them."""
        if not isinstance(self._subject.shipped, VitFrameEncoder):
            return None
        state: VitState = self._realtime._sessions[_CAMERA]._state  # noqa: SLF001  what nobody else needs to know
        return state


_CAMERA: Final = "bench"
