"""`camvec run` as a real process for tests: its log, its workers, its signals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil


class Daemon:
    """A running daemon. Log lines are JSON, so a test can wait for one and look at its fields."""

    def __init__(self, process: subprocess.Popen[bytes], config: Path, log: Path) -> None:
        self.process, self.config, self.log = process, config, log

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def wait_for(self, event: str, *, timeout_s: float = 40.0, count: int = 1, **fields: Any) -> dict[str, Any]:
        """The `count`-th log line of this event and these fields."""

        def matching() -> list[dict[str, Any]]:
            return [
                line
                for line in self.lines()
                if line.get("event") == event and all(line.get(key) == value for key, value in fields.items())
            ]

        wait_until(lambda: len(matching()) >= count, timeout_s, what=f"log line {event!r} {fields}", why=self.tail)
        return matching()[count - 1]

    def worker_pid(self, worker: str) -> int:
        """The process of a worker, as the log last said."""
        started = [line for line in self.lines() if line.get("event") == "worker started" and line["name"] == worker]
        return int(started[-1]["pid"])

    def kill_worker(self, worker: str) -> None:
        os.kill(self.worker_pid(worker), signal.SIGKILL)

    def reload(self, text: str) -> None:
        self.config.write_text(text)
        self.process.send_signal(signal.SIGHUP)

    def stop(self, timeout_s: float = 10.0) -> tuple[int, float]:
        """SIGTERM; returns exit code and seconds."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s), time.monotonic() - started

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])

    def totals(self) -> dict[str, dict[str, int]]:
        """The account at the end, from the last log line."""
        return self.wait_for("stopped", timeout_s=1.0)["totals"]

    def descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []


@contextlib.contextmanager
def daemon(folder: Path, text: str, *options: str, env: dict[str, str] | None = None) -> Iterator[Daemon]:
    """`camvec run` on this configuration text; killed with all its workers at the end of the `with`."""
    config, log = folder / "camvec.yaml", folder / "camvec.log"
    config.write_text(text)
    runtime = folder / "run"
    runtime.mkdir(exist_ok=True)
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.cli", "run", str(config), *options],
            stderr=stderr,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"RUNTIME_DIRECTORY": str(runtime)} | (env or {}),
        )
    running = Daemon(process, config, log)
    try:
        yield running
    finally:
        leftover = running.descendants()
        if process.poll() is None:
            process.kill()
            process.wait()
        for child in leftover:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def wait_until(
    condition: Callable[[], Any], timeout_s: float = 20.0, *, what: str = "", why: Callable[[], str] = str
) -> None:
    """Look every 50 ms until it holds."""
    ends = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > ends:
            raise AssertionError(f"not within {timeout_s} s: {what}\n{why()}")
        time.sleep(0.05)
