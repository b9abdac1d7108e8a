"""A real systemd for tests: PID 1 of its own namespaces, on a view of this machine that forgets what is written to it."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
_BOOT_S: Final = 30.0
_NAMESPACES: Final = ("--pid", "--mount", "--uts", "--ipc")


@dataclass(frozen=True)
class Systemd:
    """A machine within this one: its processes are its own, the network is ours."""

    pid: int

    def run(self, *command: str, within_s: float = 60.0, check: bool = True) -> str:
        """Run a command inside -> what it printed. Unless `check` is off, it has to exit with 0."""
        inside = ["nsenter", f"--target={self.pid}", *_NAMESPACES, "--", *command]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=within_s, check=False)
        if check:
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """A file inside, and the folder that it is in."""
        self.run("mkdir", "-p", str(Path(path).parent))
        (Path(f"/proc/{self.pid}/root") / path.removeprefix("/")).write_text(text, encoding="utf-8")

    def show(self, unit: str, word: str) -> str:
        """What systemd knows of a unit."""
        return self.run("systemctl", "show", unit, f"--property={word}", "--value").strip()

    def log(self, unit: str) -> str:
        """All lines of a unit."""
        return self.run("journalctl", f"--unit={unit}", "--no-pager", "--output=cat")


@contextlib.contextmanager
def systemd(folder: Path) -> Iterator[Systemd]:
    """Boot one; what the running interpreter needs is seen in it. Skips where that is not possible."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or not Path("/usr/lib/systemd/systemd").exists():
        pytest.skip("needs root and Debian's systemd, to boot one of its own")
    paths = {str(Path(path).resolve()) for path in (ROOT, sys.prefix, sys.base_prefix)}
    namespaces = ("--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup")
    script = str(Path(__file__).with_suffix(".sh"))
    with subprocess.Popen(
        ["unshare", *namespaces, "sh", script, str(folder), *sorted(paths)], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _booted(process)
        finally:
            process.kill()


def _booted(process: subprocess.Popen[str]) -> Systemd:
    end = time.monotonic() + _BOOT_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):  # what is looked at may end at any time
            if child := _systemd_below(process.pid):
                machine = Systemd(child)
                state = machine.run("systemctl", "is-system-running", "--wait", check=False)
                if state.strip() in ("running", "degraded"):
                    return machine
        time.sleep(0.1)
    process.kill()
    said = process.stderr.read() if process.stderr else ""
    pytest.skip(f"systemd does not boot here: {said.strip()[-300:] or 'not within its time'}")


def _systemd_below(pid: int) -> int | None:
    """The only child of a process, once it has become systemd."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        if Path(f"/proc/{child}/comm").read_text(encoding="ascii").strip() == "systemd":
            return int(child)
    return None
