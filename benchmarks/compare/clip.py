"""A clip as a camera would send it: H.264 without B-frames, its frame number in a strip under each picture."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from encoders_core.draining import drain
from encoders_core.hardware_threads import configure_threads
from encoders_core.realtime.frame_encoder import load_frame_encoder
from streaming.sources.convert import convert
from streaming.sources.scene import Scene, SceneParams
from streaming.sources.strip import read_time_code
from streaming.sources.timecode import STRIP_PX, write_strip
from workers.encoding import frame_spec_of

KEYFRAME_S = 2


@dataclass(frozen=True)
class CodedClip:
    """An elementary stream with access unit delimiters, `frames` pictures."""

    path: Path
    fps: Fraction
    size: tuple[int, int]
    frames: int


def code_clip(source: Path, path: Path, *, seconds: float) -> CodedClip:
    """Write the first `seconds` of `source` to `path`; a shorter one is written once."""
    with av.open(str(source)) as container:
        fps = Fraction(container.streams.video[0].average_rate or 25)
    return _code(islice(_planes(source), round(seconds * fps)), path, fps)


def code_scene(path: Path, *, url: str = "scene:street?size=1280x720", seconds: float) -> CodedClip:
    """Write the first `seconds` of the built-in scene to `path`, at 25 frames a second."""
    scene = Scene(SceneParams.parse(url))
    rendered = (av.VideoFrame.from_ndarray(scene.render(index), format="rgb24") for index in range(round(25 * seconds)))
    return _code((image.to_ndarray(format="yuv420p") for image in rendered), path, Fraction(25))


def _code(pictures: Iterator[NDArray[np.uint8]], path: Path, fps: Fraction) -> CodedClip:
    with av.open(str(path), "w", format="h264") as output:
        stream, count = None, 0
        for planes in pictures:
            stream = stream or _encoder(output, planes.shape, fps)
            picture = av.VideoFrame.from_ndarray(_with_strip(planes, count), format="yuv420p")
            picture.pts, picture.time_base = count, 1 / fps
            output.mux(stream.encode(picture))
            count += 1
        if stream is None:
            raise ValueError(f"expected a video with pictures to write to {path}")
        output.mux(stream.encode(None))
    return CodedClip(path, fps, (stream.width, stream.height), count)


def _planes(source: Path) -> Iterator[NDArray[np.uint8]]:
    """YUV 4:2:0 as PyAV lays it out, (3 H / 2, W)."""
    with av.open(str(source)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for image in container.decode(video=0):
            yield image.to_ndarray(format="yuv420p")


def _encoder(output: Any, planes_hw: tuple[int, ...], fps: Fraction) -> Any:
    stream: Any = output.add_stream("libx264", rate=fps)
    stream.width, stream.height, stream.pix_fmt = planes_hw[1], planes_hw[0] * 2 // 3 + STRIP_PX, "yuv420p"
    stream.codec_context.gop_size = round(KEYFRAME_S * fps)
    stream.options = {
        "preset": "veryfast",
        "tune": "zerolatency",
        "crf": "21",
        "bf": "0",
        "x264-params": "aud=1:repeat-headers=1:scenecut=0:sliced-threads=0",
    }
    return stream


def _with_strip(planes: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    rows, width = planes.shape
    height = rows * 2 // 3
    strip = np.empty((STRIP_PX, width), np.uint8)
    write_strip(strip, index, index)
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    grey = np.full((2, STRIP_PX // 2, width // 2), 128, np.uint8)
    both = np.concatenate([chroma, grey], axis=1).reshape(-1, width)
    return np.concatenate([planes[:height], strip, both])


def truth(clip: CodedClip) -> Iterator[NDArray[np.float32]]:
    """The vector of every frame, not normalised, as a full pass makes it."""
    configure_threads()
    encoder = load_frame_encoder()
    spec = frame_spec_of(encoder.descriptor.input)
    with av.open(str(clip.path), format="h264") as container:
        for image in container.decode(video=0):
            assert read_time_code(image) is not None, "a strip that cannot be read"
            pixels = convert(image, spec, strip_px=STRIP_PX)
            yield np.asarray(drain(encoder.encode([encoder.plan(encoder.new_state(), pixels)]))[0])
