"""Loops compiled by numba, where it is installed."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

try:
    import numba
except ImportError:
    numba = None  # type: ignore[assignment]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

COMPILED: Final = numba is not None and not getattr(numba.config, "DISABLE_JIT", False)
"""Whether the compiled loops are used: numba is there, and nobody has switched it off to look at them."""


def compiled(loops: FunctionT, plain: FunctionT) -> FunctionT:
    """`loops` compiled, its machine code kept on disk where that is possible; `plain` without numba.

    Sums may be taken in another order than written, which is what lets the compiler use vector registers. Of kept code numba
    asks whether the file of its function has changed; here it is all files that compiled code is made from.
    """
    if not COMPILED:
        return plain
    allowed = {"reassoc", "contract", "arcp", "nsz"}
    try:
        made: Any = numba.njit(cache=True, fastmath=allowed)(loops)
        kept = made._cache._cache_file  # noqa: SLF001  numba has no other name for it
        kept._source_stamp = (kept._source_stamp, _sources())  # noqa: SLF001
    except (AttributeError, RuntimeError):  # nowhere to keep it, or no way to say what it was made from
        made = numba.njit(fastmath=allowed)(loops)
    compiled: FunctionT = made
    return compiled


def sealed(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same pixels, row by row and not to be written to, as those of an image library are: loops are compiled for one kind."""
    view = np.ascontiguousarray(frame).view()
    view.flags.writeable = False
    return view


@lru_cache
def _sources() -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of each file beside this one and below: another value when code that others call has changed."""
    files = ((path.name, path.stat()) for path in sorted(Path(__file__).parent.rglob("*.py")))
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in files)
