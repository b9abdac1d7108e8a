"""`camvec bench encoders`: one picture through each contender by turns, on this machine, in one run."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from encoders_core.hardware_threads import configure_threads
from streaming.errors import ConfigError
from workers.bench_contenders import KNOWN, MODELS, Contest, contest
from workers.health import percentiles_ms

_LEAST_ROUNDS = 5


def run_bench_encoders(models: Sequence[str] | None, *, seconds: float, threads: int, as_json: bool) -> None:
    """Measure `models`, each for about `seconds`, and print a table or JSON. Raises ConfigError for unknown names."""
    wanted = list(models or MODELS)
    unknown = [name for name in wanted if name not in KNOWN]
    if unknown:
        raise ConfigError(f"--model: expected one of {', '.join(KNOWN)}, got {unknown[0]!r}")
    configure_threads(threads)
    console = Console(stderr=True)
    found: dict[str, Any] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        peaks = [peak_gflops()]
        for name in wanted:
            task = progress.add_task(f"{name}: loading", total=seconds)
            made = contest(name)
            progress.update(task, description=name)
            found[name] = measure(made, seconds, lambda done, task=task: progress.update(task, completed=done))  # type: ignore[misc]
            peaks.append(peak_gflops())
    summary = _summary(found, threads, max(peaks))
    if as_json:
        print(json.dumps(summary))
    else:
        _show(summary)


@torch.inference_mode()
def measure(made: Contest, seconds: float, tell: Callable[[float], None]) -> dict[str, Any]:
    """By turns, in an order that turns round, until `seconds` are spent, at least five rounds."""
    clock = _clock()
    taken_us: dict[str, list[int]] = {name: [] for name in made.runs}
    reference, started, rounds = made.runs[made.baseline](), time.perf_counter(), 0
    while rounds < _LEAST_ROUNDS or time.perf_counter() - started < seconds:
        names = list(made.runs)
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
            start = clock()
            made.runs[name]()
            taken_us[name].append(round((clock() - start) * 1e6))
        rounds += 1
        tell(time.perf_counter() - started)
    base = statistics.median(taken_us[made.baseline])
    return {
        "gflop": round(made.flops / 1e9, 3),
        "baseline": made.baseline,
        "rounds": rounds,
        "contenders": {
            name: {
                **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles_ms(times), strict=True)),
                "times_as_fast": round(base / statistics.median(times), 3),
                "gflops": round(made.flops / statistics.median(times) / 1e3, 1),
                "cosine": round(_cosine(made.runs[name](), reference), 6),
                **({"note": made.notes[name]} if name in made.notes else {}),
            }
            for name, times in taken_us.items()
        },
        "absent": made.absent,
    }


@torch.inference_mode()
def peak_gflops(side: int = 1024, rounds: int = 8) -> float:
    """The best float32 matrix product of this machine, 1e9 operations a second: MKL's or oneDNN's, the faster one."""
    from encoders_core.models.packed_linear import PackedLinear, packing_obstacle

    a, b = torch.randn(side, side), torch.randn(side, side)
    ways: list[Callable[[], Tensor]] = [lambda: a @ b]
    if packing_obstacle() is None:
        packed = PackedLinear.from_weights(b, None)
        ways.append(lambda: packed(a))
    best, clock = float("inf"), _clock()
    for _ in range(rounds):
        for way in ways:
            start = clock()
            way()
            best = min(best, clock() - start)
    return 2 * side**3 / best / 1e9


def _clock() -> Callable[[], float]:
    """The process's own time, where it has one thread: what else the machine does then counts less."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).min())


def _summary(found: dict[str, Any], threads: int, peak: float) -> dict[str, Any]:
    for model in found.values():
        for row in model["contenders"].values():
            row["share_of_peak"] = round(row["gflops"] / peak, 3)
    return {
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
            "load": [round(load, 1) for load in os.getloadavg()],
        },
        "threads": threads,
        "clock": "CPU time" if threads == 1 else "wall time",
        "weights": "random but for EfficientNet-Lite0: speed does not depend on them; cosines are to the baseline, one picture",
        "peak_gflops": round(peak, 1),
        "peak": "float32 matrix product of 1024 x 1024; bfloat16 and int8 may go beyond it",
        "models": found,
    }


def _show(summary: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    console = Console()
    for name, model in summary["models"].items():
        title = f"{name}, {model['gflop']:g} GFLOP, {model['rounds']} rounds"
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for column in ("contender", "p50 ms", "p95 ms", f"x {model['baseline']}", "of peak", "cosine"):
            table.add_column(column, justify="left" if column == "contender" else "right")
        for contender, row in model["contenders"].items():
            figures = (row["p50_ms"], row["p95_ms"])
            ratios = (f"{row['times_as_fast']:.2f}", f"{100 * row['share_of_peak']:.0f} %", f"{row['cosine']:.5f}")
            table.add_row(contender, *(f"{figure:.1f}" for figure in figures), *ratios)
        console.print(table)
        for contender, reason in model["absent"].items():
            console.print(f"  absent: {contender}: {reason}", highlight=False)
        for contender, row in model["contenders"].items():
            if "note" in row:
                console.print(f"  {contender}: {row['note']}", highlight=False)
    console.print(
        f"{summary['threads']} thread(s), {summary['clock']}; peak {summary['peak_gflops']:g} GFLOP/s in float32; "
        f"{summary['weights']}"
    )
