"""What the realtime encoder remembers of one camera, and nothing of any other."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from encoders_core.config import GateConfig
from encoders_core.realtime.change import Change
from encoders_core.realtime.frame_encoder import FrameEncoder, Plan
from encoders_core.realtime.frame_gate import Decision, FrameGate
from encoders_core.realtime.intake import shrink_frame
from encoders_core.realtime.load import Level
from encoders_core.realtime.temporal import SequenceStepper, TemporalStepper
from encoders_core.realtime.token_gate import RowEncoder, TokenGate

_EVERY_FRAME = Change(score=0.0, share=1.0, cut=False, light=False)
Stood = Callable[[NDArray[np.float32] | None], None]
"""Told (D,) float32, the vector that stands for a frame, when that is known; None: there will be none."""


@dataclass(frozen=True, slots=True)
class Output:
    """The vectors that stand for a camera now: un-normalised features, and the temporal head's output for them."""

    features: NDArray[np.float32]
    temporal: NDArray[np.float32] | None


class Session:
    """From a camera's first frame, or its last reset, to the next: gate, encoder state, temporal state, last output.

    `row_scale`: of the thresholds within a model of several buckets; None: each of its passes is a full one.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        gate: GateConfig | None,
        temporal: TemporalStepper | SequenceStepper | None,
        *,
        row_scale: float | None = 1.0,
    ) -> None:
        self._encoder = encoder
        self._state: Any = encoder.new_state()
        self._gate = _new_gate(encoder, gate) if gate else None
        self._stepper = temporal
        self._temporal: Any = temporal.new_state() if temporal else None
        self._frames = self._stepped = 0
        """Frames that came, and which of them the temporal head saw last."""
        self._gap = 1
        self._pending: list[Stood | None] = []
        """Of the frames that were held while another was encoded: its vector will stand for them."""
        self._begun = self._encoding = False
        self._exact = False
        self._row_scale = row_scale
        self._steered: tuple[float, bool] | None = None
        self.steer(1.0, exact=False)
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
        twin._pending = []  # noqa: SLF001
        return twin

    @property
    def estimated_fvu(self) -> float | None:
        """What holding frames has cost, as the gate's audits suggest; 0 without a gate."""
        return self._gate.estimated_fvu if self._gate else 0.0

    def steer(self, scale: float, *, exact: bool) -> None:
        """Scale the thresholds of all gates; `exact`: none of them counts any more, every frame gets a full pass."""
        if (scale, exact) == self._steered:
            return
        self._steered, self._exact = (scale, exact), exact
        if self._gate:
            self._gate.scale = scale
        self._scale = scale
        self._limit_rows()

    @property
    def whole(self) -> bool:
        """Whether each pass has to be a full one."""
        return self._exact or self._row_scale is None

    def decide(self, frame: NDArray[np.uint8], at_ns: int, *, slack: bool = False) -> Decision:
        """Encode or hold this frame; `slack`: there is time to renew what has been held for long."""
        self.at_ns = at_ns
        self._frames += 1
        if self._gate is None or self._exact:
            return Decision("change" if self._begun else "cold", _EVERY_FRAME, 1.0)
        if isinstance(self._gate, TokenGate):
            rows, state = cast("RowEncoder", self._encoder), self._state
            return self._gate.decide(frame, at_ns, lambda: rows.look(state, frame), owed=rows.owes(state), slack=slack)
        return self._gate.decide(frame, at_ns, slack=slack)

    def wish(self, frame: NDArray[np.uint8], decision: Decision) -> Plan | None:
        """What encoding `frame` would do now; None when that needs no asking, or cannot be told while another is encoded."""
        if not self._row_gated or self.whole or self._encoding or not decision.encode:
            return None
        return self._encoder.plan(self._state, frame, decision.change)

    def begin(self, frame: NDArray[np.uint8], at_ns: int, decision: Decision, level: Level | None = None) -> Plan:
        """The encoding of `frame` starts, at `level` if that is named: what it will do."""
        if self._gate:
            self._gate.begin(frame, at_ns, decision)
        self._gap, self._stepped = self._frames - self._stepped, self._frames
        cold = not self._begun
        self._begun = self._encoding = True
        self.rung = self._own_rung if level is None else level.rung
        if self.rung != self._own_rung:
            frame = shrink_frame(frame, self.rung)
        fresh = self._row_gated and self.whole
        if fresh:
            self._state = self._encoder.new_state()
        plan = self._encoder.plan(self._state, frame, decision.change)
        if fresh:
            plan.cold = cold or decision.reason == "cut"
        elif decision.reason == "max_hold":
            plan.refresh, plan.study = True, decision.early
        elif level is not None and not plan.cold and level.row_cap < plan.rows_total:
            plan.row_cap = level.row_cap
        self.tokens_total = plan.rows_total
        return plan

    def complete(self, features: NDArray[np.float32]) -> Output:
        """(D,) float32 of the frame of the last `begin`: takes a step of the temporal head, and learns."""
        if self._gate:
            self._gate.learn(features)
        self._limit_rows()
        self._encoding = False
        self.output = Output(features, self._step(features))
        output, pending, self._pending = self.output, self._pending, []
        for stood in pending:
            self._repeat(stood)
        return output

    def hold(self, stood: Stood | None = None) -> None:
        """A frame was held: a step of the temporal head when held frames count as repeats; `stood` hears what stands for it.

        While an encoding runs, the frame that is being encoded is what stands for it, so both wait for that.
        """
        if self._encoding:
            self._pending.append(stood)
        else:
            self._repeat(stood)

    def close(self) -> None:
        """Nothing more will be encoded here."""
        pending, self._pending = self._pending, []
        for stood in pending:
            if stood is not None:
                stood(None)

    def _limit_rows(self) -> None:
        """What rows of a row-gated model may change before they are computed, as the camera's vectors vary."""
        if not self._row_gated or self._row_scale is None:
            return
        tolerance = self._gate.tolerance if isinstance(self._gate, TokenGate) else 1.0
        self._encoder.set_fidelity(self._state, self._scale * self._row_scale * tolerance)

    @property
    def _row_gated(self) -> bool:
        return len(self._encoder.buckets) > 1

    def _repeat(self, stood: Stood | None) -> None:
        if self.output is None:
            return
        if stood is not None:
            stood(self.output.features)
        if self._stepper is not None and self._stepper.config.skipped == "repeat":
            self.output = Output(self.output.features, self._step(self.output.features))

    def _step(self, features: NDArray[np.float32]) -> NDArray[np.float32] | None:
        if self._stepper is None or self._temporal is None:
            return None
        one = torch.from_numpy(features)[None]
        output: NDArray[np.float32]
        if isinstance(self._stepper, SequenceStepper):
            gap = self._gap if self._stepper.config.skipped == "dt" else 1
            output = self._stepper.step(self._temporal, one, gap=gap)[0].numpy()
        else:
            output = self._stepper.step(self._temporal, one)[0].numpy()
        return output


def _new_gate(encoder: FrameEncoder, config: GateConfig) -> FrameGate | TokenGate:
    """By the rows of a model that can tell what a frame would change, else by pictures."""
    return (
        TokenGate(config, encoder.calibration.variance)
        if isinstance(encoder, RowEncoder)
        else FrameGate(config, encoder.calibration)
    )
