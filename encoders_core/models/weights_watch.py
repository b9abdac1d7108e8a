"""Whether weights have changed since something was computed from them, asked at every pass and so cheaply."""

from itertools import chain
from operator import attrgetter
from typing import Any, Final

from torch import Tensor, nn

_VERSION: Final = attrgetter("_version")
"""torch's counter of changes in place: it only grows, so that of many tensors the sum will do."""


class WeightsWatch:
    """The parameters, buffers and submodules of a module as they were when this was made.

    torch does not count what is written through `.data`, nor to weights made under inference mode: neither is noticed.
    """

    def __init__(self, module: nn.Module) -> None:
        tables: list[dict[str, Any]] = []
        for one in module.modules():
            tables += (one._parameters, one._buffers, one._modules)  # noqa: SLF001  `parameters()` takes five times as long
        self._tables = [table for table in tables if table]
        self._held = self._entries()  # so that no other object gets the identity of one that was replaced
        self._tensors = [one for one in self._held if isinstance(one, Tensor)]
        self._counted = [one for one in self._tensors if not one.is_inference()]
        self._identities, self._state = list(map(id, self._held)), self._look()

    def unchanged(self) -> bool:
        """True while nothing was replaced, resized or written to."""
        return list(map(id, self._entries())) == self._identities and self._look() == self._state

    def _entries(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._tables)))

    def _look(self) -> tuple[list[int], int]:
        return list(map(Tensor.data_ptr, self._tensors)), sum(map(_VERSION, self._counted))
