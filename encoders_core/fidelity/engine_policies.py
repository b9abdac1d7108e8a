"""Token policies on the engine that ships: the same kernels, and another choice of rows.

The engine asks a lane which rows to compute; here the lane asks the policy. A test holds each equal to its plain twin in
`reference_policies`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from encoders_core.fidelity.frame_policies import drain
from encoders_core.fidelity.policy import MLP, PROJECTION, QKV, Frame, Step
from encoders_core.fidelity.reference_policies import PatchWatch, Selector, Site
from encoders_core.fidelity.subject import DenseVitEncoder
from encoders_core.preprocessing import normalise
from encoders_core.realtime.token_cache import Gate, TokenCache
from encoders_core.realtime.token_pass import Lane, dense_pass, gated_pass

_LAYERS: Final[dict[Gate, int]] = {"qkv": QKV, "proj": PROJECTION, "mlp": MLP}
Scales = dict[tuple[int, Gate], float]
"""Typical length of an input, by block and gate."""


def _nothing(_site: Site, change: Tensor, _scale: float) -> Tensor:
    return torch.zeros(change.shape[0], dtype=torch.bool)


@dataclass(slots=True)
class SelectorLane(Lane):
    """Rows as a selector says, the first `prefix` always; attention looks at all rows."""

    select: Selector = _nothing
    scales: Scales = field(default_factory=dict)
    prefix: int = 1

    def choose(self, block: int, gate: Gate, change: Tensor, rows: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(N,) lengths of change -> indices of the rows to compute."""
        chosen = self.select(Site(block, _LAYERS[gate]), change, self.scales[block, gate])
        chosen[: self.prefix] = True
        return chosen.nonzero().squeeze(1)

    def look_at(self, block: int, changed: Tensor) -> Tensor:  # noqa: ARG002
        """All rows."""
        return torch.arange(self.x.shape[0])


@dataclass(slots=True)
class FixedLane(Lane):
    """The same rows at every gate, and no others in attention."""

    flowing: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def choose(self, block: int, gate: Gate, change: Tensor, rows: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The rows that flow."""
        return self.flowing if rows is None else torch.arange(len(rows))

    def look_at(self, block: int, changed: Tensor) -> Tensor:  # noqa: ARG002
        """The rows that flow."""
        return self.flowing


class _EnginePolicy:
    """The engine for one camera; the first frame is dense."""

    def __init__(self, name: str, vit: DenseVitEncoder) -> None:
        self.name, self._vit = name, vit
        self.reset()

    def reset(self) -> None:
        """Forget the camera."""
        self._cache = TokenCache()

    def step(self, frame: Frame, at_ns: int) -> Step:  # noqa: ARG002  it compares frames, not times
        """One frame through the engine."""
        network, cost = self._vit.network, self._vit.cost
        image = normalise(torch.from_numpy(frame)[None], self._vit.descriptor.input)
        if not self._cache.warm:
            features = drain(dense_pass(network, self._cache, image))
            self._begin(frame)
            return cost.step(features.numpy(), cost.plain_rows)
        with torch.inference_mode():
            lane = self._lane(frame, network.embed(image)[0])
        features = drain(gated_pass(network, [lane]))[0]
        return cost.step(features.numpy(), np.asarray(lane.counts))

    def _begin(self, frame: Frame) -> None:
        """The cache has just been filled with `frame`."""
        raise NotImplementedError

    def _lane(self, frame: Frame, x: Tensor) -> Lane:
        """Who chooses the rows of `frame`, (N, D) tokens `x`."""
        raise NotImplementedError


class EngineTokens(_EnginePolicy):
    """Three gates a block, attention dense, the rows by a selector that is made anew at each reset."""

    def __init__(self, name: str, vit: DenseVitEncoder, selector: Callable[[], Selector]) -> None:
        self._selector = selector
        super().__init__(name, vit)

    def _begin(self, frame: Frame) -> None:  # noqa: ARG002
        self._select = self._selector()
        self._scales: Scales = {}
        for index, block in enumerate(self._cache.blocks):
            gates: dict[Gate, Tensor] = {
                "qkv": block.qkv.reference,
                "proj": block.proj.reference,
                "mlp": block.mlp.reference,
            }
            self._scales |= {(index, gate): float(inputs.norm(dim=1).mean()) for gate, inputs in gates.items()}

    def _lane(self, frame: Frame, x: Tensor) -> Lane:  # noqa: ARG002
        prefix = self._vit.network.config.prefix
        return SelectorLane(self._cache, x, select=self._select, scales=self._scales, prefix=prefix)


class EngineStaleKV(_EnginePolicy):
    """Only patches that changed at the input flow; keys and values of the others stay as they were computed last."""

    def __init__(self, vit: DenseVitEncoder, grey_levels: float) -> None:
        self._watch = PatchWatch(vit.network.config, grey_levels)
        super().__init__("stale_kv", vit)

    def reset(self) -> None:
        """Forget the camera."""
        super().reset()
        self._watch.reset()

    def _begin(self, frame: Frame) -> None:
        self._watch.changed(frame)

    def _lane(self, frame: Frame, x: Tensor) -> Lane:
        return FixedLane(self._cache, x, flowing=self._watch.changed(frame))
