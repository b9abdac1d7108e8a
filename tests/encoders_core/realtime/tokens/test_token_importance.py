from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders_core.draining import drain
from encoders_core.models.layers import Block
from encoders_core.models.vit import VisionTransformer
from encoders_core.packing import pack_linears
from encoders_core.realtime.tokens.cache import GATES, Gate
from encoders_core.realtime.tokens.importance import importance_steps
from tests.encoders_core.realtime.tiny_vits import FAMILIES, PATCH, tiny_vit

SMALL: dict[str, Any] = {"img_size": (2 * PATCH, 2 * PATCH), "embed_dim": 12, "depth": 2}


@contextmanager
def moved(block: Block, gate: Gate, by: Tensor) -> Iterator[None]:
    """Rows (N, D) are added to the input of what this gate stands before."""
    if gate in ("proj", "mlp"):
        module = block.attn.proj if gate == "proj" else block.mlp
        handle = module.register_forward_pre_hook(lambda _, inputs: (inputs[0] + by, *inputs[1:]))
    else:
        weight, dim = block.attn.qkv.weight, by.shape[1]
        part = torch.arange(3 * dim) < dim if gate == "query" else torch.arange(3 * dim) >= dim
        handle = block.attn.qkv.register_forward_hook(lambda _, __, out: out + (by @ weight.T) * part)
    try:
        yield
    finally:
        handle.remove()


def exact_importance(network: VisionTransformer, image: Tensor) -> Tensor:
    """(depth, 4, N): from the whole derivative of the features by the input of each gate."""

    def features_moved(block: Block, gate: Gate) -> Callable[[Tensor], Tensor]:
        def features(by: Tensor) -> Tensor:
            with moved(block, gate, by):
                return network.forward_head(network.forward_features(image))[0]

        return features

    rows, dim = network.embed(image).shape[1:]
    found = []
    for block in network.layers:
        for gate in GATES:
            derivative = torch.autograd.functional.jacobian(features_moved(block, gate), torch.zeros(rows, dim))
            found.append((derivative.square().sum(dim=(0, 2)) / dim).sqrt())
    return torch.stack(found).unflatten(0, (-1, len(GATES)))


def picture(seed: int = 0) -> Tensor:
    return torch.randn((1, 3, 2 * PATCH, 2 * PATCH), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_many_probes_come_close_to_the_exact_derivative(family: str) -> None:
    network = tiny_vit(family, **SMALL)
    exact = exact_importance(network, picture())
    found = drain(importance_steps(network, picture(), seed=0, probes=400)).rows
    assert found.shape == exact.shape == (2, 4, network.config.prefix + 4)
    reached = exact > 1e-6 * exact.max()
    assert (found[~reached] <= 1e-5 * exact.max()).all()
    deviation = (found[reached] / exact[reached] - 1).abs()
    assert deviation.median() < 0.05
    assert deviation.max() < 0.25


@pytest.mark.parametrize("family", FAMILIES)
def test_the_importance_of_patches_comes_close_to_the_exact_derivative(family: str) -> None:
    network = tiny_vit(family, **SMALL)
    derivative = torch.autograd.functional.jacobian(network, picture())[0, :, 0]
    squares = derivative.square().sum(dim=0).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(3)
    exact = squares.mean(dim=3).flatten(1).sqrt()

    found = drain(importance_steps(network, picture(), seed=0, probes=400)).patches

    torch.testing.assert_close(found, exact, rtol=0.15, atol=1e-6)


def test_rows_that_the_features_never_see_matter_nothing() -> None:
    """Behind the last block's attention, class-token features depend on the class token alone."""
    found = drain(importance_steps(tiny_vit(**SMALL), picture(), seed=0)).rows
    all_but_kv = [0, 2, 3]
    assert (found[-1, all_but_kv, 1:] == 0).all()
    assert (found[-1, all_but_kv, 0] > 0).all()
    assert (found[0] > 0).all()


def test_the_same_image_and_seed_give_the_same_numbers() -> None:
    network, image = tiny_vit(**SMALL), picture()
    first, again, other = (drain(importance_steps(network, image, seed=seed)) for seed in (3, 3, 4))
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


def test_measuring_leaves_the_network_and_the_global_generator_alone() -> None:
    network = tiny_vit(**SMALL)
    before, random = {key: value.clone() for key, value in network.state_dict().items()}, torch.get_rng_state()
    drain(importance_steps(network, picture(), seed=0))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_layers_give_the_same_importance(family: str) -> None:
    network = tiny_vit(family, **SMALL)
    expected = drain(importance_steps(network, picture(), seed=0))
    pack_linears(network)
    torch.testing.assert_close(drain(importance_steps(network, picture(), seed=0)), expected, rtol=1e-4, atol=1e-5)


def test_there_are_two_passes_worth_of_steps_to_stop_at() -> None:
    assert len(list(importance_steps(tiny_vit(**SMALL), picture(), seed=0))) == 2 * 2
