"""What a policy costs at each fidelity: its points over a sweep of its knob, read at one FVU, and drawn."""

import importlib.util
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from encoders_core.config import QUALITY_TARGETS
from encoders_core.errors import OptionError

TARGET_FVU: Final = QUALITY_TARGETS["balanced"]
_READ: Final = ("fvu", "tokens", "macs", "cpu_ms_per_frame")
_EXACT_FVU: Final = 1e-5  # a logarithm needs a number


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one policy, each with `fvu`, `tokens`, `macs`, `cpu_ms_per_frame`, in any order."""

    points: list[dict[str, float]]

    def at_target(self, target: float = TARGET_FVU) -> dict[str, float] | None:
        """The least that the policy costs at an FVU of at most `target`; its own `fvu` is among the figures.

        Between two knobs the cost is taken as linear in log FVU. None when no knob is that exact; nothing is extrapolated.
        """
        known = sorted(self.points, key=lambda point: point["fvu"])
        exact = [{word: point[word] for word in _READ} for point in known if point["fvu"] <= target]
        between = [_between(low, high, target) for low, high in pairwise(known) if low["fvu"] <= target < high["fvu"]]
        return min((*exact, *between), key=lambda point: point["cpu_ms_per_frame"], default=None)


def _between(low: dict[str, float], high: dict[str, float], target: float) -> dict[str, float]:
    start = max(low["fvu"], _EXACT_FVU)
    share = math.log(target / start) / math.log(high["fvu"] / start)
    read = {word: low[word] + share * (high[word] - low[word]) for word in _READ}
    return {**read, "fvu": target}


def require_plots() -> None:
    """Raises OptionError without matplotlib: before a long run, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError("drawing curves needs matplotlib: pip install 'camvec[plot]', or leave out --png")


def draw(curves: dict[str, list[dict[str, float]]], path: Path, *, title: str) -> None:
    """A PNG: time saved and tokens computed, both against FVU. Raises OptionError without matplotlib."""
    require_plots()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  wanted for pictures only
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    plain_ms = curves["plain"][0]["cpu_ms_per_frame"]
    saved, tokens = figure.subplots(1, 2)
    for name, points in curves.items():
        if name == "plain":
            continue
        ordered = sorted(points, key=lambda point: point["fvu"])
        errors = [max(point["fvu"], _EXACT_FVU) for point in ordered]
        saved.plot(errors, [1 - point["cpu_ms_per_frame"] / plain_ms for point in ordered], marker="o", label=name)
        tokens.plot(errors, [point["tokens"] for point in ordered], marker="o", label=name)
    for axes, words in ((saved, "CPU time saved against plain"), (tokens, "tokens computed, share of plain")):
        axes.set(xscale="log", xlabel="FVU", ylabel=words)
        axes.axvline(TARGET_FVU, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
    saved.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
