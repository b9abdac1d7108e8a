"""What `camvec fit` prints: the trials as a table, and the configuration that follows from them."""

import io
from typing import Any

from rich import box
from rich.table import Table
from ruamel.yaml import YAML

from streaming.config import Config
from streaming.redaction import redact


def trial_table(trials: list[dict[str, Any]]) -> Table:
    """The trials, fewest cameras first."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in (
        "cameras",
        "frames/s",
        "latency ms p50 / p99",
        "dropped",
        "encoded",
        "FVU (audits)",
        "CPU",
        "verdict",
    ):
        table.add_column(
            column, justify="left" if column == "verdict" else "right", min_width=28 if column == "verdict" else None
        )
    for trial in sorted(trials, key=lambda trial: int(trial["cameras"])):
        latency = "-" if trial["p99_ms"] is None else f"{trial['p50_ms']:.0f} / {trial['p99_ms']:.0f}"
        fvu = "-" if trial["fvu"] is None else f"{trial['fvu']:.4f}"
        table.add_row(
            str(trial["cameras"]),
            f"{trial['fps']:.0f}",
            latency,
            f"{100 * trial['lost']:.1f} %",
            f"{100 * trial['encoded']:.0f} %",
            f"{fvu} ({trial['audited']})",
            f"{trial['cpu_percent']:.0f} %",
            trial["fault"] or "holds",
        )
    return table


def as_yaml(base: Config, sources: list[str], count: int, target_fvu: float) -> str:
    """The configuration with as many cameras as hold; no secret of a URL is printed."""
    if count == 0:
        return (
            "# Not even one camera like this holds here: choose a smaller model, a higher encoder.budget_ms, or a\n"
            "# lower frame rate, defaults.max_fps.\n"
        )
    encoder = base.encoder.model_dump(mode="json", exclude={"quality_level", "fidelity"}, exclude_defaults=True)
    encoder = {"budget_ms": base.encoder.budget_ms, **encoder, "fidelity": {"fvu": target_fvu}}
    urls = [redact(sources[number % len(sources)]) for number in range(count)]
    cameras = {f"cam{number + 1}": url for number, url in enumerate(urls)}
    model = base.model.model_dump(mode="json", exclude_defaults=True) | {"name": base.model.name}
    body = {"mqtt": {"embedded": True}, "model": model, "encoder": encoder, "cameras": cameras}
    out = io.StringIO()
    out.write(
        f"# {count} camera{'s' if count > 1 else ''} like this one: what was measured here. Set mqtt to your broker.\n"
    )
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(body, out)
    return out.getvalue()
