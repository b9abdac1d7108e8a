"""The engine against the plain policies: at the same selection of rows the same vectors, and the same rows counted."""

from collections.abc import Callable

import numpy as np
import pytest

from encoders_core.fidelity.disturbances import DISTURBANCES, texture
from encoders_core.fidelity.engine_policies import EngineRandom, EngineStaleKV, EngineThreshold
from encoders_core.fidelity.policy import Policy
from encoders_core.fidelity.reference_policies import Selector, StaleKV, TokenPolicy, over_threshold, random_share
from encoders_core.fidelity.subject import DenseVitEncoder
from tests.encoders_core.fidelity.fidelity_gear import SIZE_PX, play, small_vit

PAIRS: dict[str, tuple[Callable[[], Selector], Callable[[DenseVitEncoder], Policy]]] = {
    "strict": (lambda: over_threshold(0.02), lambda vit: EngineThreshold(vit, 0.02)),
    "lax": (lambda: over_threshold(0.3), lambda vit: EngineThreshold(vit, 0.3)),
    "random": (lambda: random_share(0.4), lambda vit: EngineRandom(vit, 0.4)),
}


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("scene", ["counter", "noise", "small_object", "cut"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_engine_equals_the_plain_gates_at_the_same_selection(name: str, scene: str, pool: str) -> None:
    frames, vit = list(DISTURBANCES[scene](texture(SIZE_PX)))[:24], small_vit(pool)

    selector, engine_of = PAIRS[name]

    plain = play(TokenPolicy(name, vit, selector), frames)
    engine = play(engine_of(vit), frames)

    rows = [np.asarray([step.detail for step in steps]) for steps in (plain, engine)]
    assert (rows[0] != rows[1]).mean() < 0.01  # an input within rounding of its threshold
    features = [np.asarray([step.features for step in steps]) for steps in (plain, engine)]
    np.testing.assert_allclose(*features, atol=2e-3 * np.abs(features[0]).max())


@pytest.mark.parametrize("scene", ["counter", "noise", "ghosts"])
def test_the_engine_equals_plain_stale_keys_and_values(scene: str) -> None:
    frames = list(DISTURBANCES[scene](texture(SIZE_PX)))[:24]

    plain, engine = (play(kind(small_vit(), 1.0), frames) for kind in (StaleKV, EngineStaleKV))

    np.testing.assert_array_equal([step.detail for step in plain], [step.detail for step in engine])
    features = [np.asarray([step.features for step in steps]) for steps in (plain, engine)]
    np.testing.assert_allclose(*features, atol=1e-4 * np.abs(features[0]).max())
