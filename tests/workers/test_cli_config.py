"""`camvec check`, `camvec schema`, `camvec keys`, as a user types them."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from streaming.errors import ConfigError
from workers.cli_config import register

FINE = "cameras: {front: 'rtsp://user:${CAM_PW}@10.0.0.5/s', off: {url: rtsp://h/, enabled: false}}\n"
ROOT = str(Path(__file__).parents[2])


@dataclass
class Result:
    """What a command printed; `refused` is the sentence that `camvec` prints before it exits with 2."""

    stdout: str
    stderr: str
    refused: str = ""


Command = Callable[..., Result]


@pytest.fixture
def camvec(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    app = typer.Typer()
    register(app)

    def call(*arguments: str, **env: str) -> Result:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        refused = ""
        try:
            app(arguments, standalone_mode=False)
        except ConfigError as error:
            refused = str(error)
        return Result(*capsys.readouterr(), refused)

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "edge.yaml"
    file.write_text(FINE, encoding="utf-8")
    return file


def test_check_says_what_is_in_effect(file: Path, camvec: Command) -> None:
    result = camvec("check", "--no-measure", str(file), CAM_PW="swordfish")
    assert not result.refused
    assert "front: rtsp://user:***@10.0.0.5/s, 100 ms, priority normal" in result.stdout
    assert result.stdout.endswith("valid: 1 camera, 1 switched off\n")


def test_wrong_file_is_exit_2_with_one_line_for_each_fault(file: Path) -> None:
    file.write_text("node: A\n" + FINE + "qos: 1\n", encoding="utf-8")
    command = [sys.executable, "-m", "workers.cli", "check", "--no-measure", str(file)]
    env = os.environ | {"PYTHONPATH": ROOT, "CAM_PW": "swordfish"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    keys = "node, roles, mqtt, model, temporal, encoder, capture, transport, defaults, cameras, logging, runtime_dir"
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"camvec: {file}:1: node: expected 1 to 64 of a-z, 0-9, _ and -, got 'A'; did you mean 'a'?",
        f"{file}:3: qos: unknown key; expected one of {keys}, shutdown_timeout_s",
    ]


def test_check_without_the_variable_names_it(file: Path, camvec: Command) -> None:
    result = camvec("check", "--no-measure", str(file), CAM_PX="x")
    assert "expected the environment variable CAM_PW to be set; did you mean 'CAM_PX'?" in result.refused


def test_check_as_json_shows_no_secret(file: Path, camvec: Command) -> None:
    result = camvec("check", "--no-measure", str(file), "--json", CAM_PW="swordfish")
    said = json.loads(result.stdout)
    assert said["ok"]
    assert said["config"]["cameras"]["front"]["budget_ms"] == 100
    assert "swordfish" not in result.stdout


def test_check_names_files_that_are_not_there(file: Path, camvec: Command) -> None:
    file.write_text(FINE + "mqtt: {host: b, tls: {ca: ca.pem}}\nmodel: {weights: w.safetensors}\n", encoding="utf-8")
    result = camvec("check", "--no-measure", str(file), CAM_PW="x")
    assert f"mqtt.tls.ca: expected a file at {file.parent}/ca.pem, found none" in result.refused
    assert "model.weights: expected a file at" in result.refused


def test_check_warns_of_what_is_valid_but_not_safe(file: Path, camvec: Command) -> None:
    file.write_text("cameras: {a: gone.mp4}\nmqtt: {host: b, username: u, password: swordfish}\n", encoding="utf-8")
    result = camvec("check", "--no-measure", str(file))
    assert not result.refused
    assert "warning: mqtt: the password travels to b in clear text; set tls" in result.stderr
    assert "warning: cameras.a.url: expected a file or device at" in result.stderr
    assert "swordfish" not in result.stdout + result.stderr


def test_check_takes_a_bare_url(camvec: Command) -> None:
    result = camvec("check", "--no-measure", "rtsp://user:${CAM_PW}@h/s", CAM_PW="swordfish")
    assert not result.refused
    assert "built-in, 127.0.0.1:1883" in result.stdout


def test_check_measures_whether_the_model_keeps_the_tightest_budget(file: Path, camvec: Command) -> None:
    pytest.importorskip("torch", reason="measuring needs torch, which comes with camvec[edge]")
    file.write_text("cameras: {slow: scene:street, fast: {url: scene:street, budget_ms: 1}}", encoding="utf-8")
    assert "the budget is 1 ms" in camvec("check", str(file)).stderr


def test_check_of_an_unknown_model_names_the_nearest(file: Path, camvec: Command) -> None:
    pytest.importorskip("torch", reason="the list of models comes with camvec[edge]")
    file.write_text("model: {name: efficientnet-light0}\ncameras: {a: scene:street}", encoding="utf-8")
    assert "did you mean 'efficientnet-lite0'?" in camvec("check", str(file)).refused


def test_schema_is_json(tmp_path: Path, camvec: Command) -> None:
    printed = camvec("schema")
    assert json.loads(printed.stdout)["title"] == "camvec configuration"
    written = tmp_path / "camvec.schema.json"
    assert not camvec("schema", "-o", str(written)).stdout
    assert json.loads(written.read_text(encoding="utf-8")) == json.loads(printed.stdout)


def test_keys_are_written_for_their_owner_alone(tmp_path: Path, camvec: Command) -> None:
    pytest.importorskip("zmq", reason="keys need pyzmq, which comes with camvec[edge]")
    folder = tmp_path / "keys"
    result = camvec("keys", str(folder), "--name", "barn")
    assert not result.refused
    assert stat.S_IMODE((folder / "barn.secret").stat().st_mode) == 0o600
    assert (folder / "barn.secret").read_text(encoding="utf-8").split()[-1] not in result.stdout
    again = camvec("keys", str(folder), "--name", "barn")
    assert not again.stdout
    assert "it exists already" in again.refused


def test_check_without_measuring_loads_neither_torch_nor_ffmpeg(file: Path) -> None:
    program = (
        "import sys, typer; from workers.cli_config import check\n"
        f"check({str(file)!r}, measure=False)\n"
        "sys.exit(bool({'torch', 'av', 'cv2', 'aiomqtt'} & sys.modules.keys()))"
    )
    env = os.environ | {"PYTHONPATH": ROOT, "CAM_PW": "x"}
    result = subprocess.run([sys.executable, "-c", program], check=False, env=env, capture_output=True)
    assert result.returncode == 0, result.stderr
