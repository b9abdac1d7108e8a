"""A model whose rows can be computed one by one, in a few lines."""

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders_core.errors import OptionError
from encoders_core.preprocessing import InputSpec
from encoders_core.realtime.change import Change
from encoders_core.realtime.frame_encoder import EncoderDescriptor, Plan
from encoders_core.realtime.frame_gate import GateCalibration

MS = 1_000_000
SIZE = 32


class Rows:
    """A model of four rows, the mean colours of the quarters of a picture; `stale` rows are never computed again."""

    calibration = GateCalibration(variance=3000.0, gain=0.02)
    descriptor = EncoderDescriptor("rows", "rows", "0" * 16, 12, True, "mean", InputSpec((SIZE, SIZE)))
    buckets = (1, 2, 4)
    stale = 0

    def __init__(self, clock: "Ticking | None" = None) -> None:
        self.clock = clock or Ticking()
        self.cost_ms: dict[int, float] = {}
        """What a pass takes of the clock, by the rows that it computes."""
        self.scales: list[float] = []
        self.caps: list[int | None] = []
        self.refreshes: list[bool] = []

    def new_state(self) -> dict[str, Any]:
        return {}

    def plan(self, state: dict[str, Any], frame: NDArray[np.uint8], change: Change | None = None) -> Plan:
        cold = "rows" not in state
        rows = 4 if cold else int(sum(np.abs(quarters(frame) - state["rows"]).max(1) > 0))
        return Plan(state, frame, rows, 4, change=change.share if change else 1.0, cut=False, cold=cold)

    def set_fidelity(self, state: dict[str, Any], scale: float) -> None:
        if scale < 0:
            raise OptionError("negative")
        state["scale"] = scale
        self.scales.append(scale)

    def encode(self, plans: Sequence[Plan]) -> Generator[None, None, NDArray[np.float32]]:
        found = []
        for plan in plans:
            yield
            self.caps.append(plan.row_cap)
            self.refreshes.append(plan.refresh)
            new = quarters(plan.frame)
            old = plan.state.get("rows", new)
            keep = [index for index in range(4) if index >= 4 - self.stale] if "rows" in plan.state else []
            new[keep] = old[keep]
            plan.state["rows"] = new
            self.clock.now_ns += round(self.cost_ms.get(min(plan.rows, plan.row_cap or 4), 0) * MS)
            found.append(new.ravel())
        return np.stack(found).astype(np.float32)


def quarters(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    return frame.reshape(4, SIZE // 4, SIZE, 3).mean((1, 2)).astype(np.float32)


class Ticking:
    """40 ms a frame, so that all of the time between frames is slack."""

    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def moving(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Colours that wander, so that a vector held for long is a bad one."""
    source = np.random.default_rng(seed)
    colour, frames = np.full((4, 1, 1, 3), 128.0), []
    for _ in range(count):
        colour = np.clip(colour + source.normal(0, 4, colour.shape), 0, 255)
        frames.append(np.repeat(np.repeat(colour, SIZE // 4, 1), SIZE, 2).reshape(SIZE, SIZE, 3).astype(np.uint8))
    return frames
