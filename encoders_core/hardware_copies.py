"""Copies of encoders that share their weights, and weights laid out anew in such a copy."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from encoders_core.encoder import Encoder
from encoders_core.feature_cache import FeatureCache

AnyEncoder = TypeVar("AnyEncoder", bound=Encoder)


def to_channels_last(module: nn.Module) -> int:
    """Lay the kernels of all convolutions out as channels_last, in place; how many."""
    convolutions = [one for one in module.modules() if isinstance(one, nn.Conv2d)]
    for one in convolutions:  # a parameter of its own: the encoder that was copied keeps its layout
        one.weight = nn.Parameter(
            one.weight.detach().contiguous(memory_format=torch.channels_last), requires_grad=one.weight.requires_grad
        )
    return len(convolutions)


def make_contiguous(module: nn.Module) -> int:
    """How many parameters were not; those get memory of their own. Matrices may have rows or columns together."""
    count = 0
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if not (parameter.is_contiguous() or (parameter.ndim == 2 and parameter.t().is_contiguous())):
                fresh = nn.Parameter(parameter.detach().contiguous(), requires_grad=parameter.requires_grad)
                setattr(owner, name, fresh)
                count += 1
    return count


def shared_copy(encoder: AnyEncoder) -> AnyEncoder:
    """The modules anew, the parameters and buffers the very same, the cache of features empty."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    cache = encoder.memory.cache if encoder.memory else None
    if cache is not None:
        memo[id(cache)] = FeatureCache(cache.max_bytes)
    return copy.deepcopy(encoder, memo)
