"""`camvec demo` and `camvec bench pipeline`: the whole pipeline with nothing to configure, and what came of it."""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from streaming.config import Config, load_text
from streaming.logs import configure_logs
from workers.live_table import live_table
from workers.measure import Measurement, measuring
from workers.summary_table import summary_table

REFRESH_S = 0.25


def run_demo(*, seconds: float, cameras: int, fps: float, budget_ms: float, as_json: bool) -> None:
    """Scenes, decode, model, MQTT and a subscriber on this machine; ends with a summary."""
    with tempfile.TemporaryDirectory(prefix="camvec-demo-") as folder:
        logs = {f"scene{number}": Path(folder) / f"scene{number}.jsonl" for number in range(1, cameras + 1)}
        urls = {camera: scene_url(index, fps, path) for index, (camera, path) in enumerate(logs.items())}
        config = pipeline_config(urls, budget_ms=budget_ms)
        summary = asyncio.run(_watch(config, seconds, log_files=logs, live=not as_json))
    print_summary(summary, as_json=as_json)


def scene_url(index: int, fps: float, log: Path) -> str:
    """One of the built-in scenes, each different, with the list of its frames in `log`."""
    kind = ("street", "quiet", "busy")[index % 3]
    return f"scene:{kind}?seed={index + 1}&fps={fps:g}&log={log}"


def pipeline_config(urls: dict[str, str], *, budget_ms: float, realtime: bool = True) -> Config:
    """A configuration with the built-in broker and these cameras; files play as cameras, again and again."""
    cameras = {
        camera: {"url": url, "realtime": realtime, "loop": realtime} if "://" not in url else {"url": url}
        for camera, url in urls.items()
    }
    raw = {
        "node": "demo",
        "mqtt": {"embedded": True},
        "encoder": {"budget_ms": budget_ms},
        "logging": {"level": "warning"},
        "cameras": cameras,
    }
    return load_text(json.dumps(raw), file="")


async def _watch(config: Config, seconds: float, *, log_files: dict[str, Path], live: bool) -> dict[str, Any]:
    configure_logs(config, worker="supervisor")
    console = Console(stderr=not live)
    console.print("starting the workers ...", style="dim")
    async with measuring(config, log_files=log_files) as measured:
        if live and console.is_terminal:
            await _show_table(measured, seconds, console)
        else:
            await _show_progress(seconds, Console(stderr=True))
    return measured.summary()


async def _show_table(measured: Measurement, seconds: float, console: Console) -> None:
    ends = time.monotonic() + seconds
    with Live(live_table(measured, seconds), console=console, auto_refresh=False) as view:
        while (left := ends - time.monotonic()) > 0:
            view.update(live_table(measured, left), refresh=True)
            await asyncio.sleep(REFRESH_S)


async def _show_progress(seconds: float, console: Console) -> None:
    columns = (TextColumn("running"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=seconds)
        started = time.monotonic()
        while (elapsed := time.monotonic() - started) < seconds:
            progress.update(task, completed=elapsed)
            await asyncio.sleep(min(REFRESH_S, seconds - elapsed))


def run_pipeline_bench(
    urls: dict[str, str], *, seconds: float, budget_ms: float, logs: dict[str, Path], as_json: bool
) -> None:
    """`camvec bench pipeline`: the same figures, per camera and in total, with stage times."""
    config = pipeline_config(urls, budget_ms=budget_ms)
    summary = asyncio.run(_watch(config, seconds, log_files=logs, live=False))
    print_summary(summary, as_json=as_json)


def print_summary(summary: dict[str, Any], *, as_json: bool) -> None:
    """One JSON object as the last line, or a table for people."""
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
        return
    Console().print(summary_table(summary))
