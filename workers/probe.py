"""`camvec probe`: what a camera really sends."""

import dataclasses
import json
import threading

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from streaming.errors import SourceError
from streaming.sources.base import SourceConfig
from streaming.sources.probe import ProbeReport, probe


def run_probe(url: str, *, seconds: float, transport: str, as_json: bool) -> None:
    """Print the report; raises SourceError with its reason when no picture came."""
    config = SourceConfig(url, transport="udp" if transport == "udp" else "tcp")
    report = _with_progress(config, seconds)
    if as_json:
        print(json.dumps(dataclasses.asdict(report)))
    else:
        Console().print(_table(report))
    if report.reason is not None:
        raise SourceError(report.reason, f"{report.reason}: {report.detail}")


def _with_progress(config: SourceConfig, seconds: float) -> ProbeReport:
    found: list[ProbeReport] = []
    thread = threading.Thread(target=lambda: found.append(probe(config, seconds)), daemon=True)
    thread.start()
    columns = (TextColumn("looking"), BarColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=seconds)
        while thread.is_alive():
            thread.join(0.1)
            progress.advance(task, 0.1)
    return found[0]


def _table(report: ProbeReport) -> Table:
    table = Table(show_header=False, box=None)
    milliseconds = {"open_ms": "time to open", "first_frame_ms": "time to first frame", "decode_ms": "decode a picture"}
    rows = {
        "source": report.url,
        "result": "pictures" if report.reason is None else f"{report.reason}: {report.detail}",
        "password": report.auth,
        "codec": f"{report.codec} {report.width} x {report.height} {report.pix_fmt}".strip(),
        "transport": report.transport,
        "frame rate": f"{report.fps_measured:.2f}/s measured, {report.fps_announced:.2f}/s announced",
        "keyframe every": "-" if report.keyframe_interval_s is None else f"{report.keyframe_interval_s:.2f} s",
        "clock": f"{report.clock or '-'}, within {report.captured_error_us / 1000:.1f} ms",
        "damaged": f"{report.damaged} of {report.frames}, {report.repaired_pts} timestamps repaired",
    }
    if not report.frames:
        rows = {name: rows[name] for name in ("source", "result", "password")}
    for name, value in rows.items():
        table.add_row(name, value)
    for field, name in milliseconds.items():
        if (value := getattr(report, field)) is not None:
            table.add_row(name, f"{value:.1f} ms")
    return table
