import os
import subprocess
import sys
from pathlib import Path

import pytest

from streaming.errors import TransportError
from streaming.transport import host_identity, ipc_endpoint, runtime_dir


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_runtime_dir_is_systemds_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir(mode=0o755)
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{given}:{tmp_path}/second")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    assert runtime_dir() == given
    assert mode(given) == 0o700


def test_runtime_dir_is_the_users_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_dir() == tmp_path / "camvec"
    assert runtime_dir("run-7") == tmp_path / "camvec" / "run-7"
    assert mode(tmp_path / "camvec") == mode(tmp_path / "camvec" / "run-7") == 0o700


def test_runtime_dir_is_in_tmp_else_and_no_trap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = runtime_dir()
    assert folder == tmp_path / f"camvec-{os.geteuid()}"
    assert mode(folder) == 0o700
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TransportError, match="to be a folder of user"):
        runtime_dir()


def test_runtime_dir_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "file" / "inside"))
    with pytest.raises(
        TransportError, match=r"cannot use .*inside for sockets: Not a directory; set RUNTIME_DIRECTORY"
    ):
        runtime_dir()


def test_ipc_endpoint_has_a_length_limit_in_bytes(tmp_path: Path) -> None:
    fits = "x" * (107 - len(os.fsencode(tmp_path)) - 1)
    assert ipc_endpoint(tmp_path, fits) == f"ipc://{tmp_path}/{fits}"
    with pytest.raises(TransportError, match="at most 107 bytes, got 108"):
        ipc_endpoint(tmp_path, fits[:-1] + "ü")


def test_processes_of_one_host_have_one_identity() -> None:
    code = "from streaming.transport import host_identity; print(host_identity())"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == host_identity()
    assert len(host_identity()) == 16
