"""`python -m workers.child`: one worker process, started by the supervisor and never by hand."""

import ctypes
import logging
import os
import signal
import sys

from streaming.config import Config
from streaming.errors import ConfigError
from streaming.logs import configure_logs, get_logger
from streaming.redaction import redact
from workers.control import Assignment, CommandReader, Status, StatusWriter

_PR_SET_PDEATHSIG = 1
STDIN, STDOUT = 0, 1
_MOST_DETAIL = 800  # characters: a status is one line that is written at once


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies: no camera is read twice after a crash."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Be a worker process until the supervisor says stop or is gone."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the supervisor, which stops us in order
    return run_worker(STDIN, STDOUT)


def run_worker(commands_fd: int, status_fd: int) -> int:
    """Read the assignment, run its role, return the exit code: 0 for an ordered stop."""
    commands, status = CommandReader(commands_fd), StatusWriter(status_fd)
    try:
        assignment = commands.wait_first()
    except EOFError:
        return 1
    config = Config.from_json(assignment.config)
    configure_logs(config, worker=assignment.worker)
    try:
        _run_role(assignment, config, commands, status)
    except ConfigError as error:  # a sentence for whoever wrote the configuration; where it was raised helps nobody
        get_logger("worker").error("worker failed", worker=assignment.worker, reason=str(error))
        status.send(Status("failed", detail=redact(str(error))[:_MOST_DETAIL]))
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is: logged, told, and the process ends
        get_logger("worker").exception("worker failed", worker=assignment.worker)
        status.send(Status("failed", detail=type(error).__name__))
        return 1
    return 0


def _run_role(assignment: Assignment, config: Config, commands: CommandReader, status: StatusWriter) -> None:
    # Imported late: a publisher never loads torch, a capture worker neither.
    match assignment.role:
        case "capture":
            from workers.capture import run_capture

            run_capture(assignment, config, commands, status)
        case "encode":
            from workers.encode import run_encode

            run_encode(assignment, config, commands, status)
        case "publish":
            from workers.publish import run_publish

            run_publish(assignment, config, commands, status)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # an abandoned read of a frozen camera must not hold up the exit
