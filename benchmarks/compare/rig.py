"""What a benchmark runs against: an RTSP server, a broker, and the words for the machine."""

import asyncio
import contextlib
import json
import platform
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
from compare.clip import KEYFRAME_S, CodedClip

DEBIAN_PYTHON = "/usr/bin/python3"


class Feed:
    """The RTSP server."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process, self._port = process, port

    def play(self, contender: str) -> None:
        """The cameras of this one send at their rate from now on, the others' slowly."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"/{contender}/\n".encode())

    def connect(self) -> None:
        """All send at their rate: connecting takes some pictures."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"/\n")

    def restart(self) -> None:
        """All cameras begin anew, so that every contender is shown the same."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"restart\n")

    def urls(self, contender: str, cameras: list[str]) -> dict[str, str]:
        """Where this contender finds its cameras."""
        return {camera: f"rtsp://127.0.0.1:{self._port}/{contender}/{camera}" for camera in cameras}


@contextlib.asynccontextmanager
async def feeding(clip: CodedClip, contenders: list[str], cameras: list[str], log: Path) -> AsyncIterator[Feed]:
    gop = round(KEYFRAME_S * clip.fps)
    firsts = [clip.frames * number // len(cameras) // gop * gop for number in range(len(cameras))]
    mounts = {f"/{name}/{camera}": first for name in contenders for camera, first in zip(cameras, firsts, strict=True)}
    settings = {"file": str(clip.path), "fps": clip.fps.as_integer_ratio(), "log": str(log), "mounts": mounts}
    process = await asyncio.create_subprocess_exec(
        DEBIAN_PYTHON,
        str(Path(__file__).with_name("rtsp_feed.py")),
        json.dumps(settings),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        if not line.startswith("ready"):
            raise RuntimeError(
                "the RTSP server did not start: it needs Debian's python3-gi and gir1.2-gst-rtsp-server-1.0"
            )
        yield Feed(process, int(line.split()[1]))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def broker(folder: Path) -> AsyncIterator[tuple[str, int, int | None]]:
    """Name, port and process id of mosquitto, or of the built-in broker where there is none."""
    server = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if server is None:
        from streaming.broker import EmbeddedBroker  # noqa: PLC0415 - the other broker

        async with EmbeddedBroker() as built_in:
            yield "built-in", built_in.port, None
        return
    port = 18_000 + psutil.Process().pid % 10_000
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 100000\n")
    process = await asyncio.create_subprocess_exec(server, "-c", str(config), stderr=asyncio.subprocess.DEVNULL)
    await asyncio.sleep(0.5)
    try:
        yield "mosquitto", port, process.pid
    finally:
        process.kill()
        await process.wait()


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return {
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
        "commit": commit.stdout.strip(),
        "load_before": psutil.getloadavg()[0],
    }
