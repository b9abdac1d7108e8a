"""Any ViT behind the frame-encoder protocol, computing in each frame only the tokens whose change matters.

Limits are set in units of the features: a row may wait while the error that this makes in them, by its importance, stays
below a share of their spread. Measured on a small trained ViT over fixed cameras, the default share costs an FVU of .007
to .02, and the FVU grows about as its square.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from encoders_core.errors import InputError, OptionError
from encoders_core.models.packed_linear import packing_obstacle
from encoders_core.models.vit import VisionTransformer
from encoders_core.packing import pack_linears
from encoders_core.preprocessing import InputSpec, normalise
from encoders_core.realtime.change import Change, identical
from encoders_core.realtime.frame_encoder import EncoderDescriptor, Plan, fingerprint
from encoders_core.realtime.frame_gate import GateCalibration
from encoders_core.realtime.token_gate import Rows
from encoders_core.realtime.tokens.cache import GATES, TokenCache
from encoders_core.realtime.tokens.embedding import PatchMemory
from encoders_core.realtime.tokens.importance import importance_steps
from encoders_core.realtime.tokens.lane import Counts, Lane
from encoders_core.realtime.tokens.limits import (
    ROW_ERROR,
    allowed_changes,
    dense_cost_of,
    limits_of,
    patch_limits_of,
    row_costs_of,
)
from encoders_core.realtime.tokens.memory import rows_of
from encoders_core.realtime.tokens.passes import TokenPasses
from encoders_core.realtime.tokens.plain import Floats, Indices

_WORTH: Final = 0.75
"""Of a dense pass's work: a gated pass that took more was not worth its overhead. The next passes are dense, twice as many
each time in a row. (What changes at the input says little of it: importance falls with depth.)"""
_MOST_DENSE: Final = 128
_REFRESH_PASSES: Final = 256
"""Gated passes in which every row is computed at least once, whatever its change."""
_STUDY_PASSES: Final = 1500
"""Gated passes after which the importance of rows is measured anew, when there is time."""
_START_GROWTH: Final = 3.0
_GROWTH_RATE: Final = 0.1
_NONE: Final = np.zeros(0, np.int64)


@dataclass(slots=True, eq=False)
class _Seen:
    """The last frame that was looked at, a copy, so that this is done once."""

    frame: NDArray[np.uint8]
    change: Floats
    """(N,): how far each row is from what the first gate last let through."""


@dataclass(slots=True)
class VitState:
    """What is remembered of one camera: the token cache, and what its passes were like."""

    cache: TokenCache = field(default_factory=TokenCache)
    scale: float = 1.0
    """Of the limits."""
    passes: int = 0
    """Since the importance of rows was measured."""
    growth: float = _START_GROWTH
    """Rows of the widest gate for each row that changes at the input."""
    dense_for: int = 0
    """Dense passes to come before a gated one is tried again."""
    failures: int = 0
    """Gated passes in a row that were not worth it."""
    owes: bool = False
    """The last vector stands for less than it might: it came from a smaller picture, or its rows were cut off by a cap."""
    seen: _Seen | None = None
    embedded: int = 0
    """Patches that had to be embedded, of held frames too, since somebody set it to 0 who counts them."""
    counts: list[Counts] = field(default_factory=list)
    """Rows of the last gated pass, block by block; empty after a dense one."""


class VitFrameEncoder:
    """A ViT that pools in whatever way, its layers packed in place; plain passes, or gated ones from a camera's `VitState`.

    A camera's first frame gets a dense pass, equal to the network's own to the bit. So does its second, and on it the
    importance of rows is measured, which takes six passes; both are `cold`. `variance`: mean |z - mean|^2 of the features
    over many scenes. `dense_fallback`: dense passes while gated ones save too little.
    """

    def __init__(
        self,
        network: VisionTransformer,
        spec: InputSpec,
        *,
        model_id: str,
        name: str,
        trained: bool,
        variance: float,
        dense_fallback: bool = True,
    ) -> None:
        if spec.size_hw != network.config.img_size:
            raise OptionError(f"expected pictures of {network.config.img_size}, as the model, got {spec.size_hw}")
        if network.config.pool == "none":
            raise OptionError("expected a model that pools its tokens into one vector, got pooling 'none'")
        config = network.config
        self.descriptor = EncoderDescriptor(
            model_id=model_id,
            name=name if trained else f"{name}, random weights",
            fingerprint=fingerprint(network.state_dict(), spec, pooling=config.pool, head="none", variant="float32"),
            dim=config.output_dim,
            trained=trained,
            pooling=config.pool,
            input=spec,
        )
        # The frame gate's gain is not used here: the token gate holds frames by what their rows would cost.
        self.calibration = GateCalibration(variance=variance, gain=0.035)
        if packing_obstacle() is None:
            pack_linears(network)
        self.passes = TokenPasses(network)
        self.rows_total = rows_of(config)
        self._refreshed = -(-self.rows_total // _REFRESH_PASSES)
        fewest = min(self.rows_total, self._refreshed + 2)  # the class token, what is refreshed, and one that changed
        self.buckets = tuple(sorted({max(fewest, round(self.rows_total / part)) for part in (16, 8, 4, 2, 1)}))
        self.sizes_px = _sizes_px(config.img_size[0], config.patch_size)
        self._dense_fallback = dense_fallback
        self._prefix = config.prefix
        self._class_token = config.pool == "cls"
        self._row_costs = row_costs_of(network, self.rows_total)
        self._dense_cost = dense_cost_of(network, self._row_costs, self.rows_total)

    def prepare(self, sizes_px: Sequence[int]) -> None:
        """Nothing is laid out by the size of pictures: position tables are resized in the pass."""

    def new_state(self) -> VitState:
        """A camera not seen yet."""
        return VitState()

    def set_fidelity(self, state: VitState, scale: float) -> None:
        """Scale the limits of this camera's rows: 1.0 as shipped, smaller is more exact, 0.0 exact."""
        if not scale >= 0:
            raise OptionError(f"scale: expected a number of at least 0, got {scale}")
        state.scale = scale
        self._set_limits(state)

    def look(self, state: VitState, frame: NDArray[np.uint8]) -> Rows:
        """(S, S, 3) uint8 of its own size -> how many rows have changed too much to wait, and by how much.

        Patches that have changed are embedded: the pass, if one follows, finds them so.
        """
        self._check(frame)
        cache = state.cache
        if not cache.warm or cache.limits is None:
            return Rows(self.rows_total, float("inf"), exact=state.scale == 0, settled=True)
        change, limit = self._seen(state, frame).change, cache.limits[0, GATES.index("kv")]
        relative = change[limit > 0] / limit[limit > 0]
        # The class token is no part of the picture: it is let through always, and never changes here.
        changed = int(np.count_nonzero(relative > 1))
        settled, load = state.passes < _STUDY_PASSES, float(relative @ relative)
        if state.owes:
            changed, load = max(1, changed), float("inf")
        return Rows(changed, load, exact=state.scale == 0, settled=settled)

    def owes(self, state: VitState) -> bool:
        """Whether even the same frame again would bring a better vector."""
        return state.owes

    def plan(self, state: VitState, frame: NDArray[np.uint8], change: Change | None = None) -> Plan:
        """(S, S, 3) uint8, S one of `sizes_px` -> what its pass would do: dense, or the rows that its widest gate may want."""
        total, cut, share = self.rows_total, change is not None and change.cut, 1.0 if change is None else change.share
        if frame.shape[0] != self.sizes_px[0]:
            self._check(frame)
            return Plan(state, frame, total, total, change=share, cut=cut, cold=cut or not state.cache.warm)
        cold = cut or not state.cache.warm or state.cache.limits is None
        if cold:
            return Plan(state, frame, total, total, change=share, cut=cut, cold=True)
        if state.dense_for > 0:
            return Plan(state, frame, total, total, change=share, cut=False, cold=False)
        rows = self.look(state, frame).changed
        wanted = min(total - 1, max(1, round(rows * state.growth)))
        return Plan(state, frame, wanted, total, change=share, cut=False, cold=False)

    def encode(self, plans: Sequence[Plan]) -> Generator[None, None, NDArray[np.float32]]:
        """Plans of different cameras -> yields between blocks, returns (B, D) float32 features, not normalised.

        The gated ones go through the linear layers together, the dense ones by themselves.
        """
        features = np.empty((len(plans), self.descriptor.dim), np.float32)
        gated = [index for index, plan in enumerate(plans) if self._is_gated(plan)]
        for index, plan in enumerate(plans):
            if index not in gated:
                features[index] = yield from self._dense(plan)
        if gated:
            features[gated] = yield from self._gated([plans[index] for index in gated])
        return features

    # Inside

    def _is_gated(self, plan: Plan) -> bool:
        return plan.rows < plan.rows_total and not plan.refresh

    def _dense(self, plan: Plan) -> Generator[None, None, Floats]:
        state: VitState = plan.state
        self._check(plan.frame)
        tokens = self.passes.embed(plan.frame, self.descriptor.input)
        if plan.frame.shape[0] != self.sizes_px[0]:  # a smaller picture has other rows: nothing of it is remembered
            state.owes = True
            return (yield from self.passes.dense(TokenCache(), tokens))
        first, state.owes = not state.cache.warm, False
        state.seen, state.counts, state.dense_for = None, [], max(0, state.dense_for - 1)
        state.cache.patches = PatchMemory(plan.frame.copy(), tokens)
        state.embedded += len(tokens) - self._prefix
        features = yield from self.passes.dense(state.cache, tokens)
        if plan.study or (state.cache.importance is None and not first):
            yield from self._study(state, plan.frame)
        return features

    def _study(self, state: VitState, frame: NDArray[np.uint8]) -> Generator[None, None, None]:
        """Measure the importance of rows on this frame; what was known counts for half."""
        pixels = torch.from_numpy(frame[None].copy())  # the frame itself may not be written to, which torch warns of
        steps = importance_steps(self.passes.network, normalise(pixels, self.descriptor.input), seed=state.passes)
        found, cache = (yield from steps), state.cache
        levels = 1 / (255 * torch.tensor(self.descriptor.input.std)[:, None])  # of normalised pixels, in a grey level
        patches = (found.patches * levels).square().mean(dim=0).sqrt()
        cache.importance = _halfway(cache.importance, found.rows.numpy())
        cache.patch_importance = _halfway(cache.patch_importance, patches.numpy())
        cache.allowed = allowed_changes(cache.importance, self._row_costs, first=int(self._class_token))
        state.passes = 0
        self._set_limits(state)

    def _gated(self, plans: Sequence[Plan]) -> Generator[None, None, Floats]:
        lanes = [self._lane(plan) for plan in plans]
        try:
            features = yield from self.passes.gated(lanes)
        except BaseException:
            for plan in plans:  # half of a pass is in the cache
                plan.state.cache.reset()
            raise
        for plan, lane in zip(plans, lanes, strict=True):
            self._learn(plan.state, lane)
            plan.computed = max(1, round(self._work_share(lane.counts) * self.rows_total))
        return features

    def _lane(self, plan: Plan) -> Lane:
        state: VitState = plan.state
        cache, total = state.cache, self.rows_total
        forced = np.arange(cache.next_refresh, cache.next_refresh + self._refreshed) % total
        cache.next_refresh = (cache.next_refresh + self._refreshed) % total
        tokens = self._embed_changed(state, plan.frame, forced[forced >= self._prefix] - self._prefix)
        state.seen, state.owes = None, False
        return Lane(cache, tokens.copy(), row_cap=plan.row_cap, forced=forced, exact=state.scale == 0)

    def _learn(self, state: VitState, lane: Lane) -> None:
        """What a gated pass showed of how change spreads, and whether it was worth it."""
        state.passes += 1
        state.counts, state.owes = lane.counts, lane.cut_off
        at_input = max(1, lane.counts[0].kv)
        widest = max(max(count.kv, count.proj, count.mlp) for count in lane.counts)
        state.growth += _GROWTH_RATE * (widest / at_input - state.growth)
        worth = not self._dense_fallback or self._work_share(lane.counts) < _WORTH
        state.failures = 0 if worth else state.failures + 1
        state.dense_for = 0 if worth else min(2**state.failures, _MOST_DENSE)

    def _work_share(self, counts: Sequence[Counts]) -> float:
        """Multiplications of a gated pass over those of a dense one."""
        return float((np.asarray(counts) @ self._row_costs).sum() / self._dense_cost)

    def _set_limits(self, state: VitState) -> None:
        cache = state.cache
        if cache.allowed is not None and cache.patch_importance is not None:
            error = state.scale * ROW_ERROR * self.calibration.variance**0.5
            cache.limits = limits_of(cache.allowed, error, class_token=self._class_token)
            cache.patch_limits = patch_limits_of(cache.patch_importance, error)

    def _seen(self, state: VitState, frame: NDArray[np.uint8]) -> _Seen:
        if state.seen is None or not identical(frame, state.seen.frame):
            change = self.passes.first_change(state.cache, self._embed_changed(state, frame))
            state.seen = _Seen(frame.copy(), change)
        return state.seen

    def _embed_changed(self, state: VitState, frame: NDArray[np.uint8], forced: Indices = _NONE) -> Floats:
        """A warm camera's frame -> (N, D), its tokens, those of patches that may wait as they were."""
        tokens, count = self.passes.embed_changed(state.cache, frame, self.descriptor.input, forced)
        state.embedded += count
        return tokens

    def _check(self, frame: NDArray[np.uint8]) -> None:
        if frame.shape not in [(size, size, 3) for size in self.sizes_px]:
            raise InputError(f"expected a frame of (S, S, 3) with S one of {self.sizes_px}, got {frame.shape}")


def _halfway(known: Floats | None, found: Floats) -> Floats:
    """Half of the squares each; all of what was found where nothing is known."""
    return found if known is None else np.asarray(np.sqrt((found**2 + known**2) / 2), np.float32)


def _sizes_px(own: int, patch: int) -> tuple[int, ...]:
    """Its own size, then five sevenths and half of it, in whole patches."""
    smaller = {max(patch, round(own * share / patch) * patch) for share in (5 / 7, 1 / 2)}
    return (own, *sorted(smaller - {own}, reverse=True))
