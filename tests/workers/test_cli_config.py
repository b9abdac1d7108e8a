"""`camvec check`, `camvec schema`, `camvec keys`, as a user types them."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

FINE = "cameras: {front: 'rtsp://user:${CAM_PW}@10.0.0.5/s', off: {url: rtsp://h/, enabled: false}}\n"


def camvec(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"} | env,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "edge.yaml"
    file.write_text(FINE, encoding="utf-8")
    return file


def test_check_says_what_is_in_effect(file: Path) -> None:
    result = camvec("check", str(file), CAM_PW="swordfish")
    assert result.returncode == 0, result.stderr
    assert "front: rtsp://user:***@10.0.0.5/s, 100 ms, priority normal" in result.stdout
    assert result.stdout.endswith("valid: 1 camera, 1 switched off\n")


def test_check_of_a_wrong_file_is_exit_2_with_one_line_for_each_fault(file: Path) -> None:
    file.write_text("node: A\n" + FINE + "qos: 1\n", encoding="utf-8")
    result = camvec("check", str(file), CAM_PW="swordfish")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"camvec: {file}:1: node: expected 1 to 64 of a-z, 0-9, _ and -, got 'A'; did you mean 'a'?",
        f"{file}:3: qos: unknown key; expected one of node, roles, mqtt, model, temporal, encoder, capture, transport, "
        "defaults, cameras, logging, runtime_dir, shutdown_timeout_s",
    ]


def test_check_without_the_variable_names_it(file: Path) -> None:
    result = camvec("check", str(file), CAM_PX="x")
    assert result.returncode == 2
    assert "expected the environment variable CAM_PW to be set; did you mean 'CAM_PX'?" in result.stderr


def test_check_as_json_shows_no_secret(file: Path) -> None:
    result = camvec("check", str(file), "--json", CAM_PW="swordfish")
    said = json.loads(result.stdout)
    assert said["ok"]
    assert said["config"]["cameras"]["front"]["budget_ms"] == 100
    assert "swordfish" not in result.stdout


def test_check_names_files_that_are_not_there(file: Path) -> None:
    file.write_text(FINE + "mqtt: {host: b, tls: {ca: ca.pem}}\nmodel: {weights: w.safetensors}\n", encoding="utf-8")
    result = camvec("check", str(file), CAM_PW="x")
    assert result.returncode == 2
    assert f"mqtt.tls.ca: expected a file at {file.parent}/ca.pem, found none" in result.stderr
    assert "model.weights: expected a file at" in result.stderr


def test_check_warns_of_what_is_valid_but_not_safe(file: Path) -> None:
    file.write_text("cameras: {a: gone.mp4}\nmqtt: {host: b, username: u, password: swordfish}\n", encoding="utf-8")
    result = camvec("check", str(file))
    assert result.returncode == 0
    assert "warning: mqtt: the password travels to b in clear text; set tls" in result.stderr
    assert "warning: cameras.a.url: expected a file or device at" in result.stderr
    assert "swordfish" not in result.stdout + result.stderr


def test_check_takes_a_bare_url() -> None:
    result = camvec("check", "rtsp://user:${CAM_PW}@h/s", CAM_PW="swordfish")
    assert result.returncode == 0
    assert "built-in, 127.0.0.1:1883" in result.stdout


def test_schema_is_json(tmp_path: Path) -> None:
    printed = camvec("schema")
    assert json.loads(printed.stdout)["title"] == "camvec configuration"
    written = tmp_path / "camvec.schema.json"
    assert camvec("schema", "-o", str(written)).returncode == 0
    assert json.loads(written.read_text(encoding="utf-8")) == json.loads(printed.stdout)


def test_keys_are_written_for_their_owner_alone(tmp_path: Path) -> None:
    pytest.importorskip("zmq", reason="keys need pyzmq, which comes with camvec[edge]")
    folder = tmp_path / "keys"
    result = camvec("keys", str(folder), "--name", "barn")
    assert result.returncode == 0, result.stderr
    assert stat.S_IMODE((folder / "barn.secret").stat().st_mode) == 0o600
    assert (folder / "barn.secret").read_text(encoding="utf-8").split()[-1] not in result.stdout
    again = camvec("keys", str(folder), "--name", "barn")
    assert again.returncode == 2
    assert "it exists already" in again.stderr


def test_commands_about_configuration_load_neither_torch_nor_ffmpeg(file: Path) -> None:
    program = (
        "import sys, typer; from workers.cli_config import check\n"
        f"check({str(file)!r})\n"
        "sys.exit(bool({'torch', 'av', 'cv2', 'aiomqtt'} & sys.modules.keys()))"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "CAM_PW": "x"}
    result = subprocess.run([sys.executable, "-c", program], check=False, env=env, capture_output=True)
    assert result.returncode == 0, result.stderr
