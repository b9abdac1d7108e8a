"""The linear layer of the transformers here: torch's own, or oneDNN's where that is known to be faster.

torch sends float32 products to MKL. On processors that are not Intel's MKL uses AVX2; oneDNN uses AVX-512 where it is
there: 1.1 to 1.5 times as fast on an AMD EPYC with AVX-512, weights as they are, for products of more than some 20 million
multiply-adds, and up to twice as slow for small ones (docs/benchmarks.md). By rule and not by measurement, so that the same
input gives the same features in every process.
"""

from functools import lru_cache
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.models.packed_linear import packing_obstacle

LEAST_PRODUCTS: Final = 20_000_000


class Linear(nn.Linear):
    """nn.Linear, through oneDNN where `prefers_onednn`: (..., K) -> (..., N), equal but for rounding (1e-5)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: (..., K), (N, K), (N,) -> (..., N)."""
    if _suits(x, weight):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001  see packed_linear
        return out
    return F.linear(x, weight, bias)


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
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and weight.is_contiguous()
    return (
        plain
        and x.numel() * weight.shape[0] >= LEAST_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
        and prefers_onednn()
    )
