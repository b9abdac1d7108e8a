"""Loops compiled by numba, where it is installed."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

try:
    import numba
except ImportError:
    numba = None  # type: ignore[assignment]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

COMPILED: Final = numba is not None and not getattr(numba.config, "DISABLE_JIT", False)
"""Whether the compiled loops are used: numba is there, and nobody has switched it off to look at them."""


def compiled(loops: FunctionT, plain: FunctionT) -> FunctionT:
    """`loops` compiled, its machine code kept on disk where that is possible; `plain` without numba.

    Sums may be taken in another order than written, which is what lets the compiler use vector registers. Kept code is known
    by the file of its function: whoever changes what that calls in *another* file has to delete `__pycache__`.
    """
    if not COMPILED:
        return plain
    allowed = {"reassoc", "contract", "arcp", "nsz"}
    try:
        made: Any = numba.njit(cache=True, fastmath=allowed)(loops)
    except RuntimeError:  # nowhere to keep it: compiled anew in each process
        made = numba.njit(fastmath=allowed)(loops)
    compiled: FunctionT = made
    return compiled
