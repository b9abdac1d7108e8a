"""sd_notify: what systemd is told about this daemon, over the datagram socket $NOTIFY_SOCKET. No dependency."""

import os
import socket
import time
from collections.abc import Mapping


def notify(*assignments: str, env: Mapping[str, str] = os.environ) -> bool:
    """Send `READY=1`, `STATUS=...`, `WATCHDOG=1`, `RELOADING=1` or `STOPPING=1`; False if nobody took it.

    Never blocks and never raises: without systemd there is nobody to tell. `RELOADING=1` gets the MONOTONIC_USEC that
    systemd wants beside it; follow it with `READY=1`. No secret belongs into a status.
    """
    address = env.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if "RELOADING=1" in assignments:
        assignments = (*assignments, f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    message = "\n".join(line.replace("\n", " ") for line in assignments).encode(errors="replace")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            # "@" stands for the zero byte that begins the name of an abstract socket.
            sender.sendto(message, "\0" + address[1:] if address.startswith("@") else address)
    except (OSError, ValueError):
        return False
    return True


def watchdog_interval_s(env: Mapping[str, str] = os.environ) -> float | None:
    """How often to send `WATCHDOG=1`, seconds: half of what systemd allows; None if it does not watch this process."""
    limit_us = env.get("WATCHDOG_USEC", "")
    if not limit_us.isascii() or not limit_us.isdigit() or int(limit_us) == 0:
        return None
    return int(limit_us) / 2e6 if env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()) else None
