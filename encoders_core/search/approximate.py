"""Approximate nearest neighbours through usearch (HNSW, https://arxiv.org/abs/1603.09320), an optional extra."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders_core.errors import OptionError

_LEAST: Final = 64
"""Candidates fetched at least; they are scored again exactly."""


class UsearchCandidates:
    """Proposes rows that are near a query: labels in, labels out. Raises OptionError where usearch is missing."""

    def __init__(self, ndim: int) -> None:
        try:
            from usearch.index import Index  # noqa: PLC0415  optional
        except ImportError as exc:
            raise OptionError(
                "backend 'usearch' needs the package usearch: pip install 'camvec[search]' (or: pip install usearch)"
            ) from exc
        self._index: Any = Index(ndim=ndim, metric="ip", dtype="f32")

    def add(self, labels: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """(N,) new labels, (N, D) unit vectors."""
        self._index.add(labels.astype(np.uint64), vectors, threads=1)  # one thread: the same graph every time

    def remove(self, label: int) -> None:
        """Forget a vector."""
        self._index.remove(label)

    def nearest(self, query: NDArray[np.float32], k: int) -> list[int]:
        """(D,) -> labels of about the nearest, at least `k` where there are as many."""
        count = min(len(self._index), max(_LEAST, 4 * k))
        return [int(label) for label in self._index.search(query, count, threads=1).keys]
