"""Token policies on the engine that ships: the same kernels, and another choice of rows.

The engine computes the rows that are over their limits, so a policy is a set of limits. A test holds each equal to its plain
twin in `reference_policies`.
"""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from encoders_core.draining import drain
from encoders_core.fidelity.policy import KV, MLP, PROJECTION, Frame, Step
from encoders_core.fidelity.reference_policies import PatchWatch, Site, random_share
from encoders_core.fidelity.subject import DenseVitEncoder
from encoders_core.realtime.tokens.cache import GATES, Gate, TokenCache
from encoders_core.realtime.tokens.lane import Lane
from encoders_core.realtime.tokens.passes import TokenPasses
from encoders_core.realtime.tokens.plain import Floats

_LAYERS: Final[dict[Gate, int]] = {"kv": KV, "proj": PROJECTION, "mlp": MLP}
_ALWAYS, _NEVER = -1.0, np.inf


class _EnginePolicy:
    """The engine for one camera; the first frame is dense."""

    def __init__(self, name: str, vit: DenseVitEncoder) -> None:
        self.name, self._vit, self._passes = name, vit, TokenPasses(vit.network)
        self._rows = vit.cost.tokens
        self.reset()

    def reset(self) -> None:
        """Forget the camera."""
        self._cache = TokenCache()

    def step(self, frame: Frame, at_ns: int) -> Step:  # noqa: ARG002  it compares frames, not times
        """One frame through the engine."""
        tokens = self._passes.embed(frame, self._vit.descriptor.input)
        cost, cache = self._vit.cost, self._cache
        if not cache.warm:
            features = drain(self._passes.dense(cache, tokens))
            self._begin(frame)
            return cost.step(features, cost.plain_rows)
        cache.limits, cache.ages = self._limits(frame), np.ones_like(cache.ages)  # no row may change less for its age
        lane = Lane(cache, tokens, exact=self._looks_at_all)
        features = drain(self._passes.gated([lane]))[0]
        return cost.step(features, np.asarray(lane.counts))

    def _limits_of(self, limits: NDArray[Any]) -> Floats:
        """(depth, gates, N), with the class token and registers let through always."""
        limits[:, :, : self._vit.network.config.prefix] = _ALWAYS
        return np.asarray(limits, np.float32)

    _looks_at_all = True
    """Attention is dense, not for the rows alone whose queries are computed."""

    def _begin(self, frame: Frame) -> None:
        """The cache has just been filled with `frame`."""

    def _limits(self, frame: Frame) -> Floats:
        """(depth, gates, N): which rows of `frame` to compute, in the terms of the engine's gates."""
        raise NotImplementedError


class EngineThreshold(_EnginePolicy):
    """Gates before each linear layer: rows that moved by more than `tau` times the typical length; attention is dense."""

    def __init__(self, vit: DenseVitEncoder, tau: float) -> None:
        self._tau = tau
        super().__init__("tokenwise", vit)

    def _begin(self, frame: Frame) -> None:  # noqa: ARG002
        gates = ("kv", "kv", "proj", "mlp")  # the queries' rows are those of keys and values
        references = [[getattr(block, gate).reference for gate in gates] for block in self._cache.blocks]
        lengths = np.array([[np.linalg.norm(one, axis=1).mean() for one in row] for row in references])
        self._thresholds = self._limits_of(np.repeat(self._tau * lengths[..., None], self._rows, axis=2))

    def _limits(self, frame: Frame) -> Floats:  # noqa: ARG002
        return self._thresholds


class EngineRandom(_EnginePolicy):
    """A random share of the rows at each gate, whatever they show; attention is dense."""

    def __init__(self, vit: DenseVitEncoder, share: float) -> None:
        self._share = share
        super().__init__("random", vit)

    def _begin(self, frame: Frame) -> None:  # noqa: ARG002
        self._select = random_share(self._share)

    def _limits(self, frame: Frame) -> Floats:  # noqa: ARG002
        chosen = np.zeros((len(self._cache.blocks), len(GATES), self._rows), bool)
        lonely = len(chosen) - 1 if self._vit.network.config.pool == "cls" else -1
        nothing = torch.zeros(self._rows)
        for block in range(len(chosen)):
            for gate, layer in _LAYERS.items():
                if block == lonely and gate != "kv":
                    continue  # one row, computed anyway
                chosen[block, GATES.index(gate)] = self._select(Site(block, layer), nothing, 1.0).numpy()
        chosen[:, GATES.index("query")] = chosen[:, GATES.index("kv")]
        return self._limits_of(np.where(chosen, _ALWAYS, _NEVER))


class EngineStaleKV(_EnginePolicy):
    """Only patches that changed at the input flow; keys and values of the others stay as they were computed last."""

    _looks_at_all = False

    def __init__(self, vit: DenseVitEncoder, grey_levels: float) -> None:
        self._watch = PatchWatch(vit.network.config, grey_levels)
        super().__init__("stale_kv", vit)

    def reset(self) -> None:
        """Forget the camera."""
        super().reset()
        self._watch.reset()

    def _begin(self, frame: Frame) -> None:
        self._watch.changed(frame)

    def _limits(self, frame: Frame) -> Floats:
        limits = np.full((len(self._cache.blocks), len(GATES), self._rows), _NEVER)
        limits[:, :, self._watch.changed(frame).numpy()] = _ALWAYS
        return self._limits_of(limits)
