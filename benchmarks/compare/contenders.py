"""The contenders as processes: started once, connected all the time."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil

LOOPS = ("naive", "better", "better_fast")
_HERE = Path(__file__).parent
Pids = Callable[[], list[int]]
"""All processes of a contender, now."""


@contextlib.asynccontextmanager
async def loops(kind: str, urls: dict[str, str], port: int, backend: str) -> AsyncIterator[Pids]:
    """One process for each camera."""
    async with contextlib.AsyncExitStack() as stack:
        pids = []
        for camera, url in urls.items():
            settings = json.dumps({"kind": kind, "camera": camera, "port": port, "url": url, "backend": backend})
            command = (sys.executable, str(_HERE / "loops.py"), settings)
            pids.append(await stack.enter_async_context(running(command)))
        yield lambda: pids


@contextlib.asynccontextmanager
async def daemon(
    folder: Path, urls: dict[str, str], port: int, *, strip: bool = True, **sections: dict[str, Any]
) -> AsyncIterator[Pids]:
    """`camvec run`, everything at its default but for the broker, the cameras and what `sections` of the configuration say.

    `strip`: read the time code under each picture.
    """
    config, runtime = folder / "camvec.yaml", folder / "run"
    runtime.mkdir()
    cameras = {camera: {"url": url, "timecode_strip": strip} for camera, url in urls.items()}
    mqtt = {"host": "127.0.0.1", "port": port} | sections.pop("mqtt", {})
    raw = {"node": "bench", "mqtt": mqtt, "cameras": cameras, "logging": {"level": "warning"}} | sections
    config.write_text(json.dumps(raw))
    command = (sys.executable, "-m", "workers.cli", "run", str(config))
    async with running(command, XDG_RUNTIME_DIR=str(runtime)) as pid:
        yield lambda: [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


@contextlib.asynccontextmanager
async def running(command: tuple[str, ...], **environment: str) -> AsyncIterator[int]:
    """A process; on the way out it is asked to end, and then made to. COMPARE_DEBUG=1 shows what it says."""
    stderr = None if os.environ.get("COMPARE_DEBUG") else asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stderr=stderr, env=os.environ | environment
    )
    try:
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 8.0)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
