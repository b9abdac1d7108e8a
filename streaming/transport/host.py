"""Where we are: the folder for sockets and counters, and whether two processes share a clock."""

import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Final

from streaming.errors import TransportError

MAX_IPC_PATH_BYTES: Final = 107
"""Linux keeps a socket's path in 108 bytes, the last of them zero."""


def runtime_dir(run: str = "") -> Path:
    """A folder of mode 0700 for sockets and counters: $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/camvec or one in /tmp.

    `run` names a folder inside, so that two daemons of one user do not meet. Raises TransportError if the folder
    cannot be made or belongs to somebody else.
    """
    base = _base_dir()
    folder = base / run
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise TransportError(
            f"cannot use {folder} for sockets: {exc.strerror}; set RUNTIME_DIRECTORY to a folder of your own"
        ) from exc
    _own(base)
    return _own(folder)


def _base_dir() -> Path:
    # systemd separates several folders by colons.
    if given := os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]:
        return Path(given)
    if user := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(user) / "camvec"
    return Path(tempfile.gettempdir()) / f"camvec-{os.geteuid()}"


def _own(folder: Path) -> Path:
    """Make `folder` ours alone; a link or another's folder at a guessable place in /tmp may be a trap."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise TransportError(
            f"expected {folder} to be a folder of user {os.geteuid()}: remove it, or set RUNTIME_DIRECTORY"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    return folder


def ipc_endpoint(folder: Path, name: str) -> str:
    """`ipc://folder/name`. Raises TransportError if the path is longer than a socket's may be."""
    endpoint = f"ipc://{folder / name}"
    check_ipc_path(endpoint)
    return endpoint


def check_ipc_path(endpoint: str) -> Path:
    """The path of an ipc:// endpoint. Raises TransportError if it cannot be one, or if anybody could connect to it."""
    path = endpoint.removeprefix("ipc://")
    size = len(os.fsencode(path))
    if size > MAX_IPC_PATH_BYTES:
        raise TransportError(
            f"expected a socket path of at most {MAX_IPC_PATH_BYTES} bytes, got {size}: {path}; "
            "set RUNTIME_DIRECTORY to a shorter one"
        )
    if path.startswith("@") or not path.startswith("/"):
        raise TransportError(f"expected ipc:// with an absolute path, got {endpoint!r}")
    return Path(path)


def host_identity() -> str:
    """Equal in two processes exactly when their CLOCK_MONOTONIC can be compared: same boot, host and time namespace."""
    boot, clock = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/time")
    parts = (
        socket.gethostname(),
        boot.read_text(encoding="ascii") if boot.exists() else "",
        str(clock.readlink()) if clock.is_symlink() else "",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
