"""How far vectors z' are from the vectors z that they stand for. Pure, float64 inside; arrays are (T, D) of one camera.

The fraction of variance unexplained comes first: two frames of one camera have a cosine near 1 whatever happened between
them, so cosine forgives nearly everything; FVU measures the error in units of what the camera shows.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]

VARIANCE_FLOOR: Final = 0.01  # of the model's variance: an idle camera is not judged on its noise
AGE_EDGES_S: Final = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


def squared_errors(truth: Vectors, output: Vectors) -> Floats:
    """(T, D), (T, D) -> (T,) |z' - z|^2."""
    difference = np.asarray(output, np.float64) - np.asarray(truth, np.float64)
    return np.asarray((difference * difference).sum(axis=1))


def variance(vectors: Vectors) -> float:
    """(T, D) -> mean |z - mean|^2."""
    exact = np.asarray(vectors, np.float64)
    return float(((exact - exact.mean(axis=0)) ** 2).sum(axis=1).mean())


def frame_variance(truth: Vectors, model_variance: float) -> float:
    """(T, D) and the model's variance over many scenes -> what one frame's error is measured against."""
    return max(variance(truth), VARIANCE_FLOOR * model_variance)


def fvu(truth: Vectors, output: Vectors, model_variance: float) -> float:
    """FVU = sum |z' - z|^2 / max(sum |z - mean|^2, T * 0.01 * V): 0 is exact, holding one frame for ever about 1 to 2."""
    scale = frame_variance(truth, model_variance)
    return float(squared_errors(truth, output).mean()) / scale if scale else 0.0


def cosines(truth: Vectors, output: Vectors) -> Floats:
    """(T, D), (T, D) -> (T,); 1 where both are zero, 0 where one is."""
    first, second = np.asarray(truth, np.float64), np.asarray(output, np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    both_zero = ~first.any(axis=1) & ~second.any(axis=1)
    return np.where(norms > 0, (first * second).sum(axis=1) / np.where(norms > 0, norms, 1), both_zero.astype(float))


def centred_cosines(truth: Vectors, output: Vectors) -> Floats:
    """The same with the camera's mean taken from both: what remains is what changes."""
    mean = np.asarray(truth, np.float64).mean(axis=0)
    return cosines(truth - mean, output - mean)


def knn_overlap(
    truth: Vectors, output: Vectors, at_s: Floats, *, neighbours: int = 10, gap_s: float = 1.0
) -> float | None:
    """Mean share of the nearest `neighbours` that z' and z have in common, by cosine, among the camera's own z.

    Frames within `gap_s` of the query are no neighbours: they look alike anyway. None when nothing else is left.
    """
    gallery = _unit(truth)
    near = np.abs(at_s[:, None] - at_s[None, :]) <= gap_s
    left = int((~near).sum(axis=1).min())
    count = min(neighbours, left)
    if count < 1:
        return None
    wanted, found = (_nearest(_unit(query) @ gallery.T, near, count) for query in (truth, output))
    return float(np.mean([len(set(a) & set(b)) / count for a, b in zip(wanted, found, strict=True)]))


def _unit(vectors: Vectors) -> Floats:
    exact = np.asarray(vectors, np.float64)
    return np.asarray(exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-300))


def _nearest(similarity: Floats, excluded: NDArray[np.bool_], count: int) -> NDArray[np.intp]:
    return np.argpartition(np.where(excluded, np.inf, -similarity), count - 1, axis=1)[:, :count]


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EventAgreement:
    """Change points of z' against those of z. `delay_s`: how much later the matched ones are, None without any."""

    events: int
    f1: float
    delay_s: float | None


def change_points(vectors: Vectors, at_s: Floats, threshold: float, *, window_s: float = 0.5) -> Floats:
    """(T, D) and times -> times where the mean of the next `window_s` lies farthest from that of the last one.

    The window-based search of Truong, Oudre and Vayatis (https://arxiv.org/abs/1801.00718, 5.2.1) with the L2 cost: the
    squared distance of the two means is above `threshold` and the largest within `window_s`.
    """
    jumps = _jumps(np.asarray(vectors, np.float64), at_s, window_s)
    order = np.argsort(-jumps, kind="stable")
    found: list[float] = []
    for index in order[: int((jumps > threshold).sum())]:
        if all(abs(at_s[index] - other) > window_s for other in found):
            found.append(float(at_s[index]))
    return np.sort(np.asarray(found))


def _jumps(vectors: Floats, at_s: Floats, window_s: float) -> Floats:
    sums = np.vstack([np.zeros((1, vectors.shape[1])), vectors.cumsum(axis=0)])
    starts = np.searchsorted(at_s, at_s - window_s)
    ends = np.searchsorted(at_s, at_s + window_s)
    here = np.arange(len(vectors))
    inside = (at_s - window_s >= at_s[0]) & (at_s + window_s <= at_s[-1]) & (starts < here) & (ends > here)
    jumps = np.zeros(len(vectors))
    rows = here[inside]
    if rows.size:
        before = (sums[rows] - sums[starts[rows]]) / (rows - starts[rows])[:, None]
        after = (sums[ends[rows]] - sums[rows]) / (ends[rows] - rows)[:, None]
        jumps[rows] = ((after - before) ** 2).sum(axis=1)
    return jumps


def event_agreement(
    truth: Vectors, output: Vectors, at_s: Floats, model_variance: float, *, margin_s: float = 0.5
) -> EventAgreement:
    """F1 of the change points of z' within `margin_s` of those of z, each matched once, in order of time.

    A change point is a jump of at least half the camera's (floored) variance; z and z' are measured with one threshold.
    """
    threshold = 0.5 * frame_variance(truth, model_variance)
    wanted, found = change_points(truth, at_s, threshold), change_points(output, at_s, threshold)
    delays, free = [], list(found)
    for event in wanted:
        near = min(free, key=lambda other: abs(other - event), default=None)
        if near is not None and abs(near - event) <= margin_s:
            free.remove(near)
            delays.append(near - event)
    total = len(wanted) + len(found)
    f1 = 2 * len(delays) / total if total else 1.0
    return EventAgreement(len(wanted), f1, float(np.mean(delays)) if delays else None)


# --- error over time --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgeBin:
    """Frames whose last full pass is `from_s` to `to_s` seconds old, and their FVU."""

    from_s: float
    to_s: float
    frames: int
    fvu: float


def error_by_age(errors: Floats, age_s: Floats) -> tuple[float, list[AgeBin]]:
    """(T,) errors as shares of the frame variance, (T,) seconds since the last full pass -> slope per second, table."""
    spread = age_s - age_s.mean()
    slope = float((spread * errors).sum() / (spread**2).sum()) if spread.any() else 0.0
    table = []
    for low, high in pairwise((*AGE_EDGES_S, float("inf"))):
        rows = (age_s >= low) & (age_s < high)
        if rows.any():
            table.append(AgeBin(low, high, int(rows.sum()), float(errors[rows].mean())))
    return slope, table


def worst_window(errors: Floats, at_s: Floats, *, window_s: float = 1.0) -> float:
    """The largest mean error of the frames of any `window_s`; of all frames when they are fewer than that."""
    sums = np.concatenate([[0.0], np.cumsum(errors)])
    ends = np.searchsorted(at_s, at_s + window_s)
    whole = at_s + window_s <= at_s[-1] + 1e-9
    if not whole.any():
        return float(errors.mean())
    starts = np.flatnonzero(whole)
    return float(((sums[ends[starts]] - sums[starts]) / (ends[starts] - starts)).max())


def segments(at_s: Floats, *, length_s: float = 10.0) -> NDArray[np.intp]:
    """(T,) times -> (T,) number of the segment each frame lies in."""
    return np.asarray((at_s - at_s[0]) // length_s, np.intp)


def bootstrap_interval(
    errors: Floats, scales: Floats, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """Sums of error and of variance, one a segment -> the 95 % interval of their ratio, whole segments drawn again.

    None with fewer than three segments: there is nothing to draw from.
    """
    if len(errors) < 3:
        return None
    draws = np.random.default_rng(seed).integers(0, len(errors), (resamples, len(errors)))
    low, high = np.quantile(errors[draws].sum(axis=1) / scales[draws].sum(axis=1), (0.025, 0.975))
    return float(low), float(high)
