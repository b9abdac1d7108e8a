"""The plain token policies: exact where they must be, and in the terms of which a fast engine is judged."""

from typing import Any

import numpy as np
import pytest
import torch

from encoders_core.errors import OptionError
from encoders_core.fidelity.disturbances import texture
from encoders_core.fidelity.policy import LINEAR, VitCost
from encoders_core.fidelity.reference_policies import StaleKV, TokenPolicy, over_threshold, random_share
from encoders_core.models.vit import VitConfig
from tests.encoders_core.fidelity.fidelity_gear import SIZE_PX, play, small_vit, truth

SCENE = texture(SIZE_PX)


def gated(tau: float, pool: str = "cls", **how: Any) -> TokenPolicy:
    return TokenPolicy("tokenwise", small_vit(pool), lambda: over_threshold(tau), **how)


def some_patches_change(count: int = 6) -> list[np.ndarray]:
    """Each frame redraws one patch; all others stay as they are, bit for bit."""
    frames = [SCENE]
    for index in range(1, count):
        frame = frames[-1].copy()
        row, column = divmod(5 * index % 16, 4)
        frame[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = texture(16, seed=index)
        frames.append(frame)
    return frames


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_threshold_zero_equals_the_plain_encoder_when_only_some_patches_change(pool: str) -> None:
    frames = some_patches_change()

    outputs = [step.features for step in play(gated(0.0, pool), frames)]

    wanted = truth(small_vit(pool), frames)
    np.testing.assert_allclose(outputs, wanted, atol=1e-5 * np.abs(wanted).max())


def test_threshold_zero_computes_only_the_changed_rows_of_the_first_gate() -> None:
    steps = play(gated(0.0), some_patches_change(3))

    assert [int(step.detail[0, 0]) for step in steps if step.detail is not None] == [
        17,
        2,
        2,
    ]  # one patch, and the class token


@pytest.mark.parametrize("tau", [0.0, 0.1, 10.0])
def test_first_frame_and_the_first_after_a_reset_are_full_and_near_the_plain_encoder(tau: float) -> None:
    policy, frames = gated(tau), [SCENE, texture(SIZE_PX, 1)]
    play(policy, frames)
    policy.reset()

    step = policy.step(frames[1], 0)

    assert step.full
    np.testing.assert_allclose(step.features, truth(small_vit(), frames)[1], rtol=1e-4, atol=1e-5)


def test_unselected_tokens_stay_within_the_threshold_of_their_reference() -> None:
    policy, tau = gated(0.2), 0.2
    for step in range(8):
        policy.step(texture(SIZE_PX, 0) // 2 + texture(SIZE_PX, step) // 2, step)
        for block in policy.blocks:
            assert float(block.qkv.owed.max()) <= tau * block.qkv.scale


@torch.inference_mode()
def test_selected_rows_equal_a_dense_recomputation_from_the_same_inputs() -> None:
    policy, encoder = gated(0.3), small_vit()
    play(policy, some_patches_change(5))

    for block, gated_block in zip(encoder.network.layers, policy.blocks, strict=True):
        reference = gated_block.qkv.reference
        assert reference is not None
        torch.testing.assert_close(gated_block.qkv.output, block.attn.qkv(reference), rtol=1e-4, atol=1e-5)


def test_higher_thresholds_compute_fewer_rows_from_the_same_state() -> None:
    rows = [play(gated(tau), [SCENE, SCENE // 2])[1].rows for tau in (0.0, 0.1, 0.3, 1.0, 100.0)]

    assert rows == sorted(rows, reverse=True)
    assert rows[-1] == 3 * 4  # the class token at every layer


def test_random_tokens_are_the_same_after_a_reset() -> None:
    policy = TokenPolicy("random", small_vit(), lambda: random_share(0.5))
    first = play(policy, some_patches_change())
    policy.reset()
    second = play(policy, some_patches_change())

    np.testing.assert_array_equal([s.features for s in first], [s.features for s in second])


def test_stale_kv_is_exact_when_everything_flows_and_not_when_context_stays_behind() -> None:
    everything = [SCENE, 255 - SCENE]
    one_patch = some_patches_change(2)

    exact = play(StaleKV(small_vit(), 0.0), everything)[1].features
    stale = play(StaleKV(small_vit(), 0.0), one_patch)[1].features

    np.testing.assert_allclose(exact, truth(small_vit(), everything)[1], rtol=1e-4, atol=1e-4)
    assert np.abs(stale - truth(small_vit(), one_patch)[1]).max() > 1e-3


def test_stale_kv_computes_the_patches_that_changed_and_the_class_token() -> None:
    steps = play(StaleKV(small_vit(), 0.0), some_patches_change(3))

    assert [int(step.detail[0, 0]) for step in steps if step.detail is not None] == [17, 2, 2]


def test_an_identical_frame_costs_the_class_token_alone() -> None:
    # Not at 0: one row alone is rounded otherwise than in a product of all, and all that look at it would follow.
    for policy in (gated(1e-5), StaleKV(small_vit(), 0.0)):
        step = play(policy, [SCENE, SCENE])[1]
        assert step.detail is not None
        assert step.detail[:, list(LINEAR)].max() == 1


def test_cost_of_a_plain_pass_is_that_of_the_layers() -> None:
    config = VitConfig(embed_dim=192, depth=12, num_heads=3, pool="mean")
    linear, attention = 12 * 197 * 12 * 192 * 192, 12 * 2 * 197 * 197 * 192

    assert VitCost.of(config).plain_macs == linear + attention + 196 * 768 * 192


def test_the_last_block_of_a_class_token_model_costs_one_row_and_two_thirds_of_qkv() -> None:
    cost = VitCost.of(VitConfig(embed_dim=192, depth=1, num_heads=3))
    keys_values = 197 * 2 * 192 * 192
    one_row = 192 * 192 + 192 * 192 + 8 * 192 * 192 + 2 * 197 * 192

    assert cost.plain_macs == keys_values + one_row + 196 * 768 * 192


def test_norms_behind_the_sums_are_refused() -> None:
    block = small_vit("cls").network.layers[0]
    block.pre_norm = False
    try:
        with pytest.raises(OptionError, match="norms in front"):
            gated(0.1)
    finally:
        block.pre_norm = True
