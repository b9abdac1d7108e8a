"""The systemd unit, started by a real systemd."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streaming.blocking import subscribe
from tests.gear.mosquitto import free_port
from tests.gear.systemd import ROOT, Systemd, systemd

UNIT = "camvec"
PATIENCE_S = 60.0
IN_PLACE = f"""
[Service]
ExecStart=
ExecStart={sys.prefix}/bin/camvec run /etc/camvec/edge.yaml
WatchdogSec=3
# A checkout may lie where the unit shuts things off.
ProtectHome=tmpfs
BindReadOnlyPaths={" ".join(sorted({str(ROOT), sys.prefix, sys.base_prefix}))}
"""


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    """One on which the unit is installed as its head says, but for where camvec lies."""
    with systemd(tmp_path_factory.mktemp("systemd")) as machine:
        machine.write("/etc/systemd/system/camvec.service", (ROOT / "configs/camvec.service").read_text("utf-8"))
        machine.write("/etc/systemd/system/camvec.service.d/test.conf", IN_PLACE)
        machine.write("/etc/camvec/camvec.env", "CAM_PW=hunter2\n")
        machine.run("systemctl", "daemon-reload")
        yield machine


@contextlib.contextmanager
def running(machine: Systemd, cameras: str) -> Iterator[str]:
    """The unit with these cameras -> the URL of its broker."""
    port = free_port()
    machine.write("/etc/camvec/edge.yaml", f"mqtt: {{embedded: true, port: {port}}}\ncameras: {cameras}\n")
    machine.run("systemctl", "start", UNIT)  # returns when the daemon has said that it is ready
    try:
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        machine.run("systemctl", "stop", UNIT)


def main_pid(machine: Systemd) -> str:
    return machine.show(UNIT, "MainPID")


def test_a_started_unit_sends_vectors_and_stops_in_time(machine: Systemd) -> None:
    with running(machine, "{street: scene:street}") as url:
        assert machine.show(UNIT, "ActiveState") == "active"
        assert machine.show(UNIT, "StatusText") == "1 camera"
        with contextlib.closing(subscribe(url, camera="street")) as features:
            assert next(features).vector.shape == (1280,)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert (machine.show(UNIT, "ActiveState"), machine.show(UNIT, "Result")) == ("inactive", "success")


def test_a_reload_takes_over_cameras_and_no_secret_is_in_the_journal(machine: Systemd) -> None:
    with running(machine, "{street: scene:street}"):
        before = main_pid(machine)
        text = machine.run("cat", "/etc/camvec/edge.yaml")
        dead = f'{{street: scene:street, dead: "rtsp://me:${{CAM_PW}}@127.0.0.1:{free_port()}/s"}}'
        machine.write("/etc/camvec/edge.yaml", text.replace("{street: scene:street}", dead))
        machine.run("systemctl", "reload", UNIT)
        wait_for(lambda: "rtsp://me:***@" in machine.log(UNIT))
        wait_for(lambda: machine.show(UNIT, "StatusText") == "2 cameras")
        assert main_pid(machine) == before
        machine.write("/etc/camvec/edge.yaml", "camera: {}\n")
        machine.run("systemctl", "reload", UNIT)
        wait_for(lambda: machine.show(UNIT, "StatusText").startswith("2 cameras; the last reload was refused"))
    assert "hunter2" not in machine.log(UNIT)


def test_a_daemon_that_makes_no_progress_is_started_anew(machine: Systemd) -> None:
    with running(machine, "{street: scene:street}"):
        before = main_pid(machine)
        machine.run("kill", f"-{signal.SIGSTOP.value}", before)
        wait_for(lambda: main_pid(machine) not in ("0", before) and machine.show(UNIT, "ActiveState") == "active")
        assert machine.show(UNIT, "NRestarts") == "1"


def test_a_wrong_configuration_is_said_once_and_not_tried_again(machine: Systemd) -> None:
    machine.write("/etc/camvec/edge.yaml", "camera: {street: scene:street}\n")
    machine.run("systemctl", "start", UNIT, check=False)
    assert (machine.show(UNIT, "Result"), machine.show(UNIT, "ExecMainStatus")) == ("exit-code", "2")
    assert machine.show(UNIT, "NRestarts") == "0"
    assert "/etc/camvec/edge.yaml:1: camera: " in machine.log(UNIT)
    machine.run("systemctl", "reset-failed", UNIT)


def test_compiled_code_is_kept_for_the_next_start(machine: Systemd) -> None:
    with running(machine, "{street: scene:street}"):
        kept = Path(machine.show(UNIT, "Environment").removeprefix("NUMBA_CACHE_DIR="))
        assert machine.run("find", f"{kept}/", "-name", "*.nbc").split()
