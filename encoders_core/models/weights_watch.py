"""Whether weights have changed since something was computed from them, asked at every pass and so cheaply."""

from collections.abc import Iterator
from itertools import chain
from operator import attrgetter, is_
from typing import Any, Final

from torch import Tensor, nn

_VERSION: Final = attrgetter("_version")
"""torch's counter of changes in place: it only grows, so that of many tensors the sum will do."""
_END: Final = object()
"""Stands behind the last entry: one more or one less is seen by it."""


class WeightsWatch:
    """The parameters, buffers and submodules of a module as they were when this was made.

    torch does not count what is written through `.data`, nor to weights made under inference mode: neither is noticed.
    """

    def __init__(self, module: nn.Module) -> None:
        tables: list[dict[str, Any]] = []
        for one in module.modules():
            tables += (one._parameters, one._buffers, one._modules)  # noqa: SLF001  see below
        # Values of a dict show what is in it now; `parameters()` takes five times as long.
        self._tables = [table.values() for table in tables if table]
        self._held = list(self._entries())  # so that no other object gets the identity of one that was replaced
        self._tensors = [one for one in self._held if isinstance(one, Tensor) and not _counts_batches(one)]
        self._counted = [one for one in self._tensors if not one.is_inference()]
        self._state = self._look()

    def unchanged(self) -> bool:
        """True while nothing was replaced, resized or written to."""
        return all(map(is_, self._entries(), self._held)) and self._look() == self._state

    def _entries(self) -> Iterator[Any]:
        return chain(chain.from_iterable(self._tables), (_END,))

    def _look(self) -> tuple[int, int]:
        return hash(tuple(map(Tensor.data_ptr, self._tensors))), sum(map(_VERSION, self._counted))


def _counts_batches(tensor: Tensor) -> bool:
    """Whether it is what a BatchNorm counts its batches in, which no output depends on."""
    return tensor.ndim == 0 and not tensor.is_floating_point()
