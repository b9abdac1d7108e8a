"""What a benchmark gives: numbers by metric, read like a dictionary, with what lies behind them; table, JSON, plot."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from encoders_core.errors import OptionError

UNITS: Final = {
    "encoding_time": "ms",
    "memory_usage": "GB",
    "throughput": "1/s",
    "feature_quality": "kNN accuracy",
    "accuracy_preservation": "mean cosine",
    "temporal_quality": "accuracy",
    "alignment_score": "recall at 1",
    "info_preservation": "R squared",
}


@dataclass(frozen=True, kw_only=True)
class EncoderScores(Mapping[str, float]):
    """The metrics of one encoder; a metric that was not applied is no key, and looking it up says why."""

    metrics: Mapping[str, float]
    details: Mapping[str, Mapping[str, float]]
    """By metric, the numbers behind the one: p50_ms, p95_ms, linear_probe, chance, ..."""
    not_applied: Mapping[str, str]
    """Metric -> why it could not be measured for this encoder."""
    data_set: str
    """The data that was really used."""
    data_description: str
    stands_for: str | None
    """The name that was asked for, where a small substitute was used."""
    trained: bool
    """Whether the weights came from anywhere but chance."""
    iterations: int
    """How many times an item was encoded and timed."""
    item_count: int
    """How many different items there are features of."""
    seconds: float

    def __getitem__(self, metric: str) -> float:
        if metric in self.not_applied:
            raise KeyError(f"{metric} was not applied: {self.not_applied[metric]}")
        return self.metrics[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "metrics": dict(self.metrics),
            "units": {metric: UNITS[metric] for metric in self.metrics},
            "details": {metric: dict(found) for metric, found in self.details.items()},
            "not_applied": dict(self.not_applied),
            "data_set": self.data_set,
            "data_description": self.data_description,
            "stands_for": self.stands_for,
            "trained": self.trained,
            "iterations": self.iterations,
            "items": self.item_count,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class BenchmarkResults(Mapping[str, EncoderScores]):
    """`EncoderScores` by the name of the encoder; `print` shows the table."""

    scores: Mapping[str, EncoderScores]
    machine: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, encoder: str) -> EncoderScores:
        return self.scores[encoder]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __str__(self) -> str:
        return self.table()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `to_json` writes it."""
        return {"machine": dict(self.machine), "encoders": {name: one.as_dict() for name, one in self.scores.items()}}

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """As JSON; written to `path` when there is one."""
        text = json.dumps(self.as_dict(), indent=2, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def table(self) -> str:
        """A Markdown table, one row a metric; under it what was used, and what was not applied and why."""
        metrics = [metric for metric in UNITS if any(metric in one.metrics for one in self.scores.values())]
        rows = [["", *self.scores], ["---"] * (1 + len(self.scores))]
        for metric in metrics:
            cells = [f"{one.metrics[metric]:.3f}" if metric in one.metrics else "-" for one in self.scores.values()]
            rows.append([f"{metric} ({UNITS[metric]})", *cells])
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([*lines, "", *(_remark(name, one) for name, one in self.scores.items())])

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """A matplotlib figure with one bar chart a metric; saved to `path` when there is one. Needs `camvec[plot]`."""
        try:
            from matplotlib.figure import Figure  # noqa: PLC0415  optional
        except ImportError as exc:
            raise OptionError("plots need matplotlib: pip install 'camvec[plot]' (or: pip install matplotlib)") from exc
        metrics = [metric for metric in UNITS if any(metric in one.metrics for one in self.scores.values())]
        figure = Figure(figsize=(3.0 * max(1, len(metrics)), 3.2), layout="constrained")
        for place, metric in enumerate(metrics):
            axes = figure.add_subplot(1, len(metrics), place + 1)
            bars = {name: one.metrics[metric] for name, one in self.scores.items() if metric in one.metrics}
            axes.bar(list(bars), list(bars.values()))
            axes.set_title(metric.replace("_", " "))
            axes.set_ylabel(UNITS[metric])
            axes.tick_params(axis="x", rotation=30)
        if path is not None:
            figure.savefig(path)
        return figure


def _remark(name: str, one: EncoderScores) -> str:
    instead = f", a substitute for {one.stands_for}" if one.stands_for else ""
    weights = "" if one.trained else "; the weights are random"
    lines = [f"{name}: {one.iterations} iterations, {one.item_count} items of {one.data_set}{instead}{weights}"]
    lines += [f"  not applied  {metric}: {why}" for metric, why in one.not_applied.items()]
    return "\n".join(lines)
