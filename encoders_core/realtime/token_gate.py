"""Encode or hold, for a model that knows its rows: a frame may be held while none of its rows would cost much error.

It asks the encoder for what has changed since each row was last computed, in units of the features, so there is nothing to
calibrate by pictures. What share of the target this spends is measured by audits, which steer the encoder's limits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from encoders_core.config import GateConfig
from encoders_core.realtime.change import Change, NoiseFloor, Reduced, identical, measure
from encoders_core.realtime.change_kernels import reduce_frame
from encoders_core.realtime.frame_gate import Decision, Reason
from encoders_core.realtime.spread import FLOOR, Spread

HOLD_LOAD: Final = 300.0
"""Sum of squares over the rows of their change, in units of what it may be, up to which the frame is held: as if each of
twelve rows had moved by five times what it may. More rows are then computed at once, for one reading of the weights."""
_TOLERANCE_POWER: Final = 0.25
_START_VARIANCE: Final = 0.02  # of the model's, until a camera's own is known
_RENEW_SHARE: Final = 0.75  # of max_hold_s: from then on a held picture is renewed when there is time
_NOTHING: Final = Change(score=0.0, share=1.0, cut=False, light=False)


@dataclass(frozen=True, slots=True)
class Rows:
    """A frame as a row-gated encoder sees it, against what it last computed of this camera."""

    changed: int
    """Rows whose change is too much to wait."""
    load: float
    """Sum over the rows of (change / what it may be)^2."""
    exact: bool
    """Nothing may wait."""
    settled: bool
    """Nothing that the encoder knows of this camera's places is old."""


@runtime_checkable
class RowEncoder(Protocol):
    """A frame encoder that can tell what a frame would change, before it encodes it."""

    def look(self, state: Any, frame: NDArray[np.uint8]) -> Rows:
        """(H, W, 3) uint8 of its own size -> its rows against the camera's. What passes have computed stays as it is."""
        ...

    def owes(self, state: Any) -> bool:
        """Whether even the same frame again would bring a better vector."""
        ...


class TokenGate:
    """The gate of one camera.

    Pure but for the noise floor of its pictures, which serves `Change` alone: the same frames and rows give the same.
    """

    def __init__(self, config: GateConfig, model_variance: float) -> None:
        self.config = config
        self._spread = Spread(model_variance, start=_START_VARIANCE)
        self._features: NDArray[np.float32] | None = None
        self.scale = 1.0
        """Kept for whoever steers: the encoder's limits, in which rows are measured, are scaled already."""
        self.estimated_fvu: float | None = None
        """Not known here; audits measure it."""
        self._floor = NoiseFloor()
        self._reference: Reduced | None = None
        self._pixels: NDArray[np.uint8] | None = None
        self._begun_at_ns = 0

    def decide(
        self,
        frame: NDArray[np.uint8],
        at_ns: int,
        look: Callable[[], Rows],
        *,
        owed: bool = False,
        slack: bool = False,
    ) -> Decision:
        """(H, W, 3) uint8 of the time `at_ns` -> encode or hold. `slack`: there is time for a pass that is not urgent.

        `look` is asked when the picture alone does not decide. `owed`: the last vector could be better.
        """
        if self._reference is None or self._pixels is None:
            return Decision("cold", _NOTHING, 1.0, reduce_frame(frame))
        if not owed and identical(frame, self._pixels):
            return self._unchanged(at_ns, slack=slack)
        small = reduce_frame(frame)
        change = measure(small, self._reference, self._floor.update(small))
        if change.cut:
            return Decision("cut", change, 1.0, small)
        rows = look()
        held = rows.changed == 0 or (not rows.exact and rows.load < HOLD_LOAD)
        reason, early = self._reason(at_ns, held=held, slack=slack, settled=rows.settled)
        if reason == "held" and self._features is not None:
            self._spread.update(self._features)
        return Decision(reason, change, 0.0 if held else 1.0, small, early)

    def begin(self, frame: NDArray[np.uint8], at_ns: int, decision: Decision) -> None:
        """The encoding of `frame` starts."""
        self._reference = decision.reduced if decision.reduced is not None else reduce_frame(frame)
        self._pixels, self._begun_at_ns = frame.copy(), at_ns  # callers may use theirs again

    def learn(self, features: NDArray[np.float32]) -> None:
        """(D,) float32, the un-normalised features of the frame of the last `begin`."""
        self._features = features
        self._spread.update(features)

    @property
    def tolerance(self) -> float:
        """How far vectors of this camera may be off, against one that hardly varies: the target is a share of its variance.

        A little less than the square root of it: where more moves, the errors of rows point the same way more often.
        """
        return float((self._spread.variance / FLOOR) ** _TOLERANCE_POWER)

    def _unchanged(self, at_ns: int, *, slack: bool) -> Decision:
        reason, early = self._reason(at_ns, held=True, slack=slack, settled=True)
        if reason == "held" and self._features is not None:
            self._spread.update(self._features)
        return Decision(reason, Change(0.0, 0.0, cut=False, light=False), 0.0, self._reference, early)

    def _reason(self, at_ns: int, *, held: bool, slack: bool, settled: bool) -> tuple[Reason, bool]:
        """Why this frame is encoded, and whether that has time."""
        if not held and (settled or not slack):
            return "change", False
        age = (at_ns - self._begun_at_ns) / (self.config.max_hold_s * 1e9)
        if age >= 1:
            return "max_hold", False
        if slack and (not settled or age >= _RENEW_SHARE):
            return "max_hold", True
        return ("held" if held else "change"), False
