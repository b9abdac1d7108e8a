"""What the frame gate saves and what it costs in fidelity, on clips at their own frame rate.

    python benchmarks/bench_gate.py CLIP... [--level balanced] [--json]

Every frame is encoded once for the truth; then the policies decide over the same frames: the gate, holding every 2nd and
3rd, and an oracle that knows the true error of holding and spends exactly the target. FVU = sum |z' - z|^2 /
max(sum |z - mean of the clip|^2, n * 0.01 * V), V the variance of the features over all clips.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from encoders_core.config import QUALITY_TARGETS, GateConfig
from encoders_core.draining import drain
from encoders_core.hardware_threads import configure_threads
from encoders_core.realtime.frame_encoder import FrameEncoder, load_frame_encoder
from encoders_core.realtime.frame_gate import FrameGate

Vectors = NDArray[np.float32]


def decode(path: Path, size_hw: tuple[int, int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for index, picture in enumerate(container.decode(stream)):
            at_ns = int((picture.time if picture.time is not None else index / 25) * 1e9)
            pixels = picture.to_ndarray(format="rgb24")
            yield at_ns, cv2.resize(pixels, size_hw[::-1], interpolation=cv2.INTER_AREA)


def encode(encoder: FrameEncoder, frame: NDArray[np.uint8]) -> Vectors:
    return np.asarray(drain(encoder.encode([encoder.plan(encoder.new_state(), frame)]))[0])


class Clip:
    """The truth of a clip and what the gate made of it, in one pass over the file."""

    def __init__(self, path: Path, encoder: FrameEncoder, config: GateConfig) -> None:
        self.name = path.stem
        gate = FrameGate(config, encoder.calibration)
        truth: list[Vectors] = []
        self.chosen: list[int] = []
        encode_s = gate_s = 0.0
        for index, (at_ns, frame) in enumerate(decode(path, encoder.descriptor.input.size_hw)):
            started = time.process_time()
            truth.append(encode(encoder, frame))
            encoded = time.process_time()
            decision = gate.decide(frame, at_ns)
            if decision.encode:
                gate.begin(frame, at_ns, decision)
                gate.learn(truth[-1])
                self.chosen.append(index)
            gate_s += time.process_time() - encoded
            encode_s += encoded - started
        self.truth = np.stack(truth)
        self.encode_ms, self.gate_ms = (1000 * taken / len(truth) for taken in (encode_s, gate_s))


def hold(truth: Vectors, chosen: NDArray[np.intp]) -> Vectors:
    """Each frame gets the vector of the last chosen one."""
    last = np.searchsorted(chosen, np.arange(len(truth)), side="right") - 1
    return truth[chosen[last]]


def fvu(truth: Vectors, output: Vectors, variance: float) -> float:
    spread = float(((truth - truth.mean(0)) ** 2).sum())
    return float(((output - truth) ** 2).sum()) / max(spread, len(truth) * 0.01 * variance)


def oracle(truth: Vectors, target: float, variance: float) -> NDArray[np.intp]:
    """The fewest frames that a threshold on the true error can choose at an FVU of `target`."""

    def choose(threshold: float) -> NDArray[np.intp]:
        chosen = [0]
        for index in range(1, len(truth)):
            if float(((truth[index] - truth[chosen[-1]]) ** 2).sum()) > threshold:
                chosen.append(index)
        return np.asarray(chosen)

    low, high = 1e-6 * variance, variance
    for _ in range(20):
        middle = (low * high) ** 0.5
        within = fvu(truth, hold(truth, choose(middle)), variance) <= target
        low, high = (middle, high) if within else (low, middle)
    return choose(low)


def cosines(truth: Vectors, output: Vectors) -> NDArray[np.float32]:
    norms = np.linalg.norm(truth, axis=1) * np.linalg.norm(output, axis=1)
    return np.asarray((truth * output).sum(1) / norms)


def report(clip: Clip, target: float, variance: float) -> dict[str, float | str]:
    truth, count = clip.truth, len(clip.truth)
    gated = hold(truth, np.asarray(clip.chosen))
    similar = cosines(truth, gated)
    best = oracle(truth, target, variance)
    return {
        "clip": clip.name,
        "frames": count,
        "share": len(clip.chosen) / count,
        "fvu": fvu(truth, gated, variance),
        "cos_p5": float(np.quantile(similar, 0.05)),
        "cos_min": float(similar.min()),
        "oracle_share": len(best) / count,
        "hold2_fvu": fvu(truth, hold(truth, np.arange(0, count, 2)), variance),
        "hold3_fvu": fvu(truth, hold(truth, np.arange(0, count, 3)), variance),
        "encode_ms": clip.encode_ms,
        "gate_ms": clip.gate_ms,
        "cpu_ratio": clip.encode_ms / (clip.gate_ms + clip.encode_ms * len(clip.chosen) / count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--level", choices=list(QUALITY_TARGETS), default="balanced")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configure_threads()
    encoder = load_frame_encoder()
    config = replace(GateConfig(), target_fvu=QUALITY_TARGETS[options.level])
    clips = [Clip(path, encoder, config) for path in options.clips]
    together = np.concatenate([clip.truth for clip in clips])
    variance = float(((together - together.mean(0)) ** 2).sum(1).mean())
    rows = [report(clip, config.target_fvu, variance) for clip in clips]
    if options.json:
        rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        print(json.dumps({"model": encoder.descriptor.fingerprint, "variance": variance, "clips": rounded}))
        return
    print(f"target FVU {config.target_fvu}, variance over all clips {variance:.1f}")
    print("clip                   frames  share   FVU    cos p5 / min   oracle  hold2 / hold3  gate ms  CPU ratio")
    for row in rows:
        print(
            "{clip:22} {frames:6}  {share:.3f}  {fvu:.4f}  {cos_p5:.3f} / {cos_min:.3f}  {oracle_share:.3f}  "
            "{hold2_fvu:.3f} / {hold3_fvu:.3f}  {gate_ms:.3f}   {cpu_ratio:.2f}".format(**row)
        )


if __name__ == "__main__":
    main()
