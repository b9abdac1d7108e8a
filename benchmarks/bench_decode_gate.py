"""What the decode gate saves and what it costs, on clips sent as a camera sends them.

    python benchmarks/bench_decode_gate.py CLIP... [--codec h264] [--rate crf|cbr] [--gop-s 2] [--max-blind-s 1] [--json]

Each clip is encoded again without B-frames, with a keyframe every `--gop-s` seconds and the zero-latency tuning of x264 or
x265, as IP cameras do (`--rate cbr`: at a constant bit rate; `--still SIGMA`: its first picture over and over, with sensor
noise: what an empty room would give at best); `--as-is` takes the clip as it stands. Packets arrive at the
pace of their timestamps, on a clock of our own. Capture's work is decoding, conversion to 224 x 224 and the gate; the gate on
and off take turns, CPU is that of the thread, and the median of the turns counts.

`fvu`: blind frames have the vector of the last picture shown, all others their own. `fvu_both`, `share_both`: the frame gate
behind it, against `fvu_frame_gate`, `share_frame_gate` without the decode gate. A change is a frame that the frame gate would
encode after `QUIET_S` without one: its delay is the time until a picture is shown, and it is missed if none is shown before it is
quiet again.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from bench_gate import Vectors, encode, fvu, hold
from numpy.typing import NDArray

from encoders_core.hardware_threads import configure_threads
from encoders_core.realtime.frame_encoder import FrameEncoder, load_frame_encoder
from encoders_core.realtime.frame_gate import FrameGate, GateConfig
from streaming.errors import SourceError
from streaming.frames import FrameSpec
from streaming.sources.base import Picture, StreamInfo
from streaming.sources.convert import convert
from streaming.sources.decode_gate import DecodeGateSettings
from streaming.sources.decoding import Decoder
from streaming.sources.gated import Gating, gating_for
from streaming.sources.timestamps import CaptureClock, TimestampRepair

QUIET_S = 0.5
SPEC = FrameSpec((224, 224))
CACHE = Path(tempfile.gettempdir()) / "camvec-bench-decode-gate"


START_US = 1_000_000
"""The time at which a stream begins."""


@dataclass
class StreamClock:
    """A clock and a pacer in one: it is as late as the packet at hand."""

    now_us: int = 0

    def wait(self, stream_us: int | None) -> None:
        """As a `Pacer`: go on to the packet's time."""
        self.now_us = self.now_us if stream_us is None else max(self.now_us, stream_us + START_US)

    def due_ns(self, stream_us: int | None) -> int | None:
        """As a `Pacer`."""
        return None if stream_us is None else (stream_us + START_US) * 1000

    def monotonic_ns(self) -> int:
        """As a `Clock`."""
        return self.now_us * 1000

    def unix_us(self) -> int:
        """As a `Clock`."""
        return self.now_us


def as_camera(path: Path, options: argparse.Namespace) -> Path:
    """The clip as a camera would send it, made once."""
    if options.as_is:
        return path
    CACHE.mkdir(exist_ok=True)
    still = f"-still{options.still}" if options.still else ""
    made = CACHE / f"{path.stem}-{options.codec}-{options.rate}-{options.gop_s}{still}.mkv"
    if made.exists():
        return made
    part = made.with_suffix(".part.mkv")
    with av.open(str(path)) as source, av.open(str(part), "w") as output:
        pictures = source.streams.video[0]
        pictures.thread_type = "AUTO"
        rate = pictures.average_rate or 25
        stream: Any = output.add_stream({"h264": "libx264", "hevc": "libx265"}[options.codec], rate=rate)
        stream.width, stream.height, stream.pix_fmt = pictures.width, pictures.height, "yuv420p"
        stream.codec_context.gop_size = round(float(rate) * options.gop_s)
        stream.options = {"preset": "veryfast", "tune": "zerolatency", "bf": "0", **_rate_options(options, pictures)}
        first = np.empty(0, np.uint8)
        for index, image in enumerate(source.decode(pictures)):
            picture = image.reformat(format="yuv420p")
            if options.still:
                first = picture.to_ndarray() if index == 0 else first
                picture = with_noise(first, options.still, index)
            picture.pts, picture.time_base, picture.pict_type = index, 1 / rate, 0
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    part.rename(made)
    return made


def with_noise(planes: NDArray[np.uint8], sigma: float, seed: int) -> av.VideoFrame:
    """A planar picture with sensor noise of so many levels."""
    noise = np.random.default_rng(seed).normal(0, sigma, planes.shape)
    return av.VideoFrame.from_ndarray(np.clip(planes + noise, 0, 255).astype(np.uint8), format="yuv420p")


def _rate_options(options: argparse.Namespace, pictures: Any) -> dict[str, str]:
    quiet = {"x265-params": "log-level=none:scenecut=0"} if options.codec == "hevc" else {"sc_threshold": "0"}
    if options.rate == "crf":
        return {"crf": "23", **quiet}
    bits = round(pictures.width * pictures.height * float(pictures.average_rate or 25) * 0.06)  # 1.4 Mbit/s for 720p25
    return {"b": str(bits), "maxrate": str(bits), "bufsize": str(bits // 2), "x264-params": "nal-hrd=cbr", **quiet}


@dataclass
class Turn:
    """One way through a clip."""

    blind: list[bool] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    """Decoding of each picture that had others waiting before it, milliseconds."""
    frames: list[NDArray[np.uint8] | None] = field(default_factory=list)
    causes: dict[str, int] = field(default_factory=dict)
    decoded: int = 0
    cpu_ms: float = 0.0


def play(path: Path, settings: DecodeGateSettings | None, *, keep: bool) -> Turn:
    turn = Turn()
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        stream.thread_type = "NONE"
        info = StreamInfo(stream.codec_context.name, stream.width, stream.height, 25.0, live=True)
        gating = gating_for(settings, info, path.name)
        started = time.thread_time()
        blind = 0
        for picture in _decoder(gating).pictures(container, stream):
            pixels = None if picture.image is None else convert(picture.image, SPEC)
            _note(turn, picture, blind, gating)
            blind = blind + 1 if picture.blind else 0
            if keep:
                turn.frames.append(pixels)
        turn.cpu_ms = (time.thread_time() - started) * 1000 / len(turn.blind)
    if gating is not None and gating.aside:
        turn.causes["aside"] = 1
    return turn


def _note(turn: Turn, picture: Picture, blind: int, gating: Gating | None) -> None:
    if picture.damaged:
        raise SystemExit("expected an undamaged clip")
    turn.blind.append(picture.blind)
    turn.times_s.append(picture.arrived_ns / 1e9)
    if gating is None or picture.blind:
        return
    cause = gating.gate.cause
    turn.causes[cause] = turn.causes.get(cause, 0) + 1
    turn.decoded += 1 if cause == "keyframe" else 1 + blind
    if blind and cause != "keyframe":
        turn.late_ms.append(picture.decode_us / 1000)


def _decoder(gating: Gating | None) -> Decoder:
    clock = StreamClock()

    def fail(exc: BaseException, _lines: object) -> SourceError:
        return SourceError("codec", str(exc))

    return Decoder(
        clock=clock,
        repair=TimestampRepair(live=True),
        capture=CaptureClock("rtsp"),
        pacer=clock,
        translate=fail,
        alive=lambda _ns: None,
        run=None if gating is None else gating.run,
    )


def vectors(path: Path, frames: list[NDArray[np.uint8] | None], encoder: FrameEncoder) -> Vectors:
    CACHE.mkdir(exist_ok=True)
    known = CACHE / f"{path.stem}.npy"
    if not known.exists():
        np.save(known, np.stack([encode(encoder, frame) for frame in frames if frame is not None]))
    return np.asarray(np.load(known))


def frame_gate(turn: Turn, off: Turn, truth: Vectors, encoder: FrameEncoder) -> NDArray[np.intp]:
    """The frames that the frame gate encodes of those that `turn` shows."""
    gate = FrameGate(GateConfig(), encoder.calibration)
    chosen: list[int] = []
    for index, frame in enumerate(off.frames):
        if turn.blind[index] or frame is None:
            continue
        at_ns = round(turn.times_s[index] * 1e9)
        decision = gate.decide(frame, at_ns)
        if decision.encode:
            gate.begin(frame, at_ns, decision)
            gate.learn(truth[index])
            chosen.append(index)
    return np.asarray(chosen)


def changes(off: Turn, chosen: NDArray[np.intp]) -> Iterator[tuple[float, float]]:
    """(begin, end) in seconds of what the frame gate encodes without a pause of `QUIET_S`."""
    times = [off.times_s[index] for index in chosen]
    begin = last = times[0]
    for at in [*times[1:], float("inf")]:
        if at - last > QUIET_S:
            yield begin, last + QUIET_S
            begin = at
        last = at


def delays(turn: Turn, off: Turn, chosen: NDArray[np.intp]) -> tuple[list[float], int]:
    """Milliseconds until each change is shown, and how many never are."""
    shown = np.asarray([at for at, blind in zip(turn.times_s, turn.blind, strict=True) if not blind])
    found, missed = [], 0
    for begin, end in changes(off, chosen):
        later = shown[shown >= begin - 1e-6]
        if not len(later) or later[0] > end:
            missed += 1
        else:
            found.append(max(0.0, (later[0] - begin) * 1000))
    return found, missed


def measure(path: Path, options: argparse.Namespace, encoder: FrameEncoder) -> dict[str, Any]:
    sent = as_camera(path, options)
    settings = DecodeGateSettings(options.max_blind_s, options.max_backlog, options.max_catch_up_ms)
    on, cpu = play(sent, settings, keep=False), turns(sent, settings, options.turns)
    row = {
        "clip": path.stem,
        "frames": len(on.blind),
        "blind": float(np.mean(on.blind)),
        "never_decoded": 1 - on.decoded / len(on.blind),
        **cpu,
        "late_p50_ms": float(np.median(on.late_ms)) if on.late_ms else 0.0,
        "late_max_ms": max(on.late_ms, default=0.0),
        "causes": on.causes,
    }
    return row if options.still else row | fidelity(sent, on, encoder)


def turns(path: Path, settings: DecodeGateSettings, count: int) -> dict[str, float]:
    """CPU milliseconds a frame, medians; the ratio is the median of those of neighbours."""
    pairs = [(play(path, None, keep=False).cpu_ms, play(path, settings, keep=False).cpu_ms) for _ in range(count)]
    return {
        "cpu_off_ms": statistics.median(off for off, _ in pairs),
        "cpu_on_ms": statistics.median(on for _, on in pairs),
        "cpu_ratio": statistics.median(off / on for off, on in pairs),
    }


def fidelity(path: Path, on: Turn, encoder: FrameEncoder) -> dict[str, Any]:
    """Changes found late or never, and the vectors that `finish` compares."""
    off = play(path, None, keep=True)
    truth = vectors(path, off.frames, encoder)
    alone, both = frame_gate(off, off, truth, encoder), frame_gate(on, off, truth, encoder)
    found, missed = delays(on, off, alone)
    return {
        "changes": len(found) + missed,
        "missed": missed,
        "delay_p50_ms": float(np.median(found)) if found else 0.0,
        "delay_p95_ms": float(np.quantile(found, 0.95)) if found else 0.0,
        "delay_max_ms": max(found, default=0.0),
        "share_frame_gate": len(alone) / len(truth),
        "share_both": len(both) / len(truth),
        "_truth": truth,
        "_shown": np.flatnonzero(~np.asarray(on.blind)),
        "_alone": alone,
        "_both": both,
    }


def finish(row: dict[str, Any], variance: float) -> dict[str, Any]:
    truth = row.pop("_truth", None)
    for name, key in (("fvu", "_shown"), ("fvu_frame_gate", "_alone"), ("fvu_both", "_both")):
        if truth is not None:
            row[name] = fvu(truth, hold(truth, row.pop(key)), variance)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--codec", choices=["h264", "hevc"], default="h264")
    parser.add_argument("--rate", choices=["crf", "cbr"], default="crf")
    parser.add_argument("--as-is", action="store_true")
    parser.add_argument("--still", type=float, default=0, help="the first picture over and over, with so much noise")
    parser.add_argument("--gop-s", type=float, default=2.0)
    parser.add_argument("--max-blind-s", type=float, default=DecodeGateSettings().max_blind_s)
    parser.add_argument("--max-backlog", type=int, default=DecodeGateSettings().max_backlog)
    parser.add_argument("--max-catch-up-ms", type=float, default=DecodeGateSettings().max_catch_up_ms)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--variance", type=float, default=172.3, help="of the model's features over many scenes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configure_threads()
    encoder = load_frame_encoder()
    rows = [finish(measure(path, options, encoder), options.variance) for path in options.clips]
    if options.json:
        print(json.dumps({"settings": {k: v for k, v in vars(options).items() if k != "clips"}, "clips": rows}))
        return
    for row in rows:
        causes = " ".join(f"{cause} {count}" for cause, count in sorted(row.pop("causes").items()))
        print(" ".join(f"{key} {value}" for key, value in row.items()), "|", causes)


if __name__ == "__main__":
    main()
