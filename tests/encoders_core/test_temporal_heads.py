"""The temporal heads over clips: identity until trained, exact frame by frame, masks, reach."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders_core.errors import InputError, OptionError
from encoders_core.models.temporal_heads import SequenceConfig, SequenceHead
from encoders_core.models.temporal_pooling import TemporalPool, check_mask

KINDS = ("transformer", "lstm", "gru", "conv3d")
DIM = 24


def make(kind: Any, **options: Any) -> SequenceHead:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"depth": 2, "width": 16, "num_heads": 2, "max_distance": 4, "max_frames": 32}
    return SequenceHead(DIM, SequenceConfig(kind=kind, **settings | options)).eval()


def trained(head: SequenceHead) -> SequenceHead:
    """One whose correction is no longer zero, with weights large enough to be seen."""
    torch.manual_seed(1)
    for parameter in head.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return head


def clip(length: int = 12, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(length))


def changed_frames(head: SequenceHead, x: Tensor, frame: int) -> list[int]:
    """Which outputs depend on `frame`."""
    with torch.no_grad():
        moved = x.clone()
        moved[:, frame] = moved[:, frame].flip(-1)  # the norm in front would not notice a constant
        difference = (head(moved) - head(x)).abs().amax(dim=(0, 2))
    return [index for index, value in enumerate(difference.tolist()) if value > 1e-6]


@pytest.mark.parametrize("kind", KINDS)
def test_head_untrained_is_the_identity(kind: str) -> None:
    x = clip()
    assert torch.equal(make(kind)(x), x)
    assert not torch.allclose(trained(make(kind))(x), x)


@pytest.mark.parametrize("kind", KINDS)
def test_head_untrained_learns_from_its_first_step_on(kind: str) -> None:
    head = make(kind)
    head(clip()).square().mean().backward()
    assert head.correct.weight.grad is not None
    assert float(head.correct.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("position", ["sinusoidal", "learnable", "none"])
def test_causal_head_frame_by_frame_equals_the_batch(kind: str, attention: bool, position: str) -> None:
    attention = attention or kind == "transformer"
    head, x = trained(make(kind, causal=True, attention=attention, position=position)), clip(15)
    state = head.new_state()
    stepped = torch.stack([head.step(state, frame) for frame in x.unbind(1)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(stepped, head(x), atol=1e-5, rtol=0)
    state.reset()
    torch.testing.assert_close(head.step(state, x[:, 0]), stepped[:, 0])


def test_causal_conv3d_over_maps_frame_by_frame_equals_the_batch() -> None:
    config = SequenceConfig(kind="conv3d", depth=3, width=16, num_heads=2, causal=True)
    head = trained(SequenceHead(DIM, config, map_dim=8).eval())
    x, maps = clip(10), torch.randn(2, 10, 3, 4, 8)
    state = head.new_state()
    stepped = [head.step(state, frame, grid) for frame, grid in zip(x.unbind(1), maps.unbind(1), strict=True)]
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(stepped, dim=1), head(x, maps=maps), atol=1e-5, rtol=0)
        assert not torch.allclose(head(x, maps=maps), head(x, maps=maps.flip(2)))
    with pytest.raises(InputError, match=r"feature maps \(B, T, h, w, 8\)"):
        head(x)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrence_without_limit_carries_its_state(kind: str) -> None:
    head, x = trained(make(kind, causal=True, attention=False, max_distance=None)), clip(20)
    state = head.new_state()
    stepped = torch.stack([head.step(state, frame) for frame in x.unbind(1)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(stepped, head(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_causal_head_looks_back_only_and_others_both_ways(kind: str) -> None:
    assert min(changed_frames(trained(make(kind, causal=True)), clip(), 6)) == 6
    assert min(changed_frames(trained(make(kind)), clip(), 6)) < 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False])
def test_max_distance_bounds_what_a_frame_takes_from(kind: str, causal: bool) -> None:
    options = {"depth": 1, "attention": kind == "transformer", "max_distance": 2, "causal": causal}
    near = changed_frames(trained(make(kind, **options)), clip(12), 6)
    assert set(near) <= set(range(6 if causal else 4, 9))
    options |= {"depth": 3 if kind == "conv3d" else 1, "max_distance": 5}
    assert len(changed_frames(trained(make(kind, **options)), clip(12), 6)) > len(near)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(kind: str, causal: bool) -> None:
    head, x = trained(make(kind, causal=causal)), clip(9)
    padded = torch.cat((x, 7 * torch.ones(2, 4, DIM)), dim=1)
    mask = torch.arange(13).expand(2, -1) < 9
    with torch.no_grad():
        torch.testing.assert_close(head(padded, mask)[:, :9], head(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_frame_in_the_middle_is_not_looked_at(kind: str) -> None:
    head, x = trained(make(kind)), clip(9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, 4] = False
    moved = x.clone()
    moved[:, 4] += 5
    others = [index for index in range(9) if index != 4]
    with torch.no_grad():
        torch.testing.assert_close(head(moved, mask)[:, others], head(x, mask)[:, others], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_make_order_matter_where_nothing_else_does(kind: str) -> None:
    head = trained(make(kind, max_distance=31))
    still = torch.ones(1, 6, DIM).cumsum(-1)
    without = trained(make(kind, max_distance=31, position="none"))
    with torch.no_grad():
        difference = (head(still)[0, 2] - head(still)[0, 3]).abs().max()
        assert difference > 1e-4
        if kind == "transformer":
            torch.testing.assert_close(without(still)[0, 0], without(still)[0, 5])


def test_learnable_positions_end_and_say_so() -> None:
    with pytest.raises(InputError, match="holds 32 frames, got 33"):
        make("lstm", position="learnable")(clip(33))


@pytest.mark.parametrize("kind", ["lstm", "gru", "conv3d"])
def test_temporal_attention_behind_other_kinds_is_a_layer_of_its_own(kind: str) -> None:
    weights: list[Tensor] = []
    make(kind, attention=True)(clip(), attention=weights)
    assert [tuple(one.shape) for one in weights] == [(2, 2, 12, 12)]
    make(kind, attention=False)(clip(), attention=(none := []))
    assert none == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "mamba"}, "transformer, lstm, gru, conv3d"),
        ({"position": "rotary"}, "sinusoidal, learnable, none"),
        ({"max_distance": 0}, "max_temporal_distance"),
        ({"attention": False}, "a transformer consists of it"),
        ({"num_heads": 5}, "5 heads"),
    ],
)
def test_config_refuses_what_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        dataclasses.replace(SequenceConfig(), **change)


def test_step_is_refused_where_it_cannot_be_exact() -> None:
    with pytest.raises(OptionError, match="causal=True"):
        make("lstm").new_state()
    with pytest.raises(OptionError, match="max_temporal_distance"):
        make("transformer", causal=True, max_distance=None).new_state()


@pytest.mark.parametrize("how", ["attention", "mean", "lstm"])
def test_pool_untrained_is_the_mean_of_the_frames_that_count(how: Any) -> None:
    x, mask = clip(8), torch.arange(8).expand(2, -1) < torch.tensor([[5], [8]])
    pooled, weights = TemporalPool(DIM)(x, mask, how)
    torch.testing.assert_close(pooled[0], x[0, :5].mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(pooled[1], x[1].mean(0), atol=1e-6, rtol=0)
    assert (weights is None) == (how == "lstm")


def test_pool_max_weighs_frames_by_their_share_of_dimensions() -> None:
    x, mask = clip(8), torch.ones(2, 8, dtype=torch.bool)
    pooled, weights = TemporalPool(DIM)(x, mask, "max")
    assert weights is not None
    torch.testing.assert_close(pooled, x.amax(1))
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    mask[:, 0] = False
    x[:, 0] = 99
    assert float(TemporalPool(DIM)(x, mask, "max")[0].max()) < 99


def test_pool_trained_attention_and_lstm_leave_the_mean() -> None:
    pool, x, mask = TemporalPool(DIM), clip(8), torch.ones(2, 8, dtype=torch.bool)
    nn.init.normal_(pool.score.weight)
    nn.init.normal_(pool.correct.weight)
    mean = x.mean(1)
    for how in ("attention", "lstm"):
        assert not torch.allclose(pool(x, mask, how)[0], mean, atol=1e-3)
    order = torch.tensor([3, 1, 0, 2, 4, 5, 7, 6])
    assert not torch.allclose(pool(x, mask, "lstm")[0], pool(x[:, order], mask, "lstm")[0], atol=1e-3)


def test_pool_lstm_ignores_padding() -> None:
    pool, x = TemporalPool(DIM), clip(6)
    nn.init.normal_(pool.correct.weight)
    padded = torch.cat((x, torch.full((2, 3, DIM), 9.0)), dim=1)
    mask = torch.arange(9).expand(2, -1) < 6
    torch.testing.assert_close(pool(padded, mask, "lstm")[0], pool(x, mask[:, :6], "lstm")[0], atol=1e-5, rtol=0)


def test_pool_motion_draws_attention() -> None:
    x, mask = clip(4, 1), torch.ones(1, 4, dtype=torch.bool)
    weights = TemporalPool(DIM).weights(x, mask, torch.tensor([[0.0, 0.0, 0.0, 8.0]]))
    assert int(weights.argmax()) == 3
    still = TemporalPool(DIM).weights(x, mask, torch.full((1, 4), 3.0))
    torch.testing.assert_close(still, torch.full((1, 4), 0.25))


def test_pool_without_any_frame_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one frame"):
        check_mask(torch.tensor([[True, False], [False, False]]))
