"""Layers of an encoder through oneDNN with weights laid out for it: PackedLinear, and the folded EfficientNet-Lite0."""

import torch
from torch import nn

from encoders_core.models.eager_linear import Linear
from encoders_core.models.efficientnet_packed import pack_convolutions
from encoders_core.models.layers import Mlp
from encoders_core.models.packed_linear import PackedLinear, fusible


def pack(module: nn.Module, *, compute: torch.dtype = torch.float32) -> int:
    """`pack_linears`, and in float32 the convolutions of an EfficientNet-Lite0 too, in place; how many layers."""
    convolutions = pack_convolutions(module) if compute == torch.float32 else 0
    return convolutions + pack_linears(module, compute=compute)


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
