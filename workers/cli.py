"""The `camvec` command. Heavy imports happen inside the commands: `camvec watch` never loads torch.

Exit codes: 0 fine, 1 failed at run time, 2 wrong usage or configuration, 130 interrupted.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from workers import cli_bench, cli_config

app = typer.Typer(
    name="camvec",
    help="Camera and RTSP streams in, live embeddings and events out over MQTT, under a latency budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
cli_config.register(app)
app.add_typer(cli_bench.app, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, last, for programs.")]


@app.callback()
def _options(
    *, debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")] = False
) -> None:
    if debug:
        os.environ["CAMVEC_DEBUG"] = "1"


@app.command()
def demo(
    *,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long to run; 0 or Ctrl-C ends it earlier.")] = 30.0,
    cameras: Annotated[int, typer.Option(min=1, max=16, help="How many built-in camera scenes.")] = 2,
    fps: Annotated[float, typer.Option(min=0.5, max=60.0, help="Frames a second of each scene.")] = 10.0,
    budget_ms: Annotated[
        float, typer.Option(min=1.0, help="Latency budget, arrival to MQTT, in milliseconds.")
    ] = 100.0,
    as_json: Json = False,
) -> None:
    """The whole pipeline with nothing to install or configure: scenes, decode, model, MQTT, a live table."""
    from workers.demo import run_demo

    run_demo(seconds=seconds, cameras=cameras, fps=fps, budget_ms=budget_ms, as_json=as_json)


@app.command()
def run(
    config: Annotated[str, typer.Argument(help="Configuration file, or just the URL of a camera.")],
    *,
    role: Annotated[list[str] | None, typer.Option(help="Only these: capture, encode, publish.")] = None,
    single_process: Annotated[
        bool, typer.Option(help="Threads in place of processes: less memory, less isolation.")
    ] = False,
) -> None:
    """The daemon: runs until SIGTERM; SIGHUP reloads the cameras."""
    from workers.daemon import run_daemon

    run_daemon(config, roles=role, single_process=single_process)


@app.command()
def probe(
    url: Annotated[str, typer.Argument(help="rtsp://..., a file, webcam:0, lavfi:..., scene:street")],
    *,
    seconds: Annotated[float, typer.Option(min=0.5, max=60.0, help="How long to look.")] = 5.0,
    transport: Annotated[str, typer.Option(help="RTSP over tcp or udp.")] = "tcp",
    as_json: Json = False,
) -> None:
    """What the camera really sends: codec, size, frame rate, keyframe interval, clock, time to first frame."""
    from workers.probe import run_probe

    run_probe(url, seconds=seconds, transport=transport, as_json=as_json)


@app.command()
def watch(
    *,
    broker: Annotated[
        str, typer.Option(envvar="CAMVEC_BROKER", help="mqtt://user:password@host:1883")
    ] = "mqtt://127.0.0.1:1883",
    camera: Annotated[str | None, typer.Option(help="Only this camera.")] = None,
    root: Annotated[str, typer.Option(help="First level of the topics.")] = "camvec",
    seconds: Annotated[float, typer.Option(min=0.0, help="Stop after this long; 0 is never.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a message instead of a table.")] = False,
) -> None:
    """Subscribe and show what arrives, with age and loss."""
    from workers.watch import run_watch

    run_watch(broker, camera=camera, root=root, seconds=seconds, as_json=as_json)


@app.command()
def encode(
    paths: Annotated[list[Path], typer.Argument(help="Images, videos, or folders of them.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="vectors.npy, .jsonl or .parquet")] = Path(
        "vectors.npy"
    ),
    model: Annotated[str, typer.Option(help="The model to use.")] = "efficientnet-lite0",
    every: Annotated[int, typer.Option(min=1, help="Encode every n-th frame of a video.")] = 1,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Frames a pass.")] = 8,
) -> None:
    """Encode images or videos to vectors, with a progress bar."""
    from workers.encode_files import run_encode_files

    run_encode_files(paths, output=output, model=model, every=every, batch=batch)


@app.command()
def fit(
    sources: Annotated[list[str], typer.Argument(help="URL or file of the camera; of several, copies in turn.")],
    *,
    config: Annotated[
        str | None,
        typer.Option(help="Configuration whose model, encoder and defaults to try; its cameras do not count."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=2.0, help="How long each trial is measured.")] = 15.0,
    most: Annotated[int, typer.Option(min=1, max=64, help="Try no more cameras than this.")] = 16,
    as_json: Json = False,
) -> None:
    """How many cameras like this one the machine bears within budget and fidelity; prints the configuration."""
    from workers.fit import run_fit

    run_fit(sources, config=config, seconds=seconds, most=most, as_json=as_json)


def main() -> None:
    """Run a command; every failure is one sentence on stderr and an exit code."""
    try:
        app(standalone_mode=False)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the one place where any error becomes a sentence
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    if os.environ.get("CAMVEC_DEBUG"):
        raise error
    if isinstance(error, typer.Abort):
        return 130
    if hasattr(error, "show"):  # of typer, which keeps its own copy of click's classes since 0.20
        error.show()
        return 2
    if isinstance(error, ModuleNotFoundError):
        sys.stderr.write(f"camvec: this command needs the package {error.name}: pip install 'camvec[edge]'\n")
        return 1
    from streaming.errors import ConfigError
    from streaming.redaction import redact

    text = redact(str(error)) or type(error).__name__
    known = isinstance(error, ValueError | OSError | ImportError) or type(error).__module__.split(".")[0] in _OURS
    sys.stderr.write(
        f"camvec: {text}\n" if known else f"camvec: {type(error).__name__}: {text} (--debug shows where)\n"
    )
    return 2 if isinstance(error, ConfigError) else 1


_OURS = ("streaming", "encoders_core", "workers")

if __name__ == "__main__":
    main()
