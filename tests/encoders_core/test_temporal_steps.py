"""Temporal heads frame by frame: exactly the batch computation, in constant memory, whatever the way frames come in."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders_core.errors import InputError
from encoders_core.models.rings import Ring
from encoders_core.models.temporal_heads import SequenceConfig, SequenceHead, SequenceState, _tensors

KINDS = ("transformer", "lstm", "gru", "conv3d")
ALONE = ("lstm", "gru", "conv3d")
DIM, REACH = 24, 4
WINDOW = REACH + 1


def make(kind: Any, **options: Any) -> SequenceHead:
    """A causal head as after training: its correction is large enough to be seen."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"depth": 2, "width": 16, "num_heads": 2, "max_distance": REACH, "causal": True}
    head = SequenceHead(DIM, SequenceConfig(kind=kind, **settings | options)).eval()
    for parameter in head.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return head


def stream(length: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed))


def run(head: SequenceHead, features: Tensor, state: SequenceState | None = None, gap: int = 1) -> Tensor:
    state = state or head.new_state()
    return torch.stack([head.step(state, frame, gap=gap) for frame in features.unbind(1)], 1)


def heads() -> list[Any]:
    """Every kind, alone and with its layer of attention."""
    alone = [pytest.param(make(kind, attention=False), id=f"{kind} alone") for kind in ALONE]
    return [*(pytest.param(make(kind), id=kind) for kind in KINDS), *alone]


every_head = pytest.mark.parametrize("head", heads())


@every_head
@torch.no_grad()
def test_steps_equal_the_batch_at_every_length_across_the_wrap(head: SequenceHead) -> None:
    for length in range(1, 3 * WINDOW + 1):
        features = stream(length, seed=length)
        torch.testing.assert_close(run(head, features), head(features), rtol=1e-5, atol=1e-5)


@every_head
def test_chunks_do_not_matter(head: SequenceHead) -> None:
    features, state = stream(13), head.new_state()
    parts = [run(head, features[:, a:b], state) for a, b in ((0, 1), (1, 8), (8, 13))]
    assert torch.equal(torch.cat(parts, 1), run(head, features))


@every_head
@pytest.mark.parametrize("seen", [0, 1, WINDOW - 1, WINDOW, 2 * WINDOW + 3])
def test_without_update_the_output_is_the_next_and_the_state_stays_to_the_bit(head: SequenceHead, seen: int) -> None:
    features, state = stream(seen + 1), head.new_state()
    if seen:
        run(head, features[:, :seen], state)
    before = copy.deepcopy(state)
    peeked = head.step(state, features[:, seen], update=False)
    assert (state.steps, state.index) == (before.steps, before.index) == (seen, seen)
    pairs = list(zip(_tensors([state.body, state.attention]), _tensors([before.body, before.attention]), strict=True))
    assert all(torch.equal(now, then) for now, then in pairs)
    assert bool(pairs) == (seen > 0)
    assert torch.equal(peeked, head.step(state, features[:, seen]))


@every_head
def test_reset_is_a_fresh_state(head: SequenceHead) -> None:
    features, state = stream(9), head.new_state()
    run(head, stream(7, seed=5), state)
    state.reset()
    assert torch.equal(run(head, features, state), run(head, features))


@every_head
def test_outputs_do_not_see_the_future(head: SequenceHead) -> None:
    features = stream(10)
    changed = features.clone()
    changed[:, 6:] *= -3
    with torch.no_grad():
        torch.testing.assert_close(head(features)[:, :6], head(changed)[:, :6])
    assert torch.equal(run(head, features)[:, :6], run(head, changed)[:, :6])


@every_head
def test_frames_beyond_the_receptive_field_change_nothing_and_its_last_one_does(head: SequenceHead) -> None:
    field = head.receptive_field
    assert field is not None
    features = stream(field + 1)
    changed = features.clone()
    changed[:, 0] = changed[:, 0].flip(-1)
    outputs, others = run(head, features), run(head, changed)
    assert torch.equal(outputs[:, field], others[:, field])
    assert not torch.equal(outputs[:, field - 1], others[:, field - 1])


@pytest.mark.parametrize(
    ("kind", "attention", "field"),
    [
        ("transformer", True, 2 * REACH + 1),
        ("lstm", False, REACH + 1),
        ("gru", True, 2 * REACH + 1),
        ("conv3d", False, 4),
        ("conv3d", True, 4 + REACH),
    ],
)
def test_receptive_field_is_what_the_layers_reach(kind: str, attention: bool, field: int) -> None:
    assert make(kind, attention=attention).receptive_field == field


def test_a_recurrence_without_a_limit_has_no_receptive_field_and_never_gets_warm() -> None:
    head = make("lstm", attention=False, max_distance=None)
    state = head.new_state()
    run(head, stream(50), state)
    assert head.receptive_field is None
    assert not head.is_warm(state)


@every_head
def test_state_does_not_grow_and_its_memory_stays_in_place(head: SequenceHead) -> None:
    state = head.new_state()
    run(head, stream(2), state)
    size = state.nbytes
    rings = [one.data_ptr() for one in _tensors([state.body, state.attention]) if one.shape[-2] == 2 * WINDOW]
    run(head, stream(6 * WINDOW), state)
    assert state.nbytes == size > 0
    assert rings == [one.data_ptr() for one in _tensors([state.body, state.attention]) if one.shape[-2] == 2 * WINDOW]
    # A view of a larger tensor would hide what it keeps alive: sizes are those of the storage.
    assert all(one.untyped_storage().nbytes() <= size for one in _tensors([state.body, state.attention]))


@every_head
def test_streams_in_step_equal_each_alone(head: SequenceHead) -> None:
    together = run(head, stream(12, batch=3))
    for index, alone in enumerate(stream(12, batch=3).split(1)):
        torch.testing.assert_close(together[index : index + 1], run(head, alone), rtol=1e-5, atol=1e-5)


@every_head
def test_warm_up_frames_are_told(head: SequenceHead) -> None:
    """A frame is warm from the first on that sees a whole receptive field: one frame more before it changes nothing."""
    state, told = head.new_state(), []
    for frame in stream(12).unbind(1):
        told.append(head.is_warm(state))
        head.step(state, frame)
    field = head.receptive_field
    assert field is not None
    assert told == [index >= field - 1 for index in range(12)]


@every_head
@torch.no_grad()
def test_repeat_equals_the_batch_on_the_sequence_held(head: SequenceHead) -> None:
    features = stream(5)
    held = features[:, [0, 0, 0, 1, 2, 2, 3, 4, 4]]
    torch.testing.assert_close(run(head, held), head(held), rtol=1e-5, atol=1e-5)


@every_head
@torch.no_grad()
def test_gaps_equal_the_batch_with_the_positions_that_were_skipped(head: SequenceHead) -> None:
    features, state = stream(7), head.new_state()
    gaps = [1, 1, 4, 1, 2, 9, 1]
    stepped = [head.step(state, frame, gap=gap) for frame, gap in zip(features.unbind(1), gaps, strict=True)]
    index = torch.tensor(gaps).cumsum(0) - 1
    torch.testing.assert_close(torch.stack(stepped, 1), head(features, index=index), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(torch.stack(stepped, 1), head(features), atol=1e-4)


def test_a_gap_without_positions_would_change_nothing_and_is_refused() -> None:
    head = make("lstm", position="none")
    with pytest.raises(InputError, match="expected 1, or more in a head with positions, got 2"):
        head.step(head.new_state(), stream(1)[:, 0], gap=2)


def test_ring_gives_the_last_entries_in_time_order_as_a_view() -> None:
    ring = Ring.like(torch.zeros(2, 3), 4)
    for number in range(11):
        last = ring.push(torch.full((2, 3), float(number)))
        expected = list(range(max(0, number - 3), number + 1))
        assert last[0, :, 0].tolist() == expected
        assert last.untyped_storage().data_ptr() == ring.buffer.untyped_storage().data_ptr()
