"""`camvec bench ...`: measurements, each with `--json`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure: each prints one JSON object, last, with --json.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure: each prints one JSON object, last, with --json."""


@app.command()
def pipeline(
    *,
    cameras: Annotated[int, typer.Option(min=1, max=64, help="How many cameras.")] = 2,
    fps: Annotated[float, typer.Option(min=0.5, max=120.0, help="Frames a second of each scene.")] = 10.0,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long to measure.")] = 30.0,
    source: Annotated[str, typer.Option(help="scene, a video file, or the URL of a camera.")] = "scene",
    budget_ms: Annotated[float, typer.Option(min=1.0, help="Latency budget in milliseconds.")] = 100.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, last, for programs.")] = False,
) -> None:
    """The whole pipeline with a broker and a subscriber: latency by stage, drops by cause, CPU and memory."""
    from workers.demo import run_pipeline_bench, scene_url

    names = [f"cam{number}" for number in range(1, cameras + 1)]
    with tempfile.TemporaryDirectory(prefix="camvec-bench-") as folder:
        if source == "scene":
            logs = {name: Path(folder) / f"{name}.jsonl" for name in names}
            urls = {name: scene_url(index, fps, logs[name]) for index, name in enumerate(names)}
        else:
            logs, urls = {}, dict.fromkeys(names, source)
        run_pipeline_bench(urls, seconds=seconds, budget_ms=budget_ms, logs=logs, as_json=as_json)


@app.command()
def encoders(
    *,
    model: Annotated[list[str] | None, typer.Option(help="Only these; can be given again.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure each model.")] = 20.0,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Threads of each contender.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, last, for programs.")] = False,
) -> None:
    """ViT-Ti/S/B-16, CLIP's ViT-B/32 and EfficientNet-Lite0: ours, transformers, ONNX Runtime and OpenVINO by turns."""
    from workers.bench_encoders import run_bench_encoders

    run_bench_encoders(model, seconds=seconds, threads=threads, as_json=as_json)


@app.command()
def fidelity(
    clips: Annotated[list[Path] | None, typer.Argument(help="Video files; each counts as one camera.")] = None,
    *,
    model: Annotated[
        str, typer.Option(help="A ViT directory, a frame encoder's name, or vit-ti-16, vit-s-16, vit-b-16 (random).")
    ] = "efficientnet-lite0",
    policies: Annotated[str, typer.Option(help="Names with commas between; all of them by default.")] = "",
    fps: Annotated[
        float | None, typer.Option(min=0.1, help="Thin the frames out; the file's own rate without.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=3, help="At most so many frames of each clip.")] = None,
    sweep: Annotated[bool, typer.Option(help="Turn each policy's knob too, and compare at equal FVU.")] = False,
    variance: Annotated[
        float | None,
        typer.Option(min=0.0, help="V, the model's variance over many scenes; that of these clips without."),
    ] = None,
    scenario: Annotated[
        str, typer.Option(help="Disturbances by name in place of the clips, on their first frames: drift, noise, ...")
    ] = "",
    replay: Annotated[
        str, typer.Option(help="Time these models too, at the rows that camvec computed: vit-s-16, vit-b-16.")
    ] = "",
    png: Annotated[Path | None, typer.Option(help="Draw the curves of a sweep here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, last, for programs.")] = False,
) -> None:
    """Policies that compute less against the plain encoder on every frame: error, tokens, CPU time, on the same frames."""
    from workers.bench_fidelity import run_fidelity

    run_fidelity(
        clips or [],
        model=model,
        policies=_names(policies),
        fps=fps,
        frames=frames,
        sweep=sweep,
        png=png,
        variance=variance,
        scenarios=_names(scenario),
        replays=_names(replay),
        as_json=as_json,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
