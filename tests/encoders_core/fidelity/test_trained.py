"""What only trained weights can show: their attention and their sensitivity to change are those of a real network."""

import os
from pathlib import Path

import numpy as np

from encoders_core.fidelity import metrics
from encoders_core.fidelity.disturbances import drift, ghosts, texture
from encoders_core.fidelity.frame_policies import Hold, Plain
from encoders_core.fidelity.policy import Policy
from encoders_core.fidelity.reference_policies import StaleKV, TokenPolicy, over_threshold
from encoders_core.vision_encoder import VisionEncoder
from tests.encoders_core.fidelity.fidelity_gear import Frame, play, trained_subject, truth

VARIANCE = 129.0
"""Of vit-small-128 over 14 clips of 13 cameras."""


def fvu(policy: Policy, frames: list[Frame]) -> float:
    vit = trained_subject().vit
    assert vit is not None
    return metrics.fvu(truth(vit, frames), np.stack([step.features for step in play(policy, frames)]), VARIANCE)


def gated(tau: float, *, forget: bool = False) -> TokenPolicy:
    vit = trained_subject().vit
    assert vit is not None
    return TokenPolicy("tokenwise", vit, lambda: over_threshold(tau), forget=forget)


def test_the_subject_is_the_trained_model_with_its_own_preprocessing() -> None:
    subject, frame = trained_subject(), texture(128)
    vit = subject.vit
    assert vit is not None
    encoder = VisionEncoder.from_pretrained(Path(os.environ["CAMVEC_MODELS"]) / "vit-small-128")

    wanted = encoder.encode_image(frame, convert_to_numpy=True)

    np.testing.assert_allclose(Plain(vit).encode(frame), wanted, atol=1e-4)
    assert subject.encoder.descriptor.trained


def test_slow_drift_is_noticed_by_a_reference_and_missed_by_the_control() -> None:
    frames = list(drift(texture(128), 100))

    assert fvu(gated(0.02), frames) < 0.2 * fvu(gated(0.02, forget=True), frames)


def test_tokens_that_see_no_changed_context_are_the_price_of_stale_keys_and_values() -> None:
    frames = list(ghosts(texture(128), 24))
    vit = trained_subject().vit
    assert vit is not None

    assert fvu(gated(0.05), frames) < 0.1 * fvu(StaleKV(vit, 0.5), frames)


def test_token_gates_err_less_than_holding_every_second_frame() -> None:
    frames = list(ghosts(texture(128), 24, every=1))
    vit = trained_subject().vit
    assert vit is not None

    assert fvu(gated(0.05), frames) < 0.1 * fvu(Hold(vit, 2), frames)
