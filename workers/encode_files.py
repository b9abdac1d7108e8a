"""`camvec encode`: images and videos to vectors, every frame, with a progress bar."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from encoders_core.draining import drain
from encoders_core.hardware_threads import configure_threads
from encoders_core.realtime.frame_encoder import FrameEncoder, load_frame_encoder
from streaming.errors import ConfigError, SourceError
from streaming.sources import SourceConfig, open_source
from streaming.sources.convert import convert
from workers.encoding import frame_spec_of

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
VIDEOS = frozenset({".mp4", ".mkv", ".avi", ".mov", ".webm", ".ts", ".264", ".265", ".h264", ".h265", ".m4v", ".nut"})
SUFFIXES = (".npy", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Row:
    """Where a vector comes from: file, frame number, stream time, and its length before it was made unit length."""

    path: str
    frame: int
    pts_us: int
    norm: float


def run_encode_files(paths: list[Path], *, output: Path, model: str, every: int, batch: int) -> None:
    """Write one unit vector a frame to `output`; .npy gets its rows' origin in OUTPUT.jsonl beside it."""
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"expected an output ending in {', '.join(SUFFIXES)}, got {output.name!r}")
    if output.suffix == ".parquet":
        _parquet_module()
    files = list(_files(paths))
    configure_threads()
    encoder = load_frame_encoder(model)
    rows: list[Row] = []
    vectors: list[NDArray[np.float32]] = []
    failed = 0
    with _progress() as progress:
        task = progress.add_task("encoding", total=len(files))
        for file in files:
            progress.update(task, description=file.name[-32:])
            try:
                for found, features in _encode_file(file, encoder, every, batch):
                    rows += found
                    vectors.append(features)
            except SourceError as error:
                failed += 1
                progress.console.print(f"camvec: {error}", style="red", highlight=False, soft_wrap=True)
            progress.advance(task)
    if not rows:
        raise SourceError("codec", f"nothing could be encoded of {len(files)} files")
    _write(output, rows, np.concatenate(vectors), encoder)
    Console(stderr=True).print(f"{len(rows)} vectors of {len(files) - failed} files in {output}", highlight=False)


def _progress() -> Progress:
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES | VIDEOS)
            if not found:
                raise ConfigError(f"expected images or videos in the folder, found none with a known ending: {path}")
            yield from found
        elif path.exists():
            yield path
        else:
            raise ConfigError(f"expected an image, a video or a folder, and there is no such file: {path}")


def _encode_file(
    path: Path, encoder: FrameEncoder, every: int, batch: int
) -> Iterator[tuple[list[Row], NDArray[np.float32]]]:
    """Batches of one file: their rows and (B, D) float32 unit vectors."""
    spec = frame_spec_of(encoder.descriptor.input)
    source = open_source(SourceConfig(str(path.absolute())))
    waiting: list[tuple[int, int, NDArray[np.uint8]]] = []
    try:
        info = source.open()
        for number, picture in enumerate(source.pictures()):
            if picture.image is not None and number % every == 0:
                waiting.append((number, picture.pts_us, convert(picture.image, spec, strip_px=info.strip_px)))
            if len(waiting) == batch:
                yield _encode_batch(path, waiting, encoder)
                waiting = []
        if waiting:
            yield _encode_batch(path, waiting, encoder)
    finally:
        source.close()


def _encode_batch(
    path: Path, waiting: list[tuple[int, int, NDArray[np.uint8]]], encoder: FrameEncoder
) -> tuple[list[Row], NDArray[np.float32]]:
    features = drain(encoder.encode([encoder.plan(encoder.new_state(), frame) for _, _, frame in waiting]))
    norms = np.linalg.norm(features, axis=1)
    rows = [Row(str(path), n, pts, float(norm)) for (n, pts, _), norm in zip(waiting, norms, strict=True)]
    return rows, features / np.maximum(norms, 1e-12)[:, None]


def _write(output: Path, rows: list[Row], vectors: NDArray[np.float32], encoder: FrameEncoder) -> None:
    match output.suffix:
        case ".npy":
            np.save(output, vectors)
            _write_lines(output.with_suffix(".jsonl"), rows, None, encoder)
        case ".jsonl":
            _write_lines(output, rows, vectors, encoder)
        case _:
            _write_parquet(output, rows, vectors, encoder)


def _write_lines(path: Path, rows: list[Row], vectors: NDArray[np.float32] | None, encoder: FrameEncoder) -> None:
    with path.open("w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            line: dict[str, Any] = {**row.__dict__, "model": encoder.descriptor.fingerprint}
            if vectors is not None:
                line["vector"] = [round(float(value), 7) for value in vectors[index]]
            file.write(json.dumps(line) + "\n")


def _parquet_module() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("writing .parquet needs pyarrow: pip install pyarrow, or write .npy or .jsonl") from None
    return pyarrow


def _write_parquet(output: Path, rows: list[Row], vectors: NDArray[np.float32], encoder: FrameEncoder) -> None:
    pyarrow = _parquet_module()
    columns = {name: [getattr(row, name) for row in rows] for name in ("path", "frame", "pts_us", "norm")}
    flat = pyarrow.array(vectors.reshape(-1))
    columns["vector"] = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = pyarrow.table(columns).replace_schema_metadata({"model": encoder.descriptor.fingerprint})
    pyarrow.parquet.write_table(table, output)
