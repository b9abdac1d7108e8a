"""One daemon a node: two would read the same cameras and take each other's place at the broker."""

import fcntl
import os
from pathlib import Path

from streaming.errors import TransportError


def lock_runtime(folder: Path) -> int:
    """Take the lock of a runtime folder for the life of this process; returns its descriptor.

    Raises TransportError when another daemon holds it. The kernel gives it back whatever way we end.
    """
    descriptor = os.open(folder / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise TransportError(
            f"a daemon of this node is already running with {folder}: stop it, or give this one another `node`"
        ) from error
    return descriptor
