"""A bounded queue of payloads on disk, oldest first: what waits while the broker is away. Survives a restart.

SQLite in WAL mode: a crash loses at most what was not committed, and a damaged file is set aside, not trusted.
All methods block on the disk: call them from one thread that is not the event loop's.
"""

import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from streaming.errors import StreamingError

_OVERHEAD_BYTES: Final = 64
"""What a row costs besides its payload, about."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS item (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at_s REAL NOT NULL, size INTEGER NOT NULL,
    camera TEXT NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL
)
"""


class SpoolError(StreamingError, OSError):
    """Raised when the spool cannot be written or read: the disk is full, or the folder is not ours."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """One payload that waits."""

    id: int
    camera: str
    topic: str
    payload: bytes


class Spool:
    """At most `max_items` payloads, `max_bytes` in all, none older than `max_age_s`; the oldest go first, counted."""

    def __init__(self, directory: Path, *, max_items: int, max_bytes: int, max_age_s: float) -> None:
        self._path = directory / "embeddings.sqlite"
        self._limits = (max_items, max_bytes, max_age_s)
        self.dropped: Counter[str] = Counter()
        """Given up because of a limit, by camera."""
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = self._open()
        except (OSError, sqlite3.Error) as exc:
            raise SpoolError(f"expected a folder for the spool that can be written, got {directory}: {exc}") from exc
        self.items, size = self._db.execute("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM item").fetchone()
        self.bytes = size + self.items * _OVERHEAD_BYTES

    def append(self, items: Iterable[tuple[str, str, bytes]], *, now_s: float | None = None) -> None:
        """Add (camera, topic, payload) in order, in one transaction. Raises SpoolError; then none of them was added."""
        now_s = time.time() if now_s is None else now_s
        rows = [(now_s, len(payload), camera, topic, payload) for camera, topic, payload in items]
        with self._translated(), self._db:
            self._db.executemany("INSERT INTO item (at_s, size, camera, topic, payload) VALUES (?, ?, ?, ?, ?)", rows)
        self.items += len(rows)
        self.bytes += sum(row[1] + _OVERHEAD_BYTES for row in rows)
        self._prune(now_s)

    def oldest(self, count: int, *, after_id: int = 0, now_s: float | None = None) -> list[Spooled]:
        """Up to `count` of the oldest with an id above `after_id`; they stay until `remove`. Raises SpoolError."""
        self._prune(time.time() if now_s is None else now_s)
        query = "SELECT id, camera, topic, payload FROM item WHERE id > ? ORDER BY id LIMIT ?"
        with self._translated():
            return [Spooled(*row) for row in self._db.execute(query, (after_id, count))]

    def remove(self, ids: Sequence[int]) -> None:
        """Take them out. Raises SpoolError."""
        with self._translated(), self._db:
            for one in ids:
                self._delete("id = ?", (one,))

    def close(self) -> None:
        """Close the file; what waits stays in it."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prune(self, now_s: float) -> None:
        max_items, max_bytes, max_age_s = self._limits
        with self._translated(), self._db:
            # A clock that was set back must not make everything look like the future.
            self._count_dropped(self._delete("at_s < ? OR at_s > ?", (now_s - max_age_s, now_s + max_age_s)))
            while self.items > max_items or self.bytes > max_bytes:
                excess = max(1, self.items - max_items)
                self._count_dropped(self._delete("id IN (SELECT id FROM item ORDER BY id LIMIT ?)", (excess,)))

    def _delete(self, where: str, values: tuple[float, ...]) -> list[tuple[str, int]]:
        rows = self._db.execute(f"DELETE FROM item WHERE {where} RETURNING camera, size", values).fetchall()  # noqa: S608 - the conditions are this file's
        self.items -= len(rows)
        self.bytes -= sum(size + _OVERHEAD_BYTES for _, size in rows)
        return rows

    def _count_dropped(self, rows: list[tuple[str, int]]) -> None:
        self.dropped.update(camera for camera, _ in rows)

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.DatabaseError:
            self._path.replace(self._path.with_suffix(".damaged"))
            for leftover in ("-wal", "-shm"):
                self._path.with_name(self._path.name + leftover).unlink(missing_ok=True)
            return _connect(self._path)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise SpoolError(f"the spool {self._path} cannot be used: {exc}") from exc


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA journal_size_limit=4194304")
        db.execute(_SCHEMA)
        damage = db.execute("PRAGMA quick_check").fetchone()
        if damage != ("ok",):
            raise sqlite3.DatabaseError(damage)  # noqa: TRY301 - as SQLite itself would say it
        db.execute("SELECT id, at_s, size, camera, topic, payload FROM item LIMIT 1").fetchone()
    except BaseException:
        db.close()
        raise
    return db
