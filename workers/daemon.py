"""`camvec run`: signals, reload and the supervisor."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from streaming.config import Config, load_config
from streaming.config.review import require_files
from streaming.logs import configure_logs, get_logger
from streaming.transport import runtime_dir
from workers.lock import lock_runtime
from workers.supervisor import Supervisor, running

_log = get_logger("daemon")


def run_daemon(source: str, *, roles: list[str] | None, single_process: bool) -> None:
    """Run until SIGTERM (exit 0), Ctrl-C (130) or until every source was a file and has ended."""

    def load() -> Config:
        config = load_config(source, overrides={"roles": roles} if roles else None)
        require_files(config)
        configure_logs(config, worker="supervisor")  # from here on its secrets are masked
        return config

    config = load()
    sys.exit(asyncio.run(_serve(config, load, single_process=single_process)))


def runtime_of(config: Config) -> Path:
    """The private folder for this node's sockets and counters, made when it is not there."""
    if config.runtime_dir is None:
        return runtime_dir(config.node)
    config.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return config.runtime_dir


async def _serve(config: Config, load: Callable[[], Config], *, single_process: bool) -> int:
    runtime = runtime_of(config)
    lock_runtime(runtime)
    supervisor = Supervisor(config, runtime=runtime, load=load, single_process=single_process)
    code = 0
    async with running(supervisor) as stop:
        loop = asyncio.get_running_loop()
        reload_wanted = asyncio.Event()

        def interrupted() -> None:
            nonlocal code
            if stop.is_set():
                os._exit(130)  # the second Ctrl-C: children die with us
            code = 130
            stop.set()

        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, interrupted)
        loop.add_signal_handler(signal.SIGHUP, reload_wanted.set)
        reloading = asyncio.create_task(_reload_when(reload_wanted, supervisor), name="reload")
        await stop.wait()
        reloading.cancel()
    _log.info("stopped", totals=supervisor.totals())
    return code


async def _reload_when(wanted: asyncio.Event, supervisor: Supervisor) -> None:
    while True:
        await wanted.wait()
        wanted.clear()
        await supervisor.reload()
