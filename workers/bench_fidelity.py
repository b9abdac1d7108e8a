"""`camvec bench fidelity`: policies against the plain encoder on every frame, on the same decoded frames, taking turns."""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from encoders_core.fidelity.catalogue import Entry, catalogue, choose
from encoders_core.fidelity.curves import TARGET_FVU, draw, require_plots
from encoders_core.fidelity.disturbances import DISTURBANCES, texture
from encoders_core.fidelity.replay import CAMERAS, Recording, replay
from encoders_core.fidelity.run import TURN_FRAMES, Clip, Trace, score
from encoders_core.fidelity.study import Performance, perform, report, sampled_variance, steps
from encoders_core.fidelity.subject import Subject, load_subject
from encoders_core.hardware_threads import configure_threads
from streaming.errors import ConfigError
from streaming.frames import FrameSpec
from streaming.sources import SourceConfig, open_source
from streaming.sources.convert import convert
from workers.encoding import frame_spec_of

_MIN_FRAMES = 3
_SCENARIO_FPS = 10.0
_RECORDED = ("camvec", "tokenwise", "stale_kv")
_WIDTH = 120
"""Of the tables in a file; a terminal says its own."""


def run_fidelity(
    clips: list[Path],
    *,
    model: str,
    policies: list[str],
    fps: float | None,
    frames: int | None,
    sweep: bool,
    png: Path | None,
    variance: float | None,
    scenarios: list[str],
    replays: list[str],
    as_json: bool,
) -> None:
    """Measure and print. Raises ConfigError for a file that is none, EncoderError for a model or policy that is none."""
    if not clips and not scenarios:
        raise ConfigError("expected video files, or --scenario with the name of a disturbance")
    if missing := [str(path) for path in clips if not path.is_file()]:
        raise ConfigError(f"expected video files, and there is no such file: {', '.join(missing)}")
    if png is not None:
        require_plots()
    configure_threads()
    load = os.getloadavg()[0]
    subject = load_subject(model)
    check_scenarios(scenarios)
    big = [load_subject(name) for name in replays]
    entries = choose(catalogue(subject), policies)  # a wrong name is told before anything is decoded
    with _progress() as progress:
        spec = frame_spec_of(subject.spec)
        if scenarios:
            decoded = _disturbed(clips, scenarios, spec, fps or _SCENARIO_FPS, frames)
        else:
            decoded = _decode_all(clips, spec, fps, frames, progress)
        subject = subject.calibrated(variance or sampled_variance(subject, decoded))
        entries = choose(catalogue(subject), policies)
        done = _perform_all(entries, decoded, sweep=sweep or png is not None, progress=progress)
    found = {**report(subject, decoded, done, said=variance), "protocol": _protocol(load, fps)}
    if big:
        found["replay"] = _replays(big, subject, decoded, done, _by_default)
        if sweep or png is not None:
            found["replay_at_target"] = _replays(big, subject, decoded, done, _at_target(found["variance"]))
    if png is not None:
        draw(found["curves"], png, title=f"{subject.name}, {len(decoded)} clips")
    if as_json:
        print(json.dumps(_rounded(found)))
    else:
        _print(found)


def _progress() -> Progress:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _decode_all(
    paths: list[Path], spec: FrameSpec, fps: float | None, limit: int | None, progress: Progress
) -> list[Clip]:
    task = progress.add_task("decoding", total=len(paths))
    clips = []
    for path in paths:
        clips.append(decode_clip(path, spec, fps=fps, limit=limit))
        progress.advance(task)
    return clips


def decode_clip(path: Path, spec: FrameSpec, *, fps: float | None = None, limit: int | None = None) -> Clip:
    """The frames of a file as the pipeline would hand them to the model; `fps` thins them out, `limit` ends early.

    Raises ConfigError when fewer than three frames come of it, SourceError when it cannot be decoded.
    """
    source = open_source(SourceConfig(str(path.absolute())))
    pixels, at_ns, decoded, last_slot = [], [], 0, -1
    started_ns = time.process_time_ns()
    try:
        info = source.open()
        for picture in source.pictures():
            if picture.image is None:
                continue
            decoded += 1
            slot = decoded if fps is None else int(picture.pts_us * fps / 1e6 + 1e-3)
            if slot <= last_slot:
                continue
            last_slot = slot
            pixels.append(convert(picture.image, spec, strip_px=info.strip_px))
            at_ns.append(picture.pts_us * 1000)
            if limit is not None and len(pixels) >= limit:
                break
    finally:
        source.close()
    if len(pixels) < _MIN_FRAMES:
        raise ConfigError(f"{path}: expected at least {_MIN_FRAMES} frames, got {len(pixels)}: raise --fps or --frames")
    # Decoding is paid for every frame that arrives; those thinned out stand for frames that never came.
    return Clip(path.stem, pixels, at_ns, (time.process_time_ns() - started_ns) / 1e6 / decoded)


def check_scenarios(names: list[str]) -> None:
    """Raises ConfigError for a disturbance that is none."""
    if unknown := [name for name in names if name not in DISTURBANCES]:
        raise ConfigError(f"unknown scenario {', '.join(unknown)}; there are: {', '.join(DISTURBANCES)}")


def _disturbed(paths: list[Path], names: list[str], spec: FrameSpec, fps: float, limit: int | None) -> list[Clip]:
    """Each disturbance on the first frame of each file, or on a made picture without any."""
    pictures = {path.stem: decode_clip(path, spec, limit=_MIN_FRAMES).frames[0] for path in paths}
    clips = []
    for origin, picture in (pictures or {"texture": texture(spec.size_hw[0])}).items():
        for name in names:
            pixels = list(itertools.islice(DISTURBANCES[name](picture), limit))
            at_ns = [round(index * 1e9 / fps) for index in range(len(pixels))]
            clips.append(Clip(f"{name} on {origin}", pixels, at_ns))
    return clips


_Pick = Callable[[Clip, list[Performance]], Trace]
"""Of one policy's performances of a clip at its knobs, the default first, and the plain one before them: one to replay."""


def _by_default(_clip: Clip, row: list[Performance]) -> Trace:
    return row[1].trace


def _at_target(variance: float) -> _Pick:
    """The one that computes the least at an FVU of at most the target, as steering sets the knob; else the most exact."""

    def pick(clip: Clip, row: list[Performance]) -> Trace:
        scored = [(score(clip, row[0].trace.vectors, one.trace, variance).summary, one.trace) for one in row[1:]]
        within = [(summary["macs"], trace) for summary, trace in scored if summary["fvu"] <= TARGET_FVU]
        if within:
            return min(within, key=lambda one: one[0])[1]
        return min(scored, key=lambda one: one[0]["fvu"])[1]

    return pick


def _replays(
    models: list[Subject], subject: Subject, clips: list[Clip], done: list[list[Performance]], pick: _Pick
) -> dict[str, Any]:
    """The rows of each policy that counts them, on models without trained weights; what ships under the model's own name."""
    if subject.vit is None:
        raise ConfigError(f"--replay needs a ViT to record the rows of, and {subject.name} is none")
    known = {one.entry.name for one in done[0] if one.place == 0 and one.trace.counts_layers}
    names = [name for name in _RECORDED if name in known]
    if not names:
        raise ConfigError(f"--replay needs one of {', '.join(_RECORDED)} among the policies")
    found = {}
    for name in names:
        traces = [
            pick(clip, [row[0], *(one for one in row if one.entry.name == name)])
            for clip, row in zip(clips, done, strict=True)
        ]
        recordings = [Recording.of(trace, subject.vit.cost.tokens) for trace in traces]
        for model in models:
            key = model.name if name == names[0] else f"{model.name}, {name}"
            found[key] = {"rows_of": f"{name} on {subject.name}", **replay(model, clips, recordings, CAMERAS)}
    return found


def _perform_all(
    entries: list[Entry], clips: list[Clip], *, sweep: bool, progress: Progress
) -> list[list[Performance]]:
    task = progress.add_task("policies", total=steps(entries, clips, sweep=sweep))
    done = []
    for clip in clips:
        progress.update(task, description=clip.name[:28])
        done.append(perform(entries, clip, sweep=sweep, tick=lambda: progress.advance(task)))
    return done


def _protocol(load_before: float, fps: float | None) -> dict[str, Any]:
    return {
        "threads": 1,
        "turn_frames": TURN_FRAMES,
        "fps": fps,
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "target_fvu": TARGET_FVU,
    }


def _rounded(value: Any) -> Any:
    """Five significant digits: what a file of figures needs."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


# --- the tables -------------------------------------------------------------------------------------------------------


def _print(found: dict[str, Any]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    trained = "trained" if found["trained"] else "random weights: nothing here says anything of fidelity"
    console.print(
        f"{found['model']}, {trained}; V = {found['variance']:.4g} ({found['variance_from']})", highlight=False
    )
    for clip in found["clips"]:
        _print_part(console, f"{clip['name']}: {clip['frames']} frames, {clip['fps']:.1f}/s", clip)
    _print_part(console, "all clips", found)
    for word, title in (("replay", ""), ("replay_at_target", f", at an FVU of at most {TARGET_FVU}")):
        for name, row in found.get(word, {}).items():
            console.print(_replay_table(name + title, row))
    console.print(
        f"CPU is the policy's own, gates and refreshes included; decoding and conversion {found['decode_ms']:.2f} ms a "
        f"frame beside it; load {found['protocol']['load_before']:.1f} to {found['protocol']['load_after']:.1f}",
        highlight=False,
    )


def _print_part(console: Console, title: str, part: dict[str, Any]) -> None:
    console.print(_table(title, part["policies"]))
    if "at_target" in part:
        console.print(_target_table(title, part["at_target"]))


def _table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for name in (
        "policy",
        "FVU",
        "worst 1 s",
        "cos p5",
        "min",
        "kNN@10",
        "event F1",
        "tokens",
        "MACs",
        "CPU ms",
        "p99",
    ):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for name, row in rows.items():
        words = (
            _figure(row["fvu"], 4),
            _figure(row["fvu_worst_1s"], 3),
            _figure(row["cos_p5"], 4),
            _figure(row["cos_min"], 4),
            _figure(row["knn10"], 3),
            _figure(row["event_f1"], 2),
            f"{row['tokens']:.1%}",
            f"{row['macs']:.1%}",
            _figure(row["cpu_ms_per_frame"], 2),
            _figure(row["p99_ms"], 1),
        )
        table.add_row(name, *words)
    return table


def _target_table(title: str, rows: dict[str, dict[str, Any] | None]) -> Table:
    title = f"{title} at an FVU of at most {TARGET_FVU}, read off the curves"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("policy", "FVU", "tokens", "MACs", "CPU ms", "times less", "times camvec"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for name, row in rows.items():
        if row is None:
            table.add_row(name, "no knob is that exact")
            continue
        figures = (_figure(row[word], 2) for word in ("cpu_ms_per_frame", "times_less_than_plain", "times_camvec"))
        table.add_row(name, _figure(row["fvu"], 4), f"{row['tokens']:.1%}", f"{row['macs']:.1%}", *figures)
    return table


def _replay_table(name: str, row: dict[str, Any]) -> Table:
    title = f"{name}, random weights: speed only, at the rows of {row['rows_of']}"
    table = Table(title=title, title_justify="left", box=None)
    for column in (
        "clip",
        "plain ms",
        "full ms, same code",
        "replay ms",
        *(f"times less, {count} cameras" for count in CAMERAS),
    ):
        table.add_column(column, justify="left" if column == "clip" else "right")
    for one in (*row["clips"], {"name": "all", **row}):
        figures = (one["plain_ms"], one["engine_full_ms"], one["replay_ms"], *one["times_less_by_cameras"].values())
        table.add_row(one["name"], *(_figure(value, 2) for value in figures))
    return table


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
