"""All policies over the same frames of one clip, taking turns in one process, and the scores of what came out."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from encoders_core.fidelity import metrics
from encoders_core.fidelity.metrics import Floats
from encoders_core.fidelity.policy import Frame, Policy, Rows, Step

TURN_FRAMES: Final = 4
"""Frames a policy takes before the next one does: few enough to share the machine's moods, enough to warm its caches."""
WARM_UP_S: Final = 0.5
"""Of each clip, for each policy: not in the times, but in everything else."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Decoded frames of one camera, of the model's size, with their times."""

    name: str
    frames: list[Frame]
    at_ns: list[int]
    decode_ms: float = 0.0
    """Process time to decode and convert one frame."""
    camera: str = "fixed"

    @property
    def at_s(self) -> Floats:
        """(T,) seconds since the first frame."""
        return (np.asarray(self.at_ns, np.float64) - self.at_ns[0]) / 1e9

    @property
    def fps(self) -> float:
        """Frames a second."""
        span_s = float(self.at_s[-1])
        return (len(self.at_ns) - 1) / span_s if span_s else 0.0


@dataclass(slots=True)
class Trace:
    """What one policy did over one clip."""

    features: list[NDArray[np.float32]] = field(default_factory=list)
    cpu_ns: list[int] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    """Share of the plain pass."""
    macs: list[float] = field(default_factory=list)
    encoded: list[bool] = field(default_factory=list)
    full: list[bool] = field(default_factory=list)
    detail: list[Rows | None] = field(default_factory=list)
    embedded: list[int | None] = field(default_factory=list)

    def add(self, step: Step, cpu_ns: int) -> None:
        """One frame."""
        self.features.append(step.features)
        self.cpu_ns.append(cpu_ns)
        self.rows.append(step.rows / step.rows_total)
        self.macs.append(step.macs / step.macs_total)
        self.encoded.append(step.encoded)
        self.full.append(step.full)
        self.detail.append(step.detail)
        self.embedded.append(step.embedded)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(T, D)."""
        return np.stack(self.features)

    @property
    def counts_layers(self) -> bool:
        """Whether the rows of each layer are known of every frame that was encoded."""
        return all(rows is not None for rows, encoded in zip(self.detail, self.encoded, strict=True) if encoded)

    def rows_by_layer(self) -> Floats | None:
        """(depth, 4) mean rows of the frames that nobody computed in full; None where they are not counted."""
        known = [rows for rows, full in zip(self.detail, self.full, strict=True) if rows is not None and not full]
        return np.asarray(np.mean(known, axis=0)) if known else None


def run_clip(
    policies: Sequence[Policy], clip: Clip, *, tick: Callable[[], None] = lambda: None, turn: int = TURN_FRAMES
) -> list[Trace]:
    """Every policy over every frame; the order of the turns is rotated. `tick` is called once a frame and policy."""
    traces = [Trace() for _ in policies]
    for policy in policies:
        policy.reset()
    for number, start in enumerate(range(0, len(clip.frames), turn)):
        for place in range(len(policies)):
            index = (place + number) % len(policies)
            policy, trace = policies[index], traces[index]
            for frame, at_ns in zip(clip.frames[start : start + turn], clip.at_ns[start : start + turn], strict=True):
                started_ns = time.process_time_ns()
                step = policy.step(frame, at_ns)
                trace.add(step, time.process_time_ns() - started_ns)
                tick()
    return traces


@dataclass(frozen=True)
class Scored:
    """One policy's scores over one clip, and the sums from which those of several clips are made."""

    summary: dict[str, Any]
    errors: Floats
    """(T,) |z' - z|^2."""
    scale: float
    """What one frame's error is measured against."""
    segments: NDArray[np.intp]
    cosines: Floats
    centred: Floats
    trace: Trace
    at_s: Floats


def score(clip: Clip, truth: NDArray[np.float32], trace: Trace, model_variance: float) -> Scored:
    """The scores of one policy over one clip; `truth` (T, D) is the plain encoder's."""
    output, at_s = trace.vectors, clip.at_s
    errors, scale = metrics.squared_errors(truth, output), metrics.frame_variance(truth, model_variance)
    shares = errors / scale if scale else errors
    near, centred = metrics.cosines(truth, output), metrics.centred_cosines(truth, output)
    slope, ages = metrics.error_by_age(shares, age_s(at_s, trace.full))
    events = metrics.event_agreement(truth, output, at_s, model_variance)
    summary = {
        "fvu": float(shares.mean()),
        "fvu_worst_1s": metrics.worst_window(shares, at_s),
        **_cosine_words(near, centred),
        "knn10": metrics.knn_overlap(truth, output, at_s),
        "events": events.events,
        "event_f1": events.f1,
        "event_delay_s": events.delay_s,
        "error_slope_per_s": slope,
        "error_by_age": [[row.from_s, row.frames, row.fvu] for row in ages],
        **_work(trace),
        **_times(warm_times_ns(trace, at_s)),
    }
    return Scored(summary, errors, scale, metrics.segments(at_s), near, centred, trace, at_s)


def warm_times_ns(trace: Trace, at_s: Floats) -> list[int]:
    """The times of the frames behind the warm-up, which is at most half of the clip."""
    start = min(WARM_UP_S, at_s[-1] / 2)
    return [taken for taken, at in zip(trace.cpu_ns, at_s, strict=True) if at >= start]


def age_s(at_s: Floats, full: Sequence[bool]) -> Floats:
    """(T,) times and which frames were computed in full -> (T,) seconds since the last of those."""
    marks = np.where(full, at_s, -np.inf)
    return np.asarray(at_s - np.maximum(np.maximum.accumulate(marks), at_s[0]))


def together(parts: Sequence[Scored]) -> dict[str, Any]:
    """The scores of one policy over all clips: errors and variances are summed, times and shares are of all frames.

    `fvu_interval`: 95 % of a bootstrap over segments of 10 s of all clips. `fvu_clips`: median and largest of the clips.
    """
    errors = np.concatenate([_by_segment(part.errors, part.segments) for part in parts])
    scales = np.concatenate([_by_segment(np.full(len(part.errors), part.scale), part.segments) for part in parts])
    near, centred = (np.concatenate([getattr(part, name) for part in parts]) for name in ("cosines", "centred"))
    fvus = [part.summary["fvu"] for part in parts]
    knn = [(part.summary["knn10"], len(part.errors)) for part in parts if part.summary["knn10"] is not None]
    matched = [(part.summary["event_f1"], part.summary["events"]) for part in parts]
    all_times = [t for part in parts for t in warm_times_ns(part.trace, part.at_s)]
    events = sum(count for _, count in matched)
    return {
        "fvu": float(errors.sum() / scales.sum()) if scales.sum() else 0.0,
        "fvu_interval": metrics.bootstrap_interval(errors, scales),
        "fvu_clips": [float(np.median(fvus)), float(np.max(fvus))],
        "fvu_worst_1s": max(part.summary["fvu_worst_1s"] for part in parts),
        **_cosine_words(near, centred),
        "knn10": sum(value * count for value, count in knn) / sum(count for _, count in knn) if knn else None,
        "events": events,
        "event_f1": sum(f1 * count for f1, count in matched) / events if events else 1.0,
        **_work_of_all([part.trace for part in parts]),
        **_times(all_times),
    }


def _by_segment(values: Floats, numbers: NDArray[np.intp]) -> Floats:
    return np.asarray(np.bincount(numbers, weights=values), np.float64)


def _cosine_words(near: Floats, centred: Floats) -> dict[str, float]:
    return {
        "cos_mean": float(near.mean()),
        "cos_p5": float(np.quantile(near, 0.05)),
        "cos_min": float(near.min()),
        "cos_centred": float(centred.mean()),
    }


def _work(trace: Trace) -> dict[str, float]:
    return {
        "tokens": float(np.mean(trace.rows)),
        "macs": float(np.mean(trace.macs)),
        "encoded": float(np.mean(trace.encoded)),
        "full": float(np.mean(trace.full)),
    }


def _work_of_all(traces: Sequence[Trace]) -> dict[str, float]:
    whole = Trace()
    for trace in traces:
        for name in ("rows", "macs", "encoded", "full"):
            getattr(whole, name).extend(getattr(trace, name))
    return _work(whole)


def _times(cpu_ns: Sequence[int]) -> dict[str, float]:
    times_ms = np.asarray(cpu_ns) / 1e6
    p50, p95, p99 = (float(value) for value in np.quantile(times_ms, (0.5, 0.95, 0.99)))
    return {"cpu_ms_per_frame": float(times_ms.mean()), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
