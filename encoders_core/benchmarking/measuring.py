"""One encoder on one data set: the items are encoded once, timed as they go, and every metric is taken from that."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from encoders_core.benchmarking.datasets import DataSet
from encoders_core.errors import OptionError
from encoders_core.memory_bound import PeakMemory

LEAST_ITEMS: Final = 4
"""Fewer make no metric; they are encoded even where the budget is too small for them."""
_TIMING_SHARE: Final = 0.6


class Embedder:
    """`encoder(items) -> (N, D)` for the kind of the data set, past any feature cache, which would be timed instead."""

    def __init__(self, encoder: Any, data: DataSet) -> None:
        self.encoder, self.data = encoder, data

    def __call__(self, items: Any) -> Tensor:
        """(N, D) float32 of items as `DataSet.take` gives them; of pairs the pictures."""
        match self.data.kind:
            case "image":
                found = self.encoder.encode_image(items, convert_to_tensor=True, show_progress_bar=False)
            case "video":
                found = self.encoder.encode_video(items, convert_to_tensor=True, show_progress_bar=False)
            case "text":
                found = self.encoder.encode_text(items, convert_to_tensor=True, show_progress_bar=False)
            case "pairs":
                found = self.encoder.encode_image([picture for picture, _ in items], convert_to_tensor=True)
                self.encoder.encode_text([text for _, text in items])  # the work of a pair is both
            case "features":
                with self.encoder.inference():
                    found = self.encoder.combine(items).features
        return torch.as_tensor(found).float().cpu()


@dataclass
class Run:
    """What was seen while encoding."""

    peak_bytes: int
    growth_bytes: int
    times_s: list[float] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)

    @property
    def features(self) -> Tensor:
        """(N, D) of the first N items."""
        return torch.cat(self.parts)


def encode_and_time(embed: Embedder, iterations: int, budget_s: float) -> Run:
    """One item after the other, at most `iterations` and within the budget, but four where `iterations` allows.

    A first call, not timed, shows the memory. After the last item the first comes again, and its time counts anew.
    """
    started, data = time.perf_counter(), embed.data
    with PeakMemory() as peak:
        before = peak.bytes
        embed(data.take([0]))
    run = Run(peak_bytes=peak.bytes, growth_bytes=peak.bytes - before)
    for turn in range(iterations):
        late = time.perf_counter() - started > _TIMING_SHARE * budget_s
        if late and turn >= LEAST_ITEMS:
            break
        item = data.take([turn % len(data)])
        start = time.perf_counter()
        part = embed(item)
        run.times_s.append(time.perf_counter() - start)
        if turn < len(data):
            run.parts.append(part)
    return run


def throughput(embed: Embedder, batch_size: int, budget_s: float, per_item_s: float) -> dict[str, float]:
    """Items a second in batches, the best that a user gets: items over time, over at least one batch.

    A batch is made smaller where one of the full size would take more than the budget, but it has at least two items.
    """
    size = min(batch_size, len(embed.data), max(2, int(budget_s / max(per_item_s, 1e-9))))
    starts = itertools.cycle(range(0, max(1, len(embed.data) - size + 1), size))
    done, spent = 0, 0.0
    while not done or spent < budget_s:
        start = next(starts)
        items = embed.data.take(range(start, start + size))
        begun = time.perf_counter()
        embed(items)
        spent, done = spent + time.perf_counter() - begun, done + size
    return {"items_per_s": done / spent, "batch_size": size, "items": done}


def until(budget_s: float, count: int, step: Callable[[int], Any], *, least: int = 2) -> list[Any]:
    """`step(0)`, `step(1)`, ... for at most `count` items, until the budget is spent, but at least `least` times."""
    started, found = time.perf_counter(), list[Any]()
    for index in range(count):
        if len(found) >= least and time.perf_counter() - started > budget_s:
            break
        found.append(step(index))
    return found


def played(clip: Any) -> tuple[Any, Any] | None:
    """A clip (T, H, W, 3) or (T, C, H, W) backwards, and with all values a tenth smaller; None if it is the same backwards.

    Raises OptionError for a file.
    """
    if isinstance(clip, list | tuple):
        clip = np.stack([np.asarray(frame) for frame in clip])
    if not isinstance(clip, np.ndarray | Tensor) or clip.ndim != 4:
        raise OptionError("clips that are files are not played backwards: give a DataSet of arrays (T, H, W, 3)")
    frames = torch.as_tensor(clip)
    backwards = frames.flip(0)
    if torch.equal(backwards, frames):
        return None
    dimmed = (frames * 0.9).to(frames.dtype)
    return (backwards.numpy(), dimmed.numpy()) if isinstance(clip, np.ndarray) else (backwards, dimmed)
