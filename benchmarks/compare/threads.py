"""What each thread of some processes has used, read from /proc: CPU, wake-ups, context switches."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """Of one thread, or of several that have the same part in a process."""

    cpu_ns: int
    runs: int
    """How often it was given a processor: the wake-ups, and the returns after it was put aside."""
    put_aside: int
    """Involuntary context switches: somebody else had its turn."""

    def __add__(self, other: "Usage") -> "Usage":  # type: ignore[override]
        return Usage(*(a + b for a, b in zip(self, other, strict=True)))

    def since(self, before: "Usage") -> "Usage":
        """What came on top of `before`."""
        return Usage(*(a - b for a, b in zip(self, before, strict=True)))


NOTHING = Usage(0, 0, 0)
Table = dict[tuple[int, int], tuple[str, Usage]]
"""(process, thread) -> its part and what it has used so far."""


def table(pids: Iterable[int]) -> Table:
    """All threads of these processes, now."""
    found: Table = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                found[pid, int(task.name)] = (_part(pid, task), _usage(task))
    return found


def spent(before: Table, after: Table) -> dict[int, dict[str, Usage]]:
    """Process -> part -> what its threads have used in between; of a thread that ended nothing is known."""
    sums: dict[int, dict[str, Usage]] = {}
    for key, (part, usage) in after.items():
        parts = sums.setdefault(key[0], {})
        parts[part] = parts.get(part, NOTHING) + usage.since(before.get(key, ("", NOTHING))[1])
    return sums


def _part(pid: int, task: Path) -> str:
    """`main`, `zmq` (its I/O threads and reapers), or `other`: readers of cameras, helpers of libraries."""
    if int(task.name) == pid:
        return "main"
    return "zmq" if (task / "comm").read_text().startswith("ZMQ") else "other"


def _usage(task: Path) -> Usage:
    cpu_ns, _, runs = map(int, (task / "schedstat").read_text().split())
    status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
    return Usage(cpu_ns, runs, int(status["nonvoluntary_ctxt_switches"]))
