"""The summary of a run for people."""

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text


def summary_table(summary: dict[str, Any]) -> Group:
    """The figures of `Measurement.summary`, as a table and three lines."""
    table = Table(box=box.SIMPLE_HEAD, title=f"{summary['seconds']:.0f} s", title_justify="left")
    for column in ("camera", "in", "encoded", "held", "dropped", "received", "latency ms", "glass ms"):
        table.add_column(column, justify="left" if column == "camera" else "right")
    for camera, row in summary["per_camera"].items():
        counts = (row["frames_in"], row["encoded"], row["held"], sum(row["dropped"].values()), row["received"])
        table.add_row(camera, *map(str, counts), _span(row["latency_ms"]), _span(row["glass_ms"]))
    dropped = ", ".join(f"{count} {cause}" for cause, count in summary["dropped"].items()) or "nothing"
    ratio = summary["budget_hit_ratio"]
    hits = "-" if ratio is None else f"{100 * ratio:.1f} %"
    weights = "trained" if summary["trained"] else "random weights"
    lines = [
        f"every frame accounted for: {'yes' if summary['accounted'] else 'NO'}; dropped: {dropped}",
        "latency: arrival to MQTT; glass: picture to subscriber; p50 / p99",
        f"within the budget of {summary['budget_ms']:g} ms: {hits} of warm frames, {summary['cold']} cold ones apart",
        f"model {summary['model']}, {weights}; full pass {summary['full_pass_ms']} ms",
        f"CPU {summary['cpu_percent']} % of one core, {summary['rss_mb']} MB",
    ]
    return Group(table, Text("\n".join(lines)))


def _span(spread: dict[str, float] | None) -> str:
    return "-" if spread is None else f"{spread['p50']:.0f} / {spread['p99']:.0f}"
