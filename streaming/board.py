"""AccountBoard: a row of counters per camera in a small mapped file, so that they survive the death of any worker.

A row has two writers that never write the same counter: capture writes `captured`, the publisher all the others. Every
counter is one aligned 8-byte word, so a reader in another process sees the old value or the new one. The supervisor
alone creates the file, and allocates and frees rows.
"""

import errno
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from streaming.errors import StreamingError
from streaming.frames import DROP_CAUSES, DropCause

MAGIC: Final = b"cvboard1"
NAME_BYTES: Final = 64
COUNTERS: Final = ("captured", "accounted", "encoded", "held", "published")
_FIELDS: Final = (*COUNTERS, *DROP_CAUSES)
_WORDS: Final = NAME_BYTES // 8 + 1 + len(_FIELDS)
_HEADER_WORDS: Final = 8
MAX_CAPACITY: Final = 1 << 16


class Row:
    """The counters of one camera. Reads and writes go straight to the shared memory."""

    __slots__ = ("_at", "_words", "camera")

    def __init__(self, camera: str, words: memoryview, at: int) -> None:
        self.camera, self._words, self._at = camera, words, at

    def __getitem__(self, counter: str) -> int:
        return int(self._words[self._at + _FIELDS.index(counter)])

    def __setitem__(self, counter: str, value: int) -> None:
        self._words[self._at + _FIELDS.index(counter)] = value

    @property
    def captured(self) -> int:
        """Frames that capture numbered: the next `frame_seq`. Written by the capture worker alone."""
        return int(self._words[self._at])

    @captured.setter
    def captured(self, total: int) -> None:
        self._words[self._at] = total

    def drop(self, cause: DropCause, count: int = 1) -> None:
        """Add frames dropped by `cause`. For the publisher alone: an addition is not atomic between two writers."""
        self[cause] += count

    def totals(self) -> dict[str, int]:
        """Every counter by name: captured, accounted, encoded, held, published, and each cause of a drop."""
        return {field: self[field] for field in _FIELDS}


class AccountBoard:
    """`create` in the supervisor, `open` in the workers. Closing it unmaps: rows must not be used after that."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path, self._mapped = path, mapped
        self._words = memoryview(mapped).cast("q")
        self.capacity = int(self._words[1])

    @classmethod
    def create(cls, path: Path, capacity: int = 256) -> Self:
        """A new board of mode 0600 with room for `capacity` cameras; takes the place of an old one at `path`.

        Raises StreamingError when the disk is full or the folder cannot be written.
        """
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ValueError(f"expected a capacity of 1 to {MAX_CAPACITY}, got {capacity}")
        size = 8 * (_HEADER_WORDS + capacity * _WORDS)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                # Without this, a full disk would show as SIGBUS at the first write to the mapping.
                os.posix_fallocate(descriptor, 0, size)
                os.pwrite(descriptor, MAGIC + capacity.to_bytes(8, "little"), 0)
                mapped = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
            partial.rename(path)
        except OSError as exc:
            partial.unlink(missing_ok=True)
            raise StreamingError(_refusal(path, size, exc)) from exc
        return cls(path, mapped)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The board that another process created. Raises StreamingError if there is none or it is not a board."""
        try:
            descriptor = os.open(path, os.O_RDWR)
            try:
                size = os.fstat(descriptor).st_size
                head = os.pread(descriptor, 16, 0)
                if head[:8] != MAGIC or size != 8 * (_HEADER_WORDS + int.from_bytes(head[8:], "little") * _WORDS):
                    raise StreamingError(f"expected an account board of this version at {path}, got {size} other bytes")
                mapped = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise StreamingError(
                f"cannot open the account board {path}: {exc.strerror}; is the daemon running?"
            ) from exc
        return cls(path, mapped)

    def allocate(self, camera: str) -> Row:
        """The row of `camera`; a new one starts at zero. Raises StreamingError when the board is full."""
        name = camera.encode()
        if not 1 <= len(name) <= NAME_BYTES:
            raise ValueError(f"expected a camera name of 1 to {NAME_BYTES} bytes, got {camera!r}")
        index = self._find(camera)
        if index is None:
            index = next((i for i in range(self.capacity) if not self._words[self._start(i)]), None)
            if index is None:
                raise StreamingError(f"no room for camera {camera!r}: the board has {self.capacity} rows")
            self._fill(index, name)
        return self._row(camera, index)

    def _fill(self, index: int, name: bytes) -> None:
        start = self._start(index)
        for word in range(start + 1, start + _WORDS):
            self._words[word] = 0
        at = 8 * (start + 1)
        self._mapped[at : at + len(name)] = name
        # Last: a row is in use once all of it is there.
        self._words[start] = 1

    def row(self, camera: str) -> Row:
        """The row of a camera that the supervisor allocated. Raises KeyError."""
        index = self._find(camera)
        if index is None:
            raise KeyError(f"camera {camera!r} has no row on {self.path}")
        return self._row(camera, index)

    def free(self, camera: str) -> None:
        """Give up the row of `camera`, if it has one; call it when the camera's workers have stopped."""
        index = self._find(camera)
        if index is not None:
            self._words[self._start(index)] = 0

    def cameras(self) -> list[str]:
        """The cameras that have a row."""
        return [self._name(i) for i in range(self.capacity) if self._words[self._start(i)]]

    def totals(self, camera: str) -> dict[str, int]:
        """Every counter of `camera` by name. Raises KeyError."""
        return self.row(camera).totals()

    def close(self) -> None:
        """Unmap; the file stays for the others."""
        self._words.release()
        self._mapped.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, index: int) -> int:
        return _HEADER_WORDS + index * _WORDS

    def _name(self, index: int) -> str:
        at = 8 * (self._start(index) + 1)
        return self._mapped[at : at + NAME_BYTES].rstrip(b"\0").decode()

    def _find(self, camera: str) -> int | None:
        return next((i for i in range(self.capacity) if self._words[self._start(i)] and self._name(i) == camera), None)

    def _row(self, camera: str, index: int) -> Row:
        return Row(camera, self._words, self._start(index) + 1 + NAME_BYTES // 8)


def _refusal(path: Path, size: int, exc: OSError) -> str:
    if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"no room for {size} bytes in {path.parent}: free some space there, or set RUNTIME_DIRECTORY to another disk"
    return f"cannot create the account board {path}: {exc.strerror}; set RUNTIME_DIRECTORY to a folder of your own"
