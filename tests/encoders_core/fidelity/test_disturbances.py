"""Each disturbance against what defends from it; the control that compares neighbours in time must fail the drift."""

from itertools import pairwise

import numpy as np
import pytest

from encoders_core.config import GateConfig
from encoders_core.fidelity import metrics
from encoders_core.fidelity.camvec_policy import Camvec
from encoders_core.fidelity.disturbances import DISTURBANCES, Frame, cut, drift, ghosts, noise, texture
from encoders_core.fidelity.frame_policies import GatedFrames
from encoders_core.fidelity.policy import Policy
from encoders_core.fidelity.reference_policies import TokenPolicy, over_threshold
from tests.encoders_core.fidelity.fidelity_gear import SIZE_PX, play, small_subject, small_vit, truth

SCENE = texture(SIZE_PX)


def tokenwise(tau: float = 0.05) -> TokenPolicy:
    return TokenPolicy("tokenwise", small_vit(), lambda: over_threshold(tau))


def stgt(tau: float = 0.05) -> TokenPolicy:
    return TokenPolicy("stgt", small_vit(), lambda: over_threshold(tau), forget=True)


def errors(policy: Policy, frames: list[Frame]) -> np.ndarray:
    """Of each frame, as a share of the clip's variance."""
    wanted = truth(small_vit(), frames)
    output = np.stack([step.features for step in play(policy, frames)])
    return metrics.squared_errors(wanted, output) / metrics.frame_variance(wanted, 0.0)


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_disturbance_is_the_same_every_time_and_has_the_size_of_its_picture(name: str) -> None:
    first, second = (list(DISTURBANCES[name](SCENE)) for _ in range(2))

    np.testing.assert_array_equal(first, second)
    assert {(frame.shape, frame.dtype.name) for frame in first} == {(SCENE.shape, "uint8")}
    assert any((one != other).any() for one, other in pairwise(first))


def test_slow_drift_is_paid_for_by_gates_with_a_reference_and_missed_by_the_control() -> None:
    frames = list(drift(SCENE, 600))

    held_to_account, forgetful = errors(tokenwise(), frames), errors(stgt(), frames)

    assert held_to_account.max() < 0.05
    assert forgetful[-100:].mean() > 10 * held_to_account[-100:].mean()
    assert forgetful[-1] > 0.3


def test_the_frame_gate_pays_for_slow_drift_too() -> None:
    gate = GatedFrames(small_vit(), GateConfig().target_fvu)

    assert errors(gate, list(drift(SCENE, 600))).mean() < 0.05


def test_error_of_gates_with_a_reference_does_not_grow_with_time() -> None:
    frames = list(noise(SCENE, 400, sigma=8))

    error = errors(tokenwise(0.2), frames)

    assert error[-100:].mean() < 1.2 * error[50:150].mean()


def test_after_a_cut_nothing_of_the_old_scene_is_left() -> None:
    frames = list(cut(SCENE, 20))

    assert errors(tokenwise(), frames)[10:].max() < 0.01


def test_whoever_goes_leaves_no_ghost() -> None:
    frames = list(ghosts(SCENE, 100))
    wanted, output = truth(small_vit(), frames), [step.features for step in play(tokenwise(0.02), frames)]

    empty = [index for index in range(100) if index // 2 % 2 == 0]
    assert metrics.squared_errors(wanted, np.stack(output))[empty].max() < 0.01 * metrics.variance(wanted)


def test_two_cameras_do_not_touch_each_other() -> None:
    first, second = list(ghosts(SCENE, 10)), list(drift(texture(SIZE_PX, 7), 10))
    alone = [[step.features for step in play(tokenwise(), frames)] for frames in (first, second)]
    policies, taking_turns = (tokenwise(), tokenwise()), ([], [])  # type: ignore[var-annotated]

    for index in range(10):
        for policy, frames, out in zip(policies, (first, second), taking_turns, strict=True):
            out.append(policy.step(frames[index], index).features)

    np.testing.assert_array_equal(taking_turns, alone)


def test_a_clock_in_the_picture_costs_a_few_tokens() -> None:
    steps = play(tokenwise(0.05), list(DISTURBANCES["counter"](texture(SIZE_PX))))

    rows = [step.detail[0, 0] for step in steps[1:] if step.detail is not None]
    assert max(rows) <= 5


def test_flicker_costs_its_own_patches_at_the_input() -> None:
    steps = play(tokenwise(0.05), list(DISTURBANCES["flicker"](SCENE)))

    rows = [step.detail[0, 0] for step in steps[1:] if step.detail is not None]
    assert max(rows) <= 1 + 9  # the sign touches 3 x 3 patches


def test_what_creeps_is_noticed_within_a_patch() -> None:
    frames = list(DISTURBANCES["small_object"](SCENE))
    policy = tokenwise(0.02)
    moved_rows = [step.detail[0, 0] for step in play(policy, frames) if step.detail is not None]

    assert sum(rows > 1 for rows in moved_rows[1:]) >= 200 * 0.2 / 16  # at least once a patch width
    assert errors(tokenwise(0.02), frames)[-1] < 0.2


# What ships, through the same disturbances.


def shipped() -> Camvec:
    return Camvec(small_subject(), GateConfig().target_fvu)


def test_what_ships_pays_for_slow_drift_at_all_times() -> None:
    assert errors(shipped(), list(drift(SCENE, 600))).max() < 0.05


@pytest.mark.parametrize("name", ["cut", "gain_step"])
def test_what_ships_is_exact_from_the_frame_on_in_which_all_changes(name: str) -> None:
    frames = list(DISTURBANCES[name](SCENE))
    policy, half = shipped(), len(frames) // 2

    played = play(policy, frames)

    wanted = truth(small_vit(), frames)
    assert metrics.squared_errors(wanted, np.stack([s.features for s in played]))[half] < 1e-6 * metrics.variance(
        wanted
    )
    assert sum(step.rows for step in played[half + 4 :]) == 0


def test_what_ships_leaves_no_ghost() -> None:
    assert errors(shipped(), list(ghosts(SCENE, 100))).max() < 0.05


def test_what_ships_computes_nothing_for_a_frozen_camera() -> None:
    played = play(shipped(), [SCENE] * 30)

    assert [step.encoded for step in played[3:]] == [False] * 27
    assert len({step.features.tobytes() for step in played[3:]}) == 1


def test_what_ships_keeps_cameras_apart() -> None:
    first, second = list(ghosts(SCENE, 12)), list(drift(texture(SIZE_PX, 7), 12))
    alone = [[step.features for step in play(shipped(), frames)] for frames in (first, second)]
    policies = (shipped(), shipped())

    turns = [
        [
            policy.step(frames[index], index * 100_000_000).features
            for policy, frames in zip(policies, (first, second), strict=True)
        ]
        for index in range(12)
    ]

    np.testing.assert_allclose([list(camera) for camera in zip(*turns, strict=True)], alone, atol=1e-6)
