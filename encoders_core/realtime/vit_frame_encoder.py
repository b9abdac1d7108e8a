"""Any ViT behind the frame-encoder protocol, computing in each frame only the tokens whose change matters.

Limits are set in units of the features: a row may wait while the error that this makes in them, by its importance, stays
below a share of their spread. Measured on a small trained ViT over fixed cameras, the default share costs an FVU of .007
to .02, and the FVU grows about as its square.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray

from encoders_core.errors import InputError, OptionError
from encoders_core.models.packed_linear import packing_obstacle
from encoders_core.models.vit import VisionTransformer
from encoders_core.packing import pack_linears
from encoders_core.preprocessing import Fit, InputSpec, normalise
from encoders_core.realtime.change import Change, identical
from encoders_core.realtime.frame_encoder import EncoderDescriptor, Plan, fingerprint
from encoders_core.realtime.frame_gate import GateCalibration
from encoders_core.realtime.token_cache import GATES, TokenCache
from encoders_core.realtime.token_gate import Rows
from encoders_core.realtime.token_importance import importance_steps
from encoders_core.realtime.token_lane import Counts, Lane
from encoders_core.realtime.token_pass import TokenPasses
from encoders_core.realtime.token_plain import Floats
from encoders_core.weights.files import read_json

ROW_ERROR: Final = 9.5e-5
"""What letting one row of one gate wait may cost, of the features' standard deviation over many scenes, for a camera whose
own variance is a hundredth of it. On six fixed cameras, at 10 and at 24 to 30 frames a second, the FVU then was .007 to .02;
it grows about as the square of this."""
_ROUNDING: Final = 1e-5
"""Length of a change that is none: layer-normalised rows, computed twice, differ by less."""
_WORTH: Final = 0.75
"""Of a dense pass's work: a gated pass that took more was not worth its overhead. The next passes are dense, twice as many
each time in a row. (What changes at the input says little of it: importance falls with depth.)"""
_MOST_DENSE: Final = 128
_REFRESH_PASSES: Final = 256
"""Gated passes in which every row is computed at least once, whatever its change."""
_STUDY_PASSES: Final = 1500
"""Gated passes after which the importance of rows is measured anew, when there is time."""
_TRUST: Final = 0.6
"""How far the measured importance of one row is believed against the mean of its gate: it was measured on a frame or two,
and what will move there may not have been in them."""
_START_GROWTH: Final = 3.0
_GROWTH_RATE: Final = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """The last frame that was looked at, a copy, so that it is embedded once."""

    frame: NDArray[np.uint8]
    tokens: Floats


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
        self.rows_total = config.prefix + config.grid_hw[0] * config.grid_hw[1]
        self._refreshed = -(-self.rows_total // _REFRESH_PASSES)
        fewest = min(self.rows_total, self._refreshed + 2)  # the class token, what is refreshed, and one that changed
        self.buckets = tuple(sorted({max(fewest, round(self.rows_total / part)) for part in (16, 8, 4, 2, 1)}))
        self.sizes_px = _sizes_px(config.img_size[0], config.patch_size)
        self._dense_fallback = dense_fallback
        self._row_costs = _row_costs(network, self.rows_total)

    def prepare(self, sizes_px: Sequence[int]) -> None:  # noqa: ARG002  the protocol's signature
        """Nothing is laid out by the size of pictures (position tables are resized in the pass), but by numbers of rows."""
        self.passes.prepare()

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
        """(S, S, 3) uint8 of its own size -> how many rows have changed too much to wait, and by how much."""
        tokens, cache = self._tokens(state, frame), state.cache
        if not cache.warm or cache.limits is None:
            return Rows(self.rows_total, float("inf"), exact=state.scale == 0, settled=True)
        change, limit = self.passes.first_change(cache, tokens), cache.limits[0, GATES.index("kv")]
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
        if plan.frame.shape[0] != self.sizes_px[0]:  # a smaller picture has other rows: nothing of it is remembered
            state.owes = True
            return (yield from self.passes.dense(TokenCache(), self.passes.embed(self._normalised(plan.frame))))
        state.owes = False
        tokens, first = self._tokens(state, plan.frame), not state.cache.warm
        state.seen, state.counts, state.dense_for = None, [], max(0, state.dense_for - 1)
        features = yield from self.passes.dense(state.cache, tokens)
        if plan.study or (state.cache.importance is None and not first):
            yield from self._study(state, plan.frame)
        return features

    def _study(self, state: VitState, frame: NDArray[np.uint8]) -> Generator[None, None, None]:
        """Measure the importance of rows on this frame; what was known counts for half."""
        steps = importance_steps(self.passes.network, self._normalised(frame), seed=state.passes)
        found = (yield from steps).numpy()
        known = state.cache.importance
        state.cache.importance = found if known is None else np.sqrt((found**2 + known**2) / 2)
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
        tokens, total = self._tokens(state, plan.frame), self.rows_total
        state.seen, state.owes = None, False
        first = state.cache.next_refresh
        forced = np.arange(first, first + self._refreshed) % total
        state.cache.next_refresh = (first + self._refreshed) % total
        return Lane(state.cache, tokens, row_cap=plan.row_cap, forced=forced, exact=state.scale == 0)

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
        whole = Counts(*[self.rows_total] * len(Counts._fields))
        last = Counts(1, self.rows_total, 1, 1, 1) if self.passes.network.config.pool == "cls" else whole
        dense = (len(counts) - 1) * np.dot(self._row_costs, whole) + np.dot(self._row_costs, last)
        return float(np.sum(np.asarray(counts) @ self._row_costs) / dense)

    def _set_limits(self, state: VitState) -> None:
        importance = state.cache.importance
        if importance is None:
            return
        error = state.scale * ROW_ERROR * self.calibration.variance**0.5
        # A row of a costlier gate may cost more error: the sum of work falls the most for a given sum of squares.
        costs = self._row_costs[[Counts._fields.index(gate) for gate in GATES]]
        allowed = error * np.sqrt(costs / costs.mean())[None, :, None]
        first = int(self.passes.network.config.pool == "cls")
        shrunk = np.maximum(_shrunk(importance[:, :, first:]), np.finfo(np.float32).tiny)
        limits = np.full_like(importance, -1.0)  # the class token is what is read
        limits[:, :, first:] = np.maximum(allowed / shrunk, _ROUNDING)
        state.cache.limits = limits

    def _tokens(self, state: VitState, frame: NDArray[np.uint8]) -> Floats:
        if state.seen is None or not identical(frame, state.seen.frame):
            state.seen = _Seen(frame.copy(), self.passes.embed(self._normalised(frame)))
        return state.seen.tokens

    def _normalised(self, frame: NDArray[np.uint8]) -> torch.Tensor:
        self._check(frame)
        spec = self.descriptor.input
        if frame.shape[0] != spec.size_hw[0]:
            spec = InputSpec((frame.shape[0], frame.shape[1]), spec.fit, spec.scaler, spec.mean, spec.std)
        return normalise(torch.from_numpy(frame)[None], spec)

    def _check(self, frame: NDArray[np.uint8]) -> None:
        if frame.shape not in [(size, size, 3) for size in self.sizes_px]:
            raise InputError(f"expected a frame of (S, S, 3) with S one of {self.sizes_px}, got {frame.shape}")


def load_vit(path: str | Path, fit: Fit = "squash") -> VitFrameEncoder:
    """A ViT checkpoint, as `VisionEncoder.from_pretrained` takes it, as a frame encoder.

    `feature_variance` in its config.json is the mean |z - mean|^2 of its features over many scenes; without it half of the
    mean squared length over generated pictures stands in. Raises what `from_pretrained` raises.
    """
    from encoders_core.vision_encoder import VisionEncoder  # noqa: PLC0415  the whole module of encoders, for ViTs alone

    encoder = VisionEncoder.from_pretrained(path)
    transform, config = encoder.transform, encoder.model.config
    if config.img_size[0] != config.img_size[1]:
        raise OptionError(f"{path}: expected a model of square pictures, got {config.img_size}")
    scaler = transform.interpolation if transform.interpolation in ("area", "bilinear", "bicubic") else "area"
    spec = InputSpec(config.img_size, fit, cast("Any", scaler), _three(transform.mean), _three(transform.std))
    name = Path(path).name
    return VitFrameEncoder(
        encoder.model,
        spec,
        model_id="".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-"),
        name=name,
        trained=encoder.trained,
        variance=_stated_variance(Path(path)) or _guessed_variance(encoder.model, spec),
    )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise OptionError(f"expected a model of RGB pictures, got one of {len(values)} channels")
    return values[0], values[1], values[2]


def _stated_variance(path: Path) -> float | None:
    stated = read_json(path / "config.json").get("feature_variance")
    if stated is not None and not (isinstance(stated, int | float) and stated > 0):
        raise OptionError(f"{path}/config.json: feature_variance: expected a positive number, got {stated!r}")
    return stated


@torch.inference_mode()
def _guessed_variance(network: VisionTransformer, spec: InputSpec) -> float:
    """Half of the mean squared length of the features of smooth random pictures: an order of magnitude."""
    noise = torch.rand((8, 3, 14, 14), generator=torch.Generator().manual_seed(0))
    pictures = torch.nn.functional.interpolate(noise, spec.size_hw, mode="bicubic").clamp(0, 1)
    frames = (pictures * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    features = network(normalise(frames, spec))
    return float(features.square().sum(dim=1).mean()) / 2


def _shrunk(importance: Floats) -> Floats:
    """(..., N) -> the same, each row's square drawn towards the mean square of its gate, on a scale of logarithms."""
    squares = np.square(importance, dtype=np.float64)
    mean = np.maximum(squares.mean(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray(np.sqrt(mean * (squares / mean) ** _TRUST), np.float32)


def _sizes_px(own: int, patch: int) -> tuple[int, ...]:
    """Its own size, then five sevenths and half of it, in whole patches."""
    smaller = {max(patch, round(own * share / patch) * patch) for share in (5 / 7, 1 / 2)}
    return (own, *sorted(smaller - {own}, reverse=True))


def _row_costs(network: VisionTransformer, rows: int) -> NDArray[np.float64]:
    """(5,): multiplications for a row of each layer, in the order of `Counts`."""
    dim, config = network.config.embed_dim, network.config
    feed = (3 if config.swiglu else 2) * dim * config.mlp_width
    return np.array([dim * dim, 2 * dim * dim, 2 * rows * dim, dim * dim, feed], np.float64)
