"""The linear layer of the transformers here: torch's own, or oneDNN's where that is known to be faster.

torch sends float32 products to MKL. On processors that are not Intel's MKL uses AVX2; oneDNN uses AVX-512 where it is
there. Of weights whose columns lie together in memory it makes a product 1.1 to 1.9 times as fast on an AMD EPYC with
AVX-512; for very small products it is slower, and with weights as they come faster for large ones only
(docs/benchmarks.md). By rule and not by measurement, so that the same input gives the same features in every process.
"""

from functools import lru_cache
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.models.packed_linear import FUSED, activated, packing_obstacle

LEAST_PRODUCTS: Final = 20_000_000
"""Multiply-adds from which oneDNN is faster with weights as they come, rows together."""
LEAST_BY_COLUMNS: Final = 500_000
"""The same for weights with columns together."""


class Linear(nn.Linear):
    """nn.Linear, then `act`, through oneDNN where `prefers_onednn`: (..., K) -> (..., N), equal but for rounding (1e-5)."""

    def forward(self, x: Tensor, act: str | None = None) -> Tensor:
        """(..., K) -> (..., N)."""
        return linear(x, self.weight, self.bias, act)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str | None = None) -> Tensor:
    """`F.linear`, then an activation that can be fused: (..., K), (N, K), (N,) -> (..., N)."""
    if _suits(x, weight):
        name, kind = FUSED[act]
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], kind)  # noqa: SLF001  see packed_linear
        return out
    return activated(F.linear(x, weight, bias), act)


def lay_out(module: nn.Module) -> int:
    """Put the columns of every `Linear`'s weight together in memory, in place, where it helps; of how many.

    Values, names and shapes stay, and so does the size: it is no second copy, as `PackedLinear` has.
    """
    layers = [one for one in module.modules() if isinstance(one, Linear)] if prefers_onednn() else []
    for one in layers:
        one.weight.data = one.weight.data.t().contiguous().t()
    return len(layers)


@lru_cache
def prefers_onednn() -> bool:
    """Whether oneDNN's float32 products are known to be faster than those that torch takes, and are there and right."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        vendor = Path("/proc/cpuinfo").read_text("ascii", errors="replace")
    except OSError:
        return False
    return "AuthenticAMD" in vendor and packing_obstacle() is None


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Only where nothing but numbers is wanted: no gradients, no tracing, no other precision, and a large product."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.numel() * weight.shape[0] >= _least_products(weight)
        and x.dtype is weight.dtype is torch.float32
        and x.is_cpu
        and prefers_onednn()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def _least_products(weight: Tensor) -> float:
    """By layout; none are enough for a part of a weight with columns together: oneDNN has no fast way for those."""
    if weight.is_contiguous():
        return LEAST_PRODUCTS
    return LEAST_BY_COLUMNS if weight.stride() == (1, weight.shape[0]) else float("inf")
