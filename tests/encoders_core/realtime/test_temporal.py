import copy
from typing import Any

import pytest
import torch

from encoders_core.config import GateConfig, TemporalConfig
from encoders_core.errors import InputError, OptionError
from encoders_core.models.temporal import TemporalHead
from encoders_core.models.temporal_heads import SequenceHead
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder
from encoders_core.realtime.temporal import TemporalState, TemporalStepper
from tests.encoders_core.realtime.rows import Rows, moving

DIM, WINDOW, DEPTH = 24, 5, 3


@pytest.fixture(scope="module")
def head() -> TemporalHead:
    """A head whose correction is not zero, as after training."""
    head = TemporalHead(DIM, TemporalConfig(window=WINDOW, depth=DEPTH, width=32, num_heads=4)).eval()
    torch.nn.init.normal_(head.correct.weight, generator=torch.Generator().manual_seed(1))
    return head


@pytest.fixture
def stepper(head: TemporalHead) -> TemporalStepper:
    return TemporalStepper(head)


def stream(length: int, streams: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(streams, length, DIM, generator=torch.Generator().manual_seed(seed))


def run(stepper: TemporalStepper, features: torch.Tensor, state: TemporalState | None = None) -> torch.Tensor:
    state = state or stepper.new_state(features.shape[0])
    outputs = [stepper.step(state, frame) for frame in features.unbind(1)]
    return torch.stack(outputs, 1) if outputs else features


@pytest.mark.parametrize("length", range(1, 3 * WINDOW + 1))
@torch.inference_mode()
def test_steps_equal_the_batch_at_every_length_across_the_wrap(
    head: TemporalHead, stepper: TemporalStepper, length: int
) -> None:
    features = stream(length)
    torch.testing.assert_close(run(stepper, features), head(features), rtol=1e-5, atol=1e-5)


def test_chunks_do_not_matter(stepper: TemporalStepper) -> None:
    features, state = stream(13), stepper.new_state()
    parts = [run(stepper, features[:, a:b], state) for a, b in ((0, 1), (1, 8), (8, 13))]
    assert torch.equal(torch.cat(parts, 1), run(stepper, features))


@pytest.mark.parametrize("seen", [0, 1, WINDOW - 1, WINDOW, 2 * WINDOW + 3])
def test_without_update_the_output_is_the_next_and_the_state_stays_to_the_bit(
    stepper: TemporalStepper, seen: int
) -> None:
    features, state = stream(seen + 1), stepper.new_state()
    run(stepper, features[:, :seen], state)
    before = copy.deepcopy(state)
    peeked = stepper.step(state, features[:, seen], update=False)
    assert state.steps == before.steps
    assert all(torch.equal(a, b) for a, b in zip(state.rings, before.rings, strict=True))
    assert torch.equal(peeked, stepper.step(state, features[:, seen]))


def test_reset_is_a_fresh_state(stepper: TemporalStepper) -> None:
    features, state = stream(9), stepper.new_state()
    run(stepper, stream(7, seed=5), state)
    state.reset()
    assert torch.equal(run(stepper, features, state), run(stepper, features))


def test_frames_beyond_the_receptive_field_change_nothing(head: TemporalHead, stepper: TemporalStepper) -> None:
    field = head.receptive_field
    assert field == DEPTH * (WINDOW - 1) + 1
    features = stream(field + 1)
    changed = features.clone()
    changed[:, 0] *= -3  # a constant would vanish in the first norm
    outputs, others = run(stepper, features), run(stepper, changed)
    torch.testing.assert_close(outputs[:, field], others[:, field], rtol=0, atol=0)
    assert not torch.equal(outputs[:, field - 1], others[:, field - 1])


@torch.inference_mode()
def test_outputs_do_not_see_the_future(head: TemporalHead) -> None:
    features = stream(10)
    changed = features.clone()
    changed[:, 6:] *= -3
    torch.testing.assert_close(head(features)[:, :6], head(changed)[:, :6])


def test_state_does_not_grow(stepper: TemporalStepper) -> None:
    state = stepper.new_state()
    at_start = state.nbytes
    run(stepper, stream(4 * WINDOW), state)
    assert state.nbytes == at_start


def test_streams_in_step_equal_each_alone(stepper: TemporalStepper) -> None:
    together = run(stepper, stream(12, streams=3))
    for index, alone in enumerate(stream(12, streams=3).split(1)):
        torch.testing.assert_close(together[index : index + 1], run(stepper, alone), rtol=1e-5, atol=1e-5)


def test_an_untrained_head_is_the_mean_of_the_window() -> None:
    stepper = TemporalStepper(TemporalHead(DIM, TemporalConfig(window=WINDOW)))
    features = stream(9)
    torch.testing.assert_close(run(stepper, features)[:, 8], features[:, 4:].mean(1))


def test_weights_come_from_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, two = (TemporalHead(DIM, TemporalConfig(seed=7)) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.embed.weight, two.embed.weight)


def test_step_wrong_shape_says_which(stepper: TemporalStepper) -> None:
    with pytest.raises(InputError, match=r"expected features of shape \(1, 24\), got \(2, 24\)"):
        stepper.step(stepper.new_state(), torch.zeros(2, DIM))


def test_config_refuses_a_width_that_heads_do_not_share() -> None:
    with pytest.raises(OptionError, match=r"expected a multiple of num_heads \(3\), got 256"):
        TemporalConfig(num_heads=3)


@pytest.mark.parametrize("kind", ["transformer", "lstm", "gru", "conv3d"])
@pytest.mark.parametrize("skipped", ["hold", "repeat", "dt"])
def test_held_frames_are_to_every_kind_what_was_declared(kind: Any, skipped: Any) -> None:
    """Two frames in three are held; the reference is the batch computation on the sequence that the word stands for."""
    config = TemporalConfig(kind=kind, skipped=skipped, window=4, depth=2, width=16, num_heads=2)
    model = Rows()
    encoder = RealtimeVideoEncoder(model, gate=GateConfig(target_fvu=0), temporal=config)
    assert encoder._stepper is not None
    head = encoder._stepper.head
    torch.nn.init.normal_(head.correct.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    pictures = moving(6)
    found = encoder.encode_stream([picture for picture in pictures for _ in range(3)])
    assert found.temporal is not None
    assert found.held.sum() == 12
    features = torch.from_numpy(found.features * found.norms[:, None])[None]
    kept = torch.arange(0, 18, 3)
    with torch.inference_mode():
        if skipped == "repeat":
            expected = head(features)[0]
        elif skipped == "hold":
            expected = head(features[:, kept])[0].repeat_interleave(3, 0)
        else:
            assert isinstance(head, SequenceHead)
            expected = head(features[:, kept], index=kept)[0].repeat_interleave(3, 0)
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(torch.from_numpy(found.temporal), expected, rtol=1e-4, atol=1e-5)


def test_config_refuses_windows_and_words_that_cannot_be() -> None:
    for words in ({"kind": "mamba"}, {"skipped": "drop"}, {"kind": "lstm", "window": 1}):
        with pytest.raises(OptionError, match="expected"):
            TemporalConfig(**words)  # type: ignore[arg-type]
