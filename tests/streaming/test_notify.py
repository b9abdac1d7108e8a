"""What systemd hears, through a real datagram socket."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streaming.notify import notify, watchdog_interval_s


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@camvec-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0", 1))
        receiver.settimeout(5)
        yield receiver, address


@pytest.mark.parametrize("assignments", [("READY=1", "STATUS=2 cameras"), ("WATCHDOG=1",), ("STOPPING=1",)])
def test_assignments_arrive_as_one_datagram(systemd: tuple[socket.socket, str], assignments: tuple[str, ...]) -> None:
    receiver, address = systemd
    assert notify(*assignments, env={"NOTIFY_SOCKET": address})
    assert receiver.recv(4096).decode().split("\n") == list(assignments)


def test_reload_tells_when_it_began(systemd: tuple[socket.socket, str]) -> None:
    receiver, address = systemd
    before_us = time.monotonic_ns() // 1000
    assert notify("RELOADING=1", env={"NOTIFY_SOCKET": address})
    reloading, began = receiver.recv(4096).decode().split("\n")
    assert reloading == "RELOADING=1"
    assert before_us <= int(began.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_status_stays_one_line(systemd: tuple[socket.socket, str]) -> None:
    receiver, address = systemd
    notify("STATUS=one\ntwo é", env={"NOTIFY_SOCKET": address})
    assert receiver.recv(4096).decode() == "STATUS=one two é"


@pytest.mark.parametrize(
    "address", ["", "relative", "/nowhere/notify", "@camvec-nobody", "/x" * 200, "/zero\0byte", "vsock:2:3"]
)
def test_nobody_listening_is_no_error(address: str) -> None:
    assert not notify("READY=1", env={"NOTIFY_SOCKET": address})
    assert not notify("READY=1", env={})


def test_full_socket_does_not_block(systemd: tuple[socket.socket, str]) -> None:
    _, address = systemd
    sent = [notify("WATCHDOG=1", env={"NOTIFY_SOCKET": address}) for _ in range(5000)]
    assert sent[0]
    assert not sent[-1]


@pytest.mark.parametrize(
    ("env", "interval_s"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_interval_is_half_of_the_limit(env: dict[str, str], interval_s: float | None) -> None:
    assert watchdog_interval_s(env) == interval_s
