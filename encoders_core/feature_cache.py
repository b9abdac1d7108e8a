"""Features remembered by the content of what they were computed from: least recently used goes first, bytes bounded."""

import dataclasses
import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from encoders_core.results import EncodingResult

_ENTRY_BYTES = 512
"""What an entry costs besides its tensors: key, objects, the table's slot."""


class FeatureCache:
    """Results by key, at most `max_bytes` of them. What is put in and taken out is copied."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.nbytes, self.hits, self.misses = max_bytes, 0, 0, 0
        self._entries: OrderedDict[str, EncodingResult] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> EncodingResult | None:
        """The result, now the most recently used one, or None."""
        if key not in self._entries:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return _copied(self._entries[key])

    def put(self, key: str, result: EncodingResult) -> None:
        """Keep a copy of `result`, dropping the least recently used; one larger than the whole bound is not kept."""
        size = result_nbytes(result) + _ENTRY_BYTES
        if size > self.max_bytes or key in self._entries:
            return
        while self.nbytes + size > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.nbytes -= result_nbytes(dropped) + _ENTRY_BYTES
        self._entries[key] = _copied(result)
        self.nbytes += size

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.nbytes = 0


def content_key(content: Any, salt: str, *, text: bool = False) -> str | None:
    """64 hexadecimal digits over `salt` and the content: pixels, files' bytes, texts; None for what has no content to hash.

    A string is the name of a file, unless `text` says that it is the content.
    """
    digest = hashlib.sha256(salt.encode())
    return digest.hexdigest() if _feed(digest, content, text=text) else None


def result_nbytes(result: Any) -> int:
    """Bytes of all tensors of a result."""
    if isinstance(result, Tensor):
        return result.numel() * result.element_size()
    if isinstance(result, Mapping):
        return sum(result_nbytes(value) for value in result.values())
    if isinstance(result, EncodingResult):
        return sum(result_nbytes(getattr(result, one.name)) for one in dataclasses.fields(result))
    return 0


def result_rows(result: EncodingResult, rows: slice) -> EncodingResult:
    """Those rows of every field that has the batch in front."""
    return _mapped(result, lambda tensor: tensor[rows])


def _copied(result: EncodingResult) -> EncodingResult:
    return _mapped(result, lambda tensor: tensor.clone())


def _mapped(result: EncodingResult, change: Any) -> EncodingResult:
    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        return {key: one(item) for key, item in value.items()} if isinstance(value, Mapping) else value

    changes = {field.name: one(getattr(result, field.name)) for field in dataclasses.fields(result)}
    return dataclasses.replace(result, **changes)


def _feed(digest: Any, content: Any, *, text: bool) -> bool:
    """Put content into the digest; kinds and sizes go first, so that no two contents read the same."""
    if isinstance(content, Mapping):
        digest.update(f"mapping {len(content)} {list(content)!r}:".encode())
        return all(_feed(digest, value, text=text) for value in content.values())
    if isinstance(content, list | tuple):
        digest.update(f"list {len(content)}:".encode())
        return all(_feed(digest, value, text=text) for value in content)
    if callable(own := getattr(content, "content", None)):
        return _feed(digest, own(), text=text)
    data = _leaf(content, text=text)
    if data is not None:
        digest.update(data)
    return data is not None


def _leaf(content: Any, *, text: bool) -> bytes | None:
    if isinstance(content, str | os.PathLike):
        return f"text {len(str(content))}:{content}".encode() if text else _file(Path(content))
    if isinstance(content, EncodingResult):
        content = content.features
    if isinstance(content, Tensor):
        plain = content.detach().float() if content.dtype.itemsize == 2 else content.detach()
        content, kind = plain.numpy(force=True), f"tensor {content.dtype}"  # channels lie elsewhere than in an array
    else:
        kind = "array"
    if isinstance(content, np.ndarray) and not content.dtype.hasobject:
        return f"{kind} {content.dtype} {content.shape}:".encode() + np.ascontiguousarray(content).tobytes()
    if hasattr(content, "getbands"):
        pixels: bytes = content.convert("RGBA").tobytes()
        return f"picture {content.mode} {content.size}:".encode() + pixels
    return f"{content!r};".encode() if content is None or isinstance(content, bool | int | float) else None


def _file(path: Path) -> bytes | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return b"file " + hashlib.file_digest(file, "sha256").digest()
