"""VectorIndex: vectors with ids and payloads, searched exactly or approximately, scored by cosine, saved without pickle."""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders_core.errors import InputError, OptionError, WeightsError, WeightsNotFoundError
from encoders_core.search.approximate import UsearchCandidates
from encoders_core.weights.files import read_json, read_tensors, write_tensors

Id = int | str
Payload = Mapping[str, Any]
Backend = Literal["exact", "usearch"]

_FORMAT: Final = "camvec-index-1"


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One thing found."""

    id: Id
    score: float
    """Larger is better; for a query of unit length the cosine, -1 to 1."""
    payload: Payload

    @property
    def document(self) -> Payload:
        """The payload, under the name of what was indexed."""
        return self.payload

    @property
    def text(self) -> str:
        """The document's text; empty where it has none."""
        return str(self.payload.get("text") or "")


class VectorIndex:
    """Vectors of `ndim`, kept at unit length, with ids and payloads. `model` is the fingerprint of what made them.

    `backend` "exact" compares with all of them; "usearch" (an extra) fetches candidates from an approximate graph and
    scores those exactly. Ties are broken by id. Not safe for writing from several threads.
    """

    metric: Final = "cosine"

    def __init__(self, ndim: int, *, model: str = "", backend: Backend = "exact") -> None:
        if ndim < 1:
            raise OptionError(f"ndim: expected a positive number, got {ndim}")
        if backend not in get_args(Backend):
            raise OptionError(f"backend: expected one of {', '.join(get_args(Backend))}, got {backend!r}")
        self.ndim, self.model, self.backend = ndim, model, backend
        self._rows: NDArray[np.float32] = np.empty((0, ndim), np.float32)
        self._ids: list[Id] = []
        self._payloads: list[Payload] = []
        self._labels: list[int] = []
        self._row_of: dict[Id, int] = {}
        self._id_of: dict[int, Id] = {}
        self._next_label = 0
        self._candidates = UsearchCandidates(ndim) if backend == "usearch" else None

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, key: object) -> bool:
        return key in self._row_of

    def __repr__(self) -> str:
        return f"VectorIndex({len(self)} of {self.ndim}, {self.backend}, model={self.model!r})"

    def add(self, ids: Sequence[Id], vectors: Any, payloads: Sequence[Payload] | None = None) -> None:
        """Ids (N), vectors (N, D) of any length but zero, payloads (N); an id that is there is replaced.

        Raises InputError that names the id for NaN and zero vectors, for wrong sizes and types; then nothing is added.
        """
        rows = _unit_rows(ids, vectors, self.ndim)
        payloads = [{}] * len(ids) if payloads is None else list(payloads)
        if len(payloads) != len(ids):
            raise InputError(f"expected as many payloads as ids, {len(ids)}, got {len(payloads)}")
        self.remove([key for key in ids if key in self._row_of])
        start, count = len(self), len(ids)
        if start + count > len(self._rows):
            grown = np.empty((max(start + count, 2 * len(self._rows)), self.ndim), np.float32)
            grown[:start] = self._rows[:start]
            self._rows = grown
        self._rows[start : start + count] = rows
        labels = range(self._next_label, self._next_label + count)
        self._next_label += count
        self._ids += ids
        self._payloads += payloads
        self._labels += labels
        self._row_of |= {key: start + i for i, key in enumerate(ids)}
        self._id_of |= dict(zip(labels, ids, strict=True))
        if self._candidates is not None and count:
            self._candidates.add(np.array(labels, np.int64), rows)

    def remove(self, ids: Collection[Id]) -> None:
        """Forget these. Raises InputError for an id that is not there; then nothing is removed."""
        for key in ids:
            if key not in self._row_of:
                raise InputError(f"no vector with id {key!r} in the index")
        for key in ids:
            self._remove(key)

    def _remove(self, key: Id) -> None:
        """The last row moves to where the removed one was."""
        row, last = self._row_of.pop(key), len(self) - 1
        label = self._labels[row]
        if self._candidates is not None:
            self._candidates.remove(label)
        del self._id_of[label]
        if row != last:
            self._rows[row] = self._rows[last]
            self._ids[row], self._payloads[row] = self._ids[last], self._payloads[last]
            self._labels[row] = self._labels[last]
            self._row_of[self._ids[row]] = row
        del self._ids[last], self._payloads[last], self._labels[last]

    def search(self, query: Any, k: int = 10, *, filter: Callable[[Payload], bool] | None = None) -> list[SearchHit]:  # noqa: A002  the field's word for it
        """(D,) -> up to `k` hits, best first; the score is the dot product with the stored unit vectors.

        `filter` says of a payload whether it may be found; with it the search is exact in either backend. Raises
        InputError for a query of another size or with NaN.
        """
        vector = _floats(query)
        if vector.shape != (self.ndim,) or not np.isfinite(vector).all():
            raise InputError(f"expected a query ({self.ndim},) of finite numbers, got {vector.shape}")
        if k < 1:
            raise OptionError(f"k: expected a positive number, got {k}")
        rows = self._rows_to_score(vector, k, filter)
        scores = self._rows[: len(self)] @ vector if rows is None else self._rows[rows] @ vector
        return self._best(scores, rows, k)

    def search_batch(self, queries: Any, k: int = 10) -> list[list[SearchHit]]:
        """(N, D) -> for each row what `search` finds."""
        return [self.search(query, k) for query in _floats(queries)]

    def _rows_to_score(
        self, vector: NDArray[np.float32], k: int, allowed: Callable[[Payload], bool] | None
    ) -> NDArray[np.intp] | None:
        """Which rows come into question; None for all."""
        if allowed is not None:
            return np.array([row for row, payload in enumerate(self._payloads) if allowed(payload)], np.intp)
        if self._candidates is None or not len(self):
            return None
        labels = self._candidates.nearest(vector, k)
        return np.array([self._row_of[self._id_of[label]] for label in labels], np.intp)

    def _best(self, scores: NDArray[np.float32], rows: NDArray[np.intp] | None, k: int) -> list[SearchHit]:
        if len(scores) > k:
            kth = np.partition(scores, -k)[-k]
            chosen = np.flatnonzero(scores >= kth)  # with all that tie for the last place: the id decides
        else:
            chosen = np.arange(len(scores))
        found = [(float(scores[i]), int(i if rows is None else rows[i])) for i in chosen]
        hits = [SearchHit(self._ids[row], score, self._payloads[row]) for score, row in found]
        return sorted(hits, key=lambda hit: (-hit.score, isinstance(hit.id, str), hit.id))[:k]

    def save(self, directory: str | os.PathLike[str], *, drop: Collection[str] = ()) -> None:
        """Write `index.json` and `vectors.safetensors`, for `load`. `drop` names payload fields to leave out.

        Raises InputError that names the document and the field where a payload cannot be JSON.
        """
        payloads = [{key: value for key, value in payload.items() if key not in drop} for payload in self._payloads]
        for key, payload in zip(self._ids, payloads, strict=True):
            _check_json(key, payload)
        content = {
            "format": _FORMAT,
            "ndim": self.ndim,
            "metric": self.metric,
            "model": self.model,
            "ids": self._ids,
            "payloads": payloads,
        }
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors({"vectors": torch.from_numpy(self._rows[: len(self)].copy())}, folder / "vectors.safetensors")
        (folder / "index.json").write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, model: str | None = None, backend: Backend = "exact") -> Self:
        """An index that `save` wrote; with `model` only if its vectors are of that fingerprint.

        Raises WeightsNotFoundError, or WeightsError when the files are damaged or of another model.
        """
        folder = Path(directory)
        if not (folder / "index.json").is_file():
            raise WeightsNotFoundError(f"{folder}: no index there (index.json and vectors.safetensors)")
        content = read_json(folder / "index.json")
        if content.get("format") != _FORMAT:
            raise WeightsError(f"{folder}: expected an index of format {_FORMAT!r}, got {content.get('format')!r}")
        if model is not None and content["model"] != model:
            raise WeightsError(
                f"{folder}: its vectors are of model {content['model']!r}, the encoder here is {model!r}: index the "
                "documents again, or load the encoder that made it"
            )
        index = cls(content["ndim"], model=content["model"], backend=backend)
        vectors = read_tensors(folder / "vectors.safetensors")["vectors"]
        try:
            index.add(content["ids"], vectors, content["payloads"])
        except InputError as exc:
            raise WeightsError(f"{folder}: index.json and vectors.safetensors do not belong together: {exc}") from exc
        return index


def _floats(vectors: Any) -> NDArray[np.float32]:
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().cpu().float().numpy()
    return np.asarray(vectors, np.float32)


def _unit_rows(ids: Sequence[Id], vectors: Any, ndim: int) -> NDArray[np.float32]:
    """(N, D) of unit length, checked against their ids."""
    if len(set(ids)) != len(ids):
        raise InputError(f"expected every id once, got {next(key for key in ids if list(ids).count(key) > 1)!r} twice")
    for key in ids:
        if not isinstance(key, int | str) or isinstance(key, bool):
            raise InputError(f"expected ids to be whole numbers or strings, got {key!r}")
    rows = _floats(vectors) if len(ids) else np.empty((0, ndim), np.float32)
    if rows.shape != (len(ids), ndim):
        raise InputError(f"expected vectors ({len(ids)}, {ndim}), got {rows.shape}")
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
    if len(bad):
        raise InputError(f"the vector of id {ids[bad[0]]!r} is zero or not finite")
    unit: NDArray[np.float32] = rows / lengths
    return unit


def _check_json(key: Id, payload: Payload) -> None:
    for field, value in payload.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as exc:
            raise InputError(
                f"document {key!r}: {field!r} is a {type(value).__name__}, which cannot be saved as JSON; "
                f"leave it out with drop=({field!r},), or index with a path"
            ) from exc
