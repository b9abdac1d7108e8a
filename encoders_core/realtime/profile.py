"""How long a model takes here: its full pass, and what fewer rows save."""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders_core.realtime.frame_encoder import FrameEncoder, Plan, dense_steps

Cost = tuple[int, int]
"""Nanoseconds taken, and of these computed."""


def profile(
    encoder: FrameEncoder, passes: int, *, clock: Callable[[], int], cpu_clock: Callable[[], int]
) -> dict[int, list[Cost]]:
    """The costs of `passes` passes at each of the encoder's row caps, after one that does not count."""
    height, width = encoder.descriptor.input.size_hw
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)

    def timed(steps: Generator[None, None, Any]) -> Cost:
        started_ns, computed_ns = clock(), cpu_clock()
        for _ in steps:
            pass
        return clock() - started_ns, cpu_clock() - computed_ns

    dense = [timed(dense_steps(encoder, noise[0])) for _ in range(passes + 1)]
    costs = {encoder.buckets[-1]: dense[1:]}
    for row_cap in encoder.buckets[:-1]:
        state = encoder.new_state()
        timed(encoder.encode([encoder.plan(state, noise[0])]))
        share = row_cap / encoder.buckets[-1]
        rounds = [timed(encoder.encode([_plan(encoder, state, noise, share, index)])) for index in range(passes + 1)]
        costs[row_cap] = rounds[1:]
    return costs


def _plan(encoder: FrameEncoder, state: Any, noise: NDArray[np.uint8], share: float, index: int) -> Plan:
    """Of a picture whose upper `share` is another one each time, capped to the bucket."""
    frame = noise[0].copy()
    upper = max(1, round(share * frame.shape[0]))
    frame[:upper] = noise[(index + 1) % 2][:upper]
    plan = encoder.plan(state, frame)
    plan.row_cap = round(share * encoder.buckets[-1])
    return plan
