"""What a person sees while a pipeline runs: a line a camera, and the last events."""

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from workers.health import percentiles_ms
from workers.measure import CameraTally, Measurement

_RECENT = 100


def live_table(measured: Measurement, left_s: float) -> Group:
    """The table of this moment."""
    table = Table(box=box.SIMPLE_HEAD, title="camvec: live features over MQTT", title_justify="left")
    for column in ("camera", "frames", "vectors", "held", "dropped", "latency ms", "p99", "glass ms"):
        table.add_column(column, justify="left" if column == "camera" else "right")
    for camera in measured.config.enabled_cameras():
        table.add_row(camera, *_counts(measured, camera), *_times(measured.tallies[camera]))
    parts = [f"{left_s:.0f} s left", f"CPU {measured.cpu_percent:.0f} %", f"{measured.rss_mb:.0f} MB"]
    events = Text("\n".join(measured.events[-4:]), style="cyan")
    return Group(table, Text("   ".join(parts), style="dim"), events)


def _counts(measured: Measurement, camera: str) -> list[str]:
    seen = measured.subscriber.statistics(camera)
    return [str(count) for count in (seen.frames, seen.vectors, seen.held, seen.dropped.total())]


def _times(tally: CameraTally) -> list[str]:
    spans, glass = tally.spans_us[-_RECENT:], tally.glass_us[-_RECENT:]
    latency = [f"{percentiles_ms(spans)[i]:.0f}" for i in (0, 2)] if spans else ["-", "-"]
    return [*latency, f"{percentiles_ms(glass)[0]:.0f}" if glass else "-"]
