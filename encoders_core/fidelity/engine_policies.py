"""Token policies on the engine that ships: the same kernels, and another choice of rows.

The engine asks a lane which rows to compute; here the lane asks the policy. A test holds each equal to its plain twin in
`reference_policies`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from encoders_core.draining import drain
from encoders_core.fidelity.policy import KV, MLP, PROJECTION, QUERY, Frame, Step
from encoders_core.fidelity.reference_policies import PatchWatch, Selector, Site
from encoders_core.fidelity.subject import DenseVitEncoder
from encoders_core.preprocessing import normalise
from encoders_core.realtime.token_cache import Gate, TokenCache
from encoders_core.realtime.token_kernels import Floats, Indices
from encoders_core.realtime.token_lane import Lane
from encoders_core.realtime.token_pass import TokenPasses

_LAYERS: Final[dict[Gate, int]] = {"query": QUERY, "kv": KV, "proj": PROJECTION, "mlp": MLP}
Scales = dict[tuple[int, Gate], float]
"""Typical length of an input, by block and gate."""


def _nothing(_site: Site, change: torch.Tensor, _scale: float) -> torch.Tensor:
    return torch.zeros(change.shape[0], dtype=torch.bool)


@dataclass
class SelectorLane(Lane):
    """Rows as a selector says, the first `prefix` always; attention looks at all rows."""

    select: Selector = _nothing
    scales: Scales = field(default_factory=dict)
    prefix: int = 1
    _with_kv: Indices = field(default_factory=lambda: np.empty(0, np.int64), init=False)

    def choose(self, block: int, gate: Gate, change: Floats, rows: Indices | None = None) -> Indices:  # noqa: ARG002
        """(N,) lengths of change -> indices of the rows to compute; queries with their keys and values, which come first."""
        if gate == "query":
            return self._with_kv
        site = Site(block, _LAYERS[gate])
        chosen: Indices = self.select(site, torch.from_numpy(change), self.scales[block, gate]).numpy()
        chosen[: self.prefix] = True
        taken: Indices = np.flatnonzero(chosen)
        if gate == "kv":
            self._with_kv = taken
        return taken

    def look_at(self, block: int, changed: Indices) -> Indices:  # noqa: ARG002
        """All rows."""
        return np.arange(len(self.x))


@dataclass
class FixedLane(Lane):
    """The same rows at every gate, and no others in attention."""

    flowing: Indices = field(default_factory=lambda: np.empty(0, np.intp))

    def choose(self, block: int, gate: Gate, change: Floats, rows: Indices | None = None) -> Indices:  # noqa: ARG002
        """The rows that flow."""
        return self.flowing if rows is None else np.arange(len(rows))

    def look_at(self, block: int, changed: Indices) -> Indices:  # noqa: ARG002
        """The rows that flow."""
        return self.flowing


class _EnginePolicy:
    """The engine for one camera; the first frame is dense."""

    def __init__(self, name: str, vit: DenseVitEncoder) -> None:
        self.name, self._vit, self._passes = name, vit, TokenPasses(vit.network)
        self._passes.prepare()
        self.reset()

    def reset(self) -> None:
        """Forget the camera."""
        self._cache = TokenCache()

    def step(self, frame: Frame, at_ns: int) -> Step:  # noqa: ARG002  it compares frames, not times
        """One frame through the engine."""
        image = normalise(torch.from_numpy(frame)[None], self._vit.descriptor.input)
        tokens, cost = self._passes.embed(image), self._vit.cost
        if not self._cache.warm:
            features = drain(self._passes.dense(self._cache, tokens))
            self._begin(frame)
            return cost.step(features, cost.plain_rows)
        lane = self._lane(frame, tokens)
        features = drain(self._passes.gated([lane]))[0]
        return cost.step(features, np.asarray(lane.counts))

    def _begin(self, frame: Frame) -> None:
        """The cache has just been filled with `frame`."""
        raise NotImplementedError

    def _lane(self, frame: Frame, x: Floats) -> Lane:
        """Who chooses the rows of `frame`, (N, D) tokens `x`."""
        raise NotImplementedError


class EngineTokens(_EnginePolicy):
    """Gates before each linear layer, the rows by a selector that is made anew at each reset; attention is dense."""

    def __init__(self, name: str, vit: DenseVitEncoder, selector: Callable[[], Selector]) -> None:
        self._selector = selector
        super().__init__(name, vit)

    def _begin(self, frame: Frame) -> None:  # noqa: ARG002
        self._select = self._selector()
        self._scales: Scales = {}
        for index, block in enumerate(self._cache.blocks):
            gates: dict[Gate, Floats] = {
                "query": block.kv.reference,  # the same rows
                "kv": block.kv.reference,
                "proj": block.proj.reference,
                "mlp": block.mlp.reference,
            }
            self._scales |= {
                (index, gate): float(np.linalg.norm(inputs, axis=1).mean()) for gate, inputs in gates.items()
            }

    def _lane(self, frame: Frame, x: Floats) -> Lane:  # noqa: ARG002
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

    def _lane(self, frame: Frame, x: Floats) -> Lane:
        return FixedLane(self._cache, x, flowing=self._watch.changed(frame).numpy())
