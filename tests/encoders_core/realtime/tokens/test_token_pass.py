"""What a gated pass promises, at the level of its gates: limits, selected rows, exactness, caps, packing."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from encoders_core.draining import drain
from encoders_core.errors import OptionError
from encoders_core.models.vit import VisionTransformer
from encoders_core.packing import pack_linears
from encoders_core.preprocessing import normalise
from encoders_core.realtime.compiling import COMPILED
from encoders_core.realtime.tokens import kernels, plain, turns
from encoders_core.realtime.tokens import passes as passes_module
from encoders_core.realtime.tokens.attention import plain_attend
from encoders_core.realtime.tokens.cache import GATES, Gate, TokenCache
from encoders_core.realtime.tokens.embedding import PatchMemory
from encoders_core.realtime.tokens.lane import Counts, Lane
from encoders_core.realtime.tokens.memory import BlockMemory
from encoders_core.realtime.tokens.passes import TokenPasses
from encoders_core.realtime.tokens.plain import Rules
from tests.encoders_core.realtime.tiny_vits import (
    FAMILIES,
    PATCH,
    SIZE,
    SPEC,
    Frame,
    distance,
    redrawn,
    scene,
    tiny_vit,
    walk,
)

ROUNDING = 1e-5
Floats = NDArray[np.float32]


def image(frame: Frame) -> torch.Tensor:
    return normalise(torch.from_numpy(frame)[None], SPEC)


@torch.inference_mode()
def network_of(passes: TokenPasses, frame: Frame) -> Floats:
    features: Floats = passes.network(image(frame))[0].numpy()
    return features


def dense(passes: TokenPasses, frame: Frame, limit: float = ROUNDING) -> TokenCache:
    """A warm camera whose gates let every change above `limit` through."""
    cache, config = TokenCache(), passes.network.config
    drain(passes.dense(cache, passes.embed(frame, SPEC)))
    cache.limits = np.full((config.depth, 4, len(cache.blocks[0].kv.reference)), limit, np.float32)
    cache.importance, cache.allowed = np.ones_like(cache.limits), np.ones_like(cache.limits)
    if config.pool == "cls":
        cache.limits[:, :, 0] = -1
    return cache


class Witness(Lane):
    """A lane that notes what its gates saw and chose."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.chosen: dict[tuple[int, Gate], NDArray[np.int64]] = {}
        self.inputs: dict[tuple[int, Gate], Floats] = {}
        self.looked: dict[int, NDArray[np.int64]] = {}

    def open_attention(self, block: int, *rest: Any) -> Any:
        self.chosen[block, "kv"], self.chosen[block, "query"] = opened = super().open_attention(block, *rest)
        self.inputs[block, "kv"] = self.inputs[block, "query"] = self.normed.copy()
        return opened

    def open_gate(self, block: int, gate: Gate, *rest: Any) -> Any:
        self.chosen[block, gate] = super().open_gate(block, gate, *rest)
        self.inputs[block, gate] = self.normed.copy()
        return self.chosen[block, gate]

    def open_projection(self, block: int, *rest: Any) -> Any:
        self.chosen[block, "proj"] = super().open_projection(block, *rest)
        return self.chosen[block, "proj"]

    def look_at(self, block: int, asked: NDArray[np.int64]) -> NDArray[np.int64]:
        self.looked[block] = super().look_at(block, asked)
        return self.looked[block]


def gated(passes: TokenPasses, cache: TokenCache, frame: Frame, **settings: Any) -> tuple[Floats, Witness]:
    lane = Witness(cache, passes.embed(frame, SPEC), **settings)
    return drain(passes.gated([lane]))[0], lane


def made(family: str, *, packed: bool) -> TokenPasses:
    network = tiny_vit(family)
    if packed:
        pack_linears(network)
    return TokenPasses(network)


@torch.inference_mode()
def attention(network: VisionTransformer, memory: BlockMemory) -> Floats:
    """Queries, keys and values of a block -> (N, D), of all rows."""
    heads, qkv = network.config.num_heads, np.concatenate((memory.query.output, memory.kv.output), axis=1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in torch.from_numpy(qkv).chunk(3, dim=-1))
    looked: Floats = scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1).flatten(1).numpy()
    return looked


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dense_pass_is_the_network_to_the_bit(family: str, packed: bool) -> None:
    passes = made(family, packed=packed)
    for frame in walk(2):
        got = drain(passes.dense(TokenCache(), passes.embed(frame, SPEC)))
        assert np.array_equal(got, network_of(passes, frame))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_gated_passes_equal_the_network_where_some_patches_change(family: str, packed: bool) -> None:
    passes, frame = made(family, packed=packed), scene(0)
    cache = dense(passes, frame)
    for step, patches in enumerate([[7], [0, 35], list(range(12)), [], list(range(36)), [20]]):
        frame = redrawn(frame, patches, seed=step)
        got, lane = gated(passes, cache, frame, exact=True)
        assert distance(got, network_of(passes, frame)) < 1e-5
        prefix, fixed = passes.network.config.prefix, [0] if passes.network.config.pool == "cls" else []
        assert lane.chosen[0, "kv"].tolist() == [*fixed, *(prefix + patch for patch in patches)]
        assert lane.counts[0].kv == len(lane.chosen[0, "kv"])


def test_exact_gated_passes_equal_the_network_on_random_rows_of_any_size() -> None:
    passes = made("timm, class token", packed=False)
    cache, random = dense(passes, scene(0)), np.random.default_rng(0)
    tokens = passes.embed(scene(0), SPEC)
    for size in (1e-3, 1.0, 30.0, 1e-2):
        rows = random.choice(len(tokens), 9, replace=False)
        tokens[rows] += random.standard_normal((9, tokens.shape[1])).astype(np.float32) * np.float32(size)
        lane = Lane(cache, tokens.copy(), exact=True)
        got = drain(passes.gated([lane]))[0]
        assert distance(got, drain(passes.dense(TokenCache(), tokens))) < 1e-5


def test_exact_gated_passes_see_a_row_of_attention_that_never_moved_before() -> None:
    """Sharp attention: most changes move no row that does not look at them, and then one does."""
    network = tiny_vit()
    with torch.no_grad():
        for block in network.layers:
            block.attn.qkv.weight[:64] *= 6
    passes, frame = TokenPasses(network), scene(0)
    cache = dense(passes, frame)
    for step in range(12):
        frame = redrawn(frame, [step, 3 * step % 36], seed=step)
        got, _ = gated(passes, cache, frame, exact=True)
        assert distance(got, network_of(passes, frame)) < 3e-5  # scores are 36 times larger, and so is their rounding


@pytest.mark.parametrize("family", FAMILIES)
def test_selected_rows_equal_a_dense_recomputation_from_the_same_inputs(family: str) -> None:
    passes = made(family, packed=False)
    cache, config = dense(passes, walk(1)[0], limit=0.4), passes.network.config
    for frame in walk(6)[1:]:
        _, lane = gated(passes, cache, frame)
        for index, (block, memory) in enumerate(zip(passes.network.layers, cache.blocks, strict=True)):
            if config.pool == "cls" and index == config.depth - 1:
                continue  # its class token is computed each time
            rows = {gate: lane.chosen[index, gate] for gate in GATES}
            for gate, memory_of in (("query", memory.query), ("kv", memory.kv), ("mlp", memory.mlp)):
                np.testing.assert_array_equal(memory_of.reference[rows[gate]], lane.inputs[index, gate][rows[gate]])
            seen = attention(passes.network, memory)
            np.testing.assert_allclose(memory.proj.reference[rows["proj"]], seen[rows["proj"]], rtol=1e-4, atol=1e-5)
            with torch.inference_mode():
                dim = config.embed_dim
                expected = {
                    "query": block.attn.qkv(torch.from_numpy(memory.query.reference))[:, :dim],
                    "kv": block.attn.qkv(torch.from_numpy(memory.kv.reference))[:, dim:],
                    "proj": block.ls1(block.attn.proj(torch.from_numpy(memory.proj.reference))),
                    "mlp": block.ls2(block.mlp(torch.from_numpy(memory.mlp.reference))),
                }
            for gate in GATES:
                stored = getattr(memory, gate).output
                np.testing.assert_allclose(stored, expected[gate].numpy(), rtol=1e-4, atol=1e-5)


def test_rows_not_selected_stay_within_their_limit() -> None:
    """But for rows of attention that were not looked at, of which some are over: their movement is predicted, not measured."""
    limit, passes = 0.4, made("timm, class token", packed=False)
    cache, drifts = dense(passes, walk(1)[0], limit), []
    for frame in walk(40)[1:]:
        _, lane = gated(passes, cache, frame)
        for index, memory in enumerate(cache.blocks):
            change = np.linalg.norm(lane.inputs[index, "kv"] - memory.kv.reference, axis=1)
            assert change.max() <= limit + 1e-5
            if index == len(cache.blocks) - 1:
                continue
            change = np.linalg.norm(lane.inputs[index, "mlp"] - memory.mlp.reference, axis=1)
            assert change.max() <= limit + 1e-5
            drift = np.linalg.norm(attention(passes.network, memory) - memory.proj.reference, axis=1)
            assert drift[lane.looked[index]].max() <= limit + 1e-5
            drifts.append(drift / limit)
    relative = np.array(drifts)
    assert np.sqrt(np.square(relative).mean()) < 1
    assert (relative > 1).mean() < 0.25
    assert (relative > 2).mean() < 0.03
    assert relative.max() < 3.5


def test_change_below_the_limit_adds_up_until_it_is_let_through() -> None:
    passes, limit = made("timm, mean", packed=False), 1.0
    cache, start = dense(passes, scene(0), limit), passes.embed(scene(0), SPEC)
    direction = np.random.default_rng(0).standard_normal(start.shape[1]).astype(np.float32)
    let_through = []
    for step in range(1, 30):
        tokens = start.copy()
        tokens[9] += direction * np.float32(0.03 * step)
        lane = Witness(cache, tokens)
        drain(passes.gated([lane]))
        let_through.append(9 in lane.chosen[0, "kv"])
    assert not let_through[0]
    assert 1 <= sum(let_through) < 15


def rules(limits: Any, cap: int = -1) -> Rules:
    """Of one gate, whose rows were all computed in the pass before."""
    limits = np.array([limits], np.float32)
    return Rules(limits, np.ones_like(limits), np.arange(limits.size), np.empty(0, np.int64), cap)


def test_a_row_may_have_moved_less_the_longer_it_was_not_computed() -> None:
    moved, gate = np.array([1.0, 0.6, 0.6], np.float32), rules([1.0, 1.0, 1.0])
    passes = [turns.take(moved, 0, gate, gate.every)[0].tolist() for _ in range(8)]
    assert passes == [[], [0], [], [0], [], [0], [], [0, 1, 2]]  # 0.6 of its limit until the fourth root of 8


def test_higher_limits_never_let_more_rows_of_a_gate_through() -> None:
    passes, frames = made("SigLIP", packed=False), walk(9)
    for frame in frames[1:]:
        before = None
        for limit in (ROUNDING, 0.1, 0.3, 1.0, 3.0):
            _, lane = gated(passes, dense(passes, frames[0], limit), frame)
            chosen = set(lane.chosen[0, "kv"].tolist())
            assert before is None or chosen <= before
            before = chosen


@pytest.mark.parametrize("row_cap", [2, 5, 9])
def test_row_cap_holds_in_every_gate_and_the_rest_is_made_up_for(row_cap: int) -> None:
    passes = made("timm, class token", packed=False)
    cache, frame = dense(passes, scene(0)), redrawn(scene(0), list(range(36)))
    expected = network_of(passes, frame)
    for _ in range(400):
        got, lane = gated(passes, cache, frame, row_cap=row_cap, exact=True)
        assert all(len(rows) <= row_cap for rows in lane.chosen.values())
        assert all(max(count.kv, count.proj, count.mlp) <= row_cap for count in lane.counts)
        if distance(got, expected) < 1e-5:
            break
    assert distance(got, expected) < 1e-5


@pytest.mark.parametrize("take", [turns.take, turns._take], ids=["compiled", "plain"])
def test_under_a_cap_the_rows_go_first_that_are_furthest_over_their_limit(take: Any) -> None:
    change, limits = np.array([2, 9, 3, 0.5, 0], np.float32), [1, 1, 1, 0.1, -1]

    def taken(cap: int, rows: list[int]) -> tuple[list[int], bool]:
        chosen, cut = take(change[rows], 0, rules(limits, cap), np.array(rows))
        return chosen.tolist(), cut

    assert taken(3, [0, 1, 2, 3, 4]) == ([1, 3, 4], True)
    assert taken(3, [0, 1, 2]) == ([0, 1, 2], False)
    assert taken(1, [0, 1, 2, 3, 4]) == ([4], True)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_changed_computes_the_class_token_alone(family: str) -> None:
    passes = made(family, packed=False)
    cache = dense(passes, scene(0))
    got, lane = gated(passes, cache, scene(0))
    lonely = 1 if passes.network.config.pool == "cls" else 0
    assert all(count.kv == count.proj == count.mlp == lonely for count in lane.counts)
    assert distance(got, network_of(passes, scene(0))) < 1e-5


def test_last_block_of_a_class_token_model_computes_that_token_alone() -> None:
    passes = made("timm, class token", packed=False)
    _, lane = gated(passes, dense(passes, scene(0)), scene(1))
    assert lane.counts[-1] == (1, 37, 1, 1, 1)
    assert lane.counts[0] == (37, 37, 37, 37, 37)


@pytest.mark.skipif(not COMPILED, reason="numba is not installed: nothing is compiled")
@pytest.mark.parametrize("row_cap", [None, 9])
@pytest.mark.parametrize("family", FAMILIES)
def test_passes_without_compiled_code_equal_those_with_it(
    family: str, row_cap: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, frames = made(family, packed=False), walk(8)

    def played() -> tuple[list[Floats], list[list[Counts]]]:
        cache = dense(passes, frames[0], limit=0.3)
        steps = [gated(passes, cache, frame, row_cap=row_cap) for frame in frames[1:]]
        return [features for features, _ in steps], [lane.counts for _, lane in steps]

    features, counts = played()
    for module in (kernels, turns):
        for name in [name for name in dir(module) if hasattr(getattr(module, name), "py_func")]:
            monkeypatch.setattr(module, name, getattr(plain, name, None) or getattr(module, f"_{name}"))
    monkeypatch.setattr(passes_module, "attend", plain_attend)
    expected, expected_counts = played()

    assert counts == expected_counts
    assert max(map(distance, features, expected)) < 1e-5


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_cameras_together_equal_each_alone(packed: bool) -> None:
    passes = made("timm, class token", packed=packed)
    alone, together = ([dense(passes, scene(seed), 0.3) for seed in range(3)] for _ in range(2))
    clips = [walk(8, seed) for seed in range(3)]
    for step in range(1, 8):
        frames = [clip[step] if camera != 1 or step % 2 else clip[step - 1] for camera, clip in enumerate(clips)]
        lanes = [Lane(cache, passes.embed(frame, SPEC)) for cache, frame in zip(together, frames, strict=True)]
        got = drain(passes.gated(lanes))
        for row, cache, frame in zip(got, alone, frames, strict=True):
            assert distance(row, gated(passes, cache, frame)[0]) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_embedded_alone_are_the_rows_of_the_whole_frame(family: str) -> None:
    passes, cache, frames = made(family, packed=True), TokenCache(), walk(6)
    cache.patches = PatchMemory(frames[0].copy(), passes.embed(frames[0], SPEC))
    cache.patch_limits = np.zeros((SIZE // PATCH) ** 2, np.float32)
    for before, frame in pairwise(frames):
        tokens, count = passes.embed_changed(cache, frame, SPEC)
        moved = np.abs(frame.astype(int) - before).reshape(SIZE // PATCH, PATCH, SIZE // PATCH, -1).any(axis=(1, 3))
        assert count == moved.sum() > 0
        np.testing.assert_allclose(tokens, passes.embed(frame, SPEC), rtol=1e-5, atol=1e-5)


def test_a_network_with_norms_behind_its_layers_is_refused() -> None:
    with pytest.raises(OptionError, match="norms in front of attention"):
        TokenPasses(tiny_vit(pre_layer_norm=False))
