"""The systemd unit, checked by systemd itself."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from streaming.config import load_config

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "configs/camvec.service"


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT, encoding="utf-8")
    return parser


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    env = os.environ | {"SYSTEMD_COLORS": "0", "SYSTEMD_EMOJI": "0"}
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False, env=env, timeout=30
    )


def installed_in(folder: Path, text: str) -> Path:
    """The unit as it would be on a machine where camvec is installed: ExecStart exists."""
    command = folder / "camvec"
    command.write_text("#!/bin/sh\n", encoding="utf-8")
    command.chmod(0o755)
    file = folder / "camvec.service"
    file.write_text(text.replace("/opt/camvec/bin/camvec", str(command)), encoding="utf-8")
    return file


@pytest.mark.integration
def test_unit_is_valid(tmp_path: Path) -> None:
    result = systemd_analyze("verify", str(installed_in(tmp_path, UNIT.read_text(encoding="utf-8"))))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.integration
def test_verification_would_see_a_misspelt_key(tmp_path: Path) -> None:
    # systemd-analyze exits 0 on unknown keys, so the test above counts on its output.
    text = UNIT.read_text(encoding="utf-8").replace("WatchdogSec=", "WatchdogSecs=")
    result = systemd_analyze("verify", str(installed_in(tmp_path, text)))
    assert "WatchdogSecs" in result.stdout + result.stderr


@pytest.mark.integration
def test_unit_is_hardened(tmp_path: Path) -> None:
    file = installed_in(tmp_path, UNIT.read_text(encoding="utf-8"))
    result = systemd_analyze("security", "--offline=true", "--threshold=25", str(file))
    assert result.returncode == 0, result.stdout[-200:]
    assert re.search(r"Overall exposure level for camvec.service: [0-2]\.\d", result.stdout)


def test_unit_starts_what_the_command_line_has() -> None:
    service = unit()["Service"]
    assert service["ExecStart"].split()[1:] == ["run", "/etc/camvec/edge.yaml"]
    assert service["Type"] == "notify"
    assert service["RestartPreventExitStatus"] == "2"  # R25: a wrong configuration is no reason to try again


def test_systemd_waits_longer_than_the_daemon_needs_to_stop() -> None:
    config = load_config(ROOT / "configs/edge.yaml", env={"MQTT_PASSWORD": "x", "CAM_PW": "x"})
    assert float(unit()["Service"]["TimeoutStopSec"]) > 2 * config.shutdown_timeout_s


def test_environment_example_has_every_variable_of_the_configuration() -> None:
    named = set(re.findall(r"\$\{([A-Z_]+)\}", (ROOT / "configs/edge.yaml").read_text(encoding="utf-8")))
    given = re.findall(r"^([A-Z_]+)=", (ROOT / "configs/camvec.env.example").read_text(encoding="utf-8"), re.MULTILINE)
    assert named <= set(given)
