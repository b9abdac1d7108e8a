"""A watch notices every way in which weights change, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from encoders_core.models.weights_watch import WeightsWatch


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))


def swap_data(module: nn.Module) -> None:
    module.get_parameter("2.1.bias").data = torch.zeros(2)


def exchange_data(module: nn.Module) -> None:
    one, other = module.get_parameter("1.weight"), module.get_parameter("1.bias")
    one.data, other.data = other.data, one.data


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a step of training": lambda module: module.get_parameter("0.weight").mul_(2),
    "other values loaded": lambda module: module.load_state_dict(make().state_dict()),
    "other tensors loaded": lambda module: module.load_state_dict(make().state_dict(), assign=True),
    "another parameter": lambda module: setattr(module[0], "bias", nn.Parameter(torch.zeros(4))),  # type: ignore[index]
    "another layer": lambda module: setattr(module, "2", nn.Identity()),
    "a layer within": lambda module: setattr(module[2], "0", nn.GELU()),  # type: ignore[index]
    "statistics of a norm": lambda module: module.get_buffer("1.running_mean").add_(1),
    "other memory": swap_data,
    "memory exchanged": exchange_data,
    "one layer more": lambda module: module[2].append(nn.ReLU()),  # type: ignore[index]
    "one layer less": lambda module: module[2].pop(1),  # type: ignore[index]
}


@pytest.mark.parametrize("change", CHANGES)
def test_watch_notices(change: str) -> None:
    module = make()
    watch = WeightsWatch(module)
    assert watch.unchanged()
    with torch.no_grad():
        module.eval()(torch.randn(2, 3))
        assert watch.unchanged()
        CHANGES[change](module)
    assert not watch.unchanged()
    assert WeightsWatch(module).unchanged()


def test_weights_made_under_inference_mode_can_be_watched() -> None:
    with torch.inference_mode():
        module = make()
    watch = WeightsWatch(module)
    assert watch.unchanged()
    module[0].weight = nn.Parameter(torch.zeros(4, 3))  # type: ignore[index]
    assert not watch.unchanged()
