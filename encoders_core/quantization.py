"""Linear layers with 8-bit weights and activations, for CPUs: FBGEMM's kernels, through torch's own operators."""

import warnings
from typing import Any, Self

import torch
from torch import Tensor, nn

from encoders_core.models.eager_linear import Linear
from encoders_core.models.packed_linear import weights_state


class Int8Linear(nn.Linear):
    """nn.Linear that computes in int8 where no gradients are wanted: (..., D) float32 -> (..., D') float32.

    Weights are symmetric with one scale a row, activations are quantised as they come, in 7 bits, because sums of 8-bit
    products saturate on CPUs without VNNI. It shares the float weights of the layer it stands for: gradients and saving
    go through them, and when they change they are quantised again. So it is faster, not smaller.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """The same layer in int8."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_features, made.out_features = linear.in_features, linear.out_features
        made.weight, made.bias = linear.weight, linear.bias
        made.training = linear.training
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D')."""
        if torch.is_grad_enabled() or x.dtype != torch.float32 or x.device.type != "cpu" or not x.numel():
            return super().forward(x)
        out: Tensor = torch.ops.quantized.linear_dynamic(x, self._packed(), reduce_range=True)
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_int8", "_of")}

    def _packed(self) -> Any:
        """The weights as FBGEMM wants them, made anew when they or the bias have changed."""
        parts = (self.weight,) if self.bias is None else (self.weight, self.bias)
        state = weights_state(parts)
        if self.__dict__.get("_of") != state:
            weight = self.weight.detach()
            scales = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12).double()
            zeros = torch.zeros_like(scales, dtype=torch.long)
            with warnings.catch_warnings():
                # Deprecated, but what FBGEMM's operators take in every torch that this package allows.
                warnings.filterwarnings("ignore", message="torch.quantize_per_tensor", category=UserWarning)
                rows = torch.quantize_per_channel(weight.contiguous(), scales, zeros, 0, torch.qint8)
            bias = None if self.bias is None else self.bias.detach()
            self.__dict__.update(_int8=torch.ops.quantized.linear_prepack(rows, bias), _of=state)
        return self.__dict__["_int8"]


def to_int8(module: nn.Module) -> int:
    """Put Int8Linear in the place of every nn.Linear inside, in place; how many."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and type(child) in (nn.Linear, Linear):
                setattr(parent, name, Int8Linear.of(child))
                count += 1
    return count
