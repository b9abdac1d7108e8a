"""Put PackedLinear in the place of an encoder's linear layers, with the activation of a feed-forward inside."""

import torch
from torch import nn

from encoders_core.models.eager_linear import Linear
from encoders_core.models.layers import Mlp
from encoders_core.models.packed_linear import PackedLinear, fusible


def pack_linears(module: nn.Module, *, compute: torch.dtype = torch.float32) -> int:
    """Replace every nn.Linear that is called as a layer, in place; how many. Weights stay shared with the old layers."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if (
                isinstance(child, nn.Linear)
                and type(child) in (nn.Linear, Linear)
                and child.weight.dtype == torch.float32
            ):
                act = fusible(parent.act) if name == "fc1" and isinstance(parent, Mlp) else None
                setattr(parent, name, PackedLinear.of(child, act, compute))
                if act is not None and isinstance(parent, Mlp):
                    parent.act = nn.Identity()
                count += 1
    return count
