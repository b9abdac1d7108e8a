"""What the realtime encoder remembers of one camera, and nothing of any other."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders_core.config import GateConfig
from encoders_core.realtime.change import Change
from encoders_core.realtime.frame_encoder import FrameEncoder, Plan
from encoders_core.realtime.frame_gate import Decision, FrameGate
from encoders_core.realtime.intake import shrink_frame
from encoders_core.realtime.temporal import TemporalState, TemporalStepper

_EVERY_FRAME = Change(score=0.0, share=1.0, cut=False, light=False)


@dataclass(frozen=True, slots=True)
class Output:
    """The vectors that stand for a camera now: un-normalised features, and the temporal head's output for them."""

    features: NDArray[np.float32]
    temporal: NDArray[np.float32] | None


class Session:
    """From a camera's first frame, or its last reset, to the next: gate, encoder state, temporal state, last output."""

    def __init__(self, encoder: FrameEncoder, gate: GateConfig | None, temporal: TemporalStepper | None) -> None:
        self._encoder = encoder
        self._state: Any = encoder.new_state()
        self._gate = FrameGate(gate, encoder.calibration) if gate else None
        self._stepper = temporal
        self._temporal: TemporalState | None = temporal.new_state() if temporal else None
        self._repeats = 0
        self._begun = self._encoding = False
        self.output: Output | None = None
        self.at_ns = 0
        """Stream time of the last frame."""
        self.rung = self._own_rung = encoder.descriptor.input.size_hw[0]
        """Size of the picture that was encoded last, pixels."""
        self.tokens_total = 0
        """The model's units of work for a frame."""

    def copy(self) -> "Session":
        """One that goes on from the same point without touching this one; weights are shared."""
        twin = copy.copy(self)
        memory = (self._state, self._gate, self._temporal)
        twin._state, twin._gate, twin._temporal = copy.deepcopy(memory)  # noqa: SLF001  our own, one object over
        return twin

    @property
    def estimated_fvu(self) -> float:
        """What holding frames has cost, as the gate's audits suggest; 0 without a gate."""
        return self._gate.estimated_fvu if self._gate else 0.0

    def decide(self, frame: NDArray[np.uint8], at_ns: int) -> Decision:
        """Encode or hold this frame."""
        self.at_ns = at_ns
        if self._gate is None:
            return Decision("change" if self._begun else "cold", _EVERY_FRAME, 1.0)
        return self._gate.decide(frame, at_ns)

    def begin(self, frame: NDArray[np.uint8], at_ns: int, decision: Decision, rung: int | None = None) -> Plan:
        """The encoding of `frame` starts, made smaller to `rung` pixels if that is named: what it will do."""
        if self._gate:
            self._gate.begin(frame, at_ns, decision)
        self._begun = self._encoding = True
        self.rung = self._own_rung if rung is None else rung
        if self.rung != self._own_rung:
            frame = shrink_frame(frame, self.rung)
        plan = self._encoder.plan(self._state, frame, decision.change)
        self.tokens_total = plan.rows_total
        return plan

    def complete(self, features: NDArray[np.float32]) -> Output:
        """(D,) float32 of the frame of the last `begin`: takes a step of the temporal head, and learns."""
        if self._gate:
            self._gate.learn(features)
        self._encoding = False
        self.output = Output(features, self._step(features))
        repeats, self._repeats = self._repeats, 0
        for _ in range(repeats):
            self._repeat()
        return self.output

    def hold(self) -> None:
        """A frame was held: a step of the temporal head when held frames count as repeats.

        While an encoding runs, the frame that is being encoded is what stands for it, so the step waits for that.
        """
        if self._stepper is None or self._stepper.head.config.skipped == "hold":
            return
        if self._encoding:
            self._repeats += 1
        else:
            self._repeat()

    def _repeat(self) -> None:
        if self.output is not None:
            self.output = Output(self.output.features, self._step(self.output.features))

    def _step(self, features: NDArray[np.float32]) -> NDArray[np.float32] | None:
        if self._stepper is None or self._temporal is None:
            return None
        output: NDArray[np.float32] = self._stepper.step(self._temporal, torch.from_numpy(features)[None])[0].numpy()
        return output
