"""Linear layers for inference on CPUs through oneDNN directly: weights laid out once, the activation inside the product.

`torch.ops.mkldnn` is what torch.compile itself emits on CPU; it is no public interface, so `packing_obstacle` checks it
against the plain layer before it is used. torch sends float32 products to MKL, which uses AVX2 on processors that are not
Intel's; oneDNN uses AVX-512 and bfloat16 wherever they are.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final, Self, cast

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.errors import OptionError

FUSED: Final = {None: ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", "")}
"""Activation -> what oneDNN calls it."""
_TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


class PackedLinear(nn.Linear):
    """nn.Linear, then `act`, through oneDNN where no gradients are wanted: (..., K) float32 -> (..., N) float32.

    `compute` is float32, equal to the plain layer but for rounding (1e-5), or bfloat16, with sums in float32 (cosine about
    0.9999 through a whole ViT). Any number of rows works; the layout is made for that of the first call. The float weights
    are shared with the layer it stands for: gradients and saving go through them, and when they change they are packed
    again. So it is faster, not smaller: the packed weights are a second copy.
    """

    act: str | None
    compute: torch.dtype

    @classmethod
    def of(cls, linear: nn.Linear, act: str | None = None, compute: torch.dtype = torch.float32) -> Self:
        """The same layer, packed. Raises OptionError for an activation that cannot be fused."""
        return cls.from_weights(linear.weight, linear.bias, act, compute).train(linear.training)

    @classmethod
    def from_weights(
        cls, weight: Tensor, bias: Tensor | None, act: str | None = None, compute: torch.dtype = torch.float32
    ) -> Self:
        """A layer of weight (N, K) and bias (N,), which it shares when they are parameters."""
        if act not in FUSED or compute not in _TOLERANCE:
            raise OptionError(f"expected an activation of {list(FUSED)} and float32 or bfloat16, got {act}, {compute}")
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.out_features, made.in_features = weight.shape
        made.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        fixed = bias is None or isinstance(bias, nn.Parameter)
        made.register_parameter("bias", bias if fixed else nn.Parameter(bias, requires_grad=False))  # type: ignore[arg-type]
        made.act, made.compute = act, compute
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        if not self._suits(x):
            return activated(super().forward(x), self.act)
        weight, bias = self._packed(x.numel() // self.in_features)
        name, kind = FUSED[self.act]
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.compute), weight, bias, name, [], kind)  # noqa: SLF001  see the module
        return out.to(x.dtype)

    def frozen(self, rows: int) -> Callable[[Tensor], Tensor]:
        """The same as a plain function, for inference with weights that stay: (M, K) float32 -> (M, N) float32, M > 0.

        Laid out for about `rows` rows; a call costs half of what `forward` costs beside the product.
        """
        weight, bias = self._packed(rows)
        name, kind = FUSED[self.act]
        product, compute, nothing = torch.ops.mkldnn._linear_pointwise.default, self.compute, list[Any]()  # noqa: SLF001  see the module
        if compute == torch.float32:
            return lambda x: cast("Tensor", product(x, weight, bias, name, nothing, kind))
        return lambda x: cast("Tensor", product(x.to(compute), weight, bias, name, nothing, kind)).to(x.dtype)

    def _suits(self, x: Tensor) -> bool:
        plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not x.numel()
        return not plain and x.dtype == self.weight.dtype == torch.float32 and x.device.type == "cpu"

    def _packed(self, rows: int) -> tuple[Tensor, Tensor | None]:
        """Weight as oneDNN wants it, and bias; made anew when they have changed."""
        parts = (self.weight,) if self.bias is None else (self.weight, self.bias)
        state = weights_state(parts)
        if self.__dict__.get("_of") != state:
            weight = self.weight.detach().to(self.compute).contiguous()
            laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, rows)  # noqa: SLF001  see the module
            bias = None if self.bias is None else self.bias.detach().to(self.compute)
            self.__dict__.update(_layout=(laid_out, bias), _of=state)
        layout: tuple[Tensor, Tensor | None] = self.__dict__["_layout"]
        return layout

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_layout", "_of")}


def weights_state(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Another value whenever one of these was replaced or changed in place (made under inference mode: replaced)."""
    return tuple((one.data_ptr(), 0 if one.is_inference() else one._version) for one in tensors)  # noqa: SLF001  torch's counter of changes has no other name


@lru_cache
def packing_obstacle(compute: torch.dtype = torch.float32) -> str | None:
    """Why PackedLinear cannot be used with this torch on this CPU; None where it runs and agrees with nn.Linear."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((48, 64), (48,), (5, 64)))
    try:
        with torch.no_grad():
            for act in FUSED:
                got = PackedLinear.from_weights(weight, bias, act, compute)(x)
                expected = activated(F.linear(x, weight, bias), act)
                if not float((got - expected).norm()) <= _TOLERANCE[compute] * float(expected.norm()):
                    return f"oneDNN's linear layer with activation {act} differs from torch's own"
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as exc:
        return f"this torch has no packed linear layers: {str(exc).splitlines()[0]}"
    return None


def activated(x: Tensor, act: str | None) -> Tensor:
    """The activation called so in `FUSED`, by torch: any shape -> same shape."""
    if act is None:
        return x
    return F.relu(x) if act == "relu" else F.gelu(x, approximate=FUSED[act][1])


def fusible(act: nn.Module) -> str | None:
    """What `FUSED` calls this activation; None for those that oneDNN does not compute with a product."""
    if type(act) is nn.GELU:
        return "gelu_tanh" if act.approximate == "tanh" else "gelu"
    return "relu" if type(act) is nn.ReLU else None
