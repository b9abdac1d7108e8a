"""A run over clips: every policy at its default knob, or over a sweep of knobs, and what equal fidelity costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from encoders_core.config import AuditConfig
from encoders_core.fidelity import metrics
from encoders_core.fidelity.catalogue import Entry
from encoders_core.fidelity.curves import Curve
from encoders_core.fidelity.frame_policies import Plain
from encoders_core.fidelity.run import Clip, Scored, Trace, run_clip, score, together
from encoders_core.fidelity.subject import Subject

_SAMPLED: Final = 16
_ENOUGH_CLIPS: Final = 3
_CURVE_WORDS: Final = ("fvu", "tokens", "macs", "cpu_ms_per_frame", "cos_p5", "knn10")


@dataclass(frozen=True, slots=True)
class Performance:
    """One policy at one knob over one clip. Its first knob is its default, or the budget that it was given."""

    entry: Entry
    knob: float
    place: int
    trace: Trace


def sampled_variance(subject: Subject, clips: Sequence[Clip]) -> float:
    """The variance of the features over all clips, from some frames of each: what gates are told before the run."""
    plain = Plain(subject.encoder)
    chosen = [np.unique(np.linspace(0, len(clip.frames) - 1, _SAMPLED).astype(int)) for clip in clips]
    frames = [clip.frames[index] for clip, rows in zip(clips, chosen, strict=True) for index in rows]
    return metrics.variance(np.stack([plain.encode(frame) for frame in frames]))


def perform(
    entries: Sequence[Entry], clip: Clip, *, sweep: bool, tick: Callable[[], None] = lambda: None
) -> list[Performance]:
    """All policies over one clip, plain first. One with another's budget gets it from a first look at that one."""
    givers = [entry for entry in entries if any(other.budget_of == entry.name for other in entries)]
    looks = run_clip([entry.make(entry.knob) for entry in givers], clip) if givers else []
    budgets = {entry.name: float(np.mean(look.rows)) for entry, look in zip(givers, looks, strict=True)}
    field = []
    for entry in entries:
        default = budgets.get(entry.budget_of or "", entry.knob)
        others = [knob for knob in entry.sweep if knob != entry.knob] if sweep else []
        field += [(entry, knob, place) for place, knob in enumerate((default, *others))]
    traces = run_clip([entry.make(knob) for entry, knob, _ in field], clip, tick=tick)
    return [Performance(*one, trace) for one, trace in zip(field, traces, strict=True)]


def steps(entries: Sequence[Entry], clips: Sequence[Clip], *, sweep: bool) -> int:
    """How often `perform` will tick."""
    knobs = sum(1 + (len([k for k in entry.sweep if k != entry.knob]) if sweep else 0) for entry in entries)
    return knobs * sum(len(clip.frames) for clip in clips)


def report(
    subject: Subject, clips: Sequence[Clip], done: Sequence[Sequence[Performance]], *, said: float | None = None
) -> dict[str, Any]:
    """The scores of a run: `policies` over all clips, each of `clips` by itself, `curves` and `at_target` of a sweep.

    `said`: the model's variance V over many scenes, from whoever knows it better than these clips.
    """
    truths = [performances[0].trace.vectors for performances in done]
    variance, source = (said, "said") if said is not None else _variance(subject, truths)
    results = [
        [(one, score(clip, truth, one.trace, variance)) for one in performances]
        for clip, truth, performances in zip(clips, truths, done, strict=True)
    ]
    decode_ms = sum(clip.decode_ms * len(clip.frames) for clip in clips) / sum(len(clip.frames) for clip in clips)
    whole = _whole(results)
    descriptor = subject.encoder.descriptor
    return {
        "clips": [
            {**_describe(clip), "variance": metrics.variance(truth), **_of_clip(rows)}
            for clip, truth, rows in zip(clips, truths, results, strict=True)
        ],
        "model": descriptor.name,
        "fingerprint": descriptor.fingerprint,
        "trained": descriptor.trained,
        "variance": variance,
        "variance_from": source,
        "decode_ms": decode_ms,
        "policies": {
            entry.name: {"knob": knob, "kernel": entry.kernel, **row, **_beside(entry, row, whole[0][3], decode_ms)}
            for entry, place, knob, row in whole
            if place == 0
        },
        **_sweep([(entry.name, knob, row) for entry, _, knob, row in whole]),
    }


_Rows = list[tuple[Performance, Scored]]


def _whole(results: Sequence[_Rows]) -> list[tuple[Entry, int, float, dict[str, Any]]]:
    """Each policy at each of its knobs over all clips: entry, place of the knob, its mean, scores."""
    grouped = [[rows[index] for rows in results] for index in range(len(results[0]))]
    return [
        (
            parts[0][0].entry,
            parts[0][0].place,
            float(np.mean([one.knob for one, _ in parts])),
            together([scored for _, scored in parts]),
        )
        for parts in grouped
    ]


def _of_clip(rows: _Rows) -> dict[str, Any]:
    policies = {
        one.entry.name: {"knob": one.knob, **scored.summary, **_by_layer(one.trace)}
        for one, scored in rows
        if one.place == 0
    }
    return {"policies": policies, **_sweep([(one.entry.name, one.knob, scored.summary) for one, scored in rows])}


def _sweep(rows: Sequence[tuple[str, float, dict[str, Any]]]) -> dict[str, Any]:
    """`curves` by policy and `at_target`, what each costs at the target FVU; nothing for a run without a sweep."""
    curves: dict[str, list[dict[str, float]]] = {}
    for name, knob, row in rows:
        family = "hold" if name.startswith("hold") else name
        curves.setdefault(family, []).append({"knob": knob, **{word: row[word] for word in _CURVE_WORDS}})
    if len(rows) == len({name for name, _, _ in rows}):
        return {}
    found = {name: Curve(points).at_target() for name, points in curves.items() if name != "plain"}
    plain_ms = curves["plain"][0]["cpu_ms_per_frame"]
    ours = found.get("camvec")
    costs = {
        name: {
            **row,
            "times_less_than_plain": plain_ms / row["cpu_ms_per_frame"],
            "times_camvec": row["cpu_ms_per_frame"] / ours["cpu_ms_per_frame"] if ours else None,
        }
        for name, row in found.items()
        if row
    }
    return {"curves": curves, "at_target": {name: costs.get(name) for name in found}}


def _variance(subject: Subject, truths: Sequence[np.ndarray[Any, Any]]) -> tuple[float, str]:
    """V: over all clips of the run; the model's own constant where it has one and the clips are too few to say."""
    if len(truths) < _ENOUGH_CLIPS and subject.variance is not None:
        return subject.variance, "model"
    return metrics.variance(np.concatenate(list(truths))), "run"


def _describe(clip: Clip) -> dict[str, Any]:
    return {"name": clip.name, "frames": len(clip.frames), "fps": clip.fps, "decode_ms": clip.decode_ms}


def _by_layer(trace: Trace) -> dict[str, Any]:
    rows = trace.rows_by_layer()
    return {} if rows is None else {"rows_by_block": rows.round(1).tolist()}


def _beside(entry: Entry, row: dict[str, Any], plain: dict[str, Any], decode_ms: float) -> dict[str, float]:
    """What a frame costs besides its vector: decoding, and for what ships its share of audits, by formula."""
    audit_ms = AuditConfig().share * plain["cpu_ms_per_frame"] if entry.kernel == "ships" else 0.0
    return {"audit_ms_per_frame": audit_ms, "end_to_end_ms": row["cpu_ms_per_frame"] + decode_ms + audit_ms}
