import os
import threading
import time
import traceback
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import pytest

from streaming.errors import SourceError
from streaming.sources import Picture, SourceConfig, open_source
from streaming.sources.av_source import ATTACHED_PICTURE
from streaming.sources.base import StreamInfo
from streaming.sources.ffmpeg_log import captured_log
from tests.gear.http_video import Page, content, frozen, http_server, motion_jpeg, slow_drip, status
from tests.gear.mosquitto import make_certificates
from tests.gear.rtsp import elementary_stream

FRAMES = 30


def read(url: object, count: int | None = None, **settings: Any) -> tuple[StreamInfo, list[Picture]]:
    source = open_source(SourceConfig(str(url), **settings))
    try:
        return source.open(), list(islice(source.pictures(), count))
    finally:
        source.close()


def failure(url: object, **settings: Any) -> SourceError:
    with pytest.raises(SourceError) as raised:
        read(url, **settings)
    return raised.value


def encode(stream: Any, output: Any, pattern: str, pix_fmt: str) -> None:
    with av.open(pattern, format="lavfi") as source:
        for image in source.decode(video=0):
            picture = image.reformat(format=pix_fmt)
            picture.pict_type = 0
            output.mux(stream.encode(picture))
    output.mux(stream.encode(None))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of H.264 with B-frames in an MP4 that can be read from its beginning."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        stream: Any = output.add_stream("libx264", rate=FRAMES)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 10
        stream.options = {"preset": "ultrafast", "bf": "2", "sc_threshold": "0"}
        encode(stream, output, f"testsrc2=size=64x48:rate={FRAMES}:duration=1", "yuv420p")
    return path


@pytest.fixture
def clips() -> Path:
    folder = os.environ.get("CAMVEC_CLIPS")
    if not folder:
        pytest.skip("needs real clips: set CAMVEC_CLIPS to their folder")
    return Path(folder)


# ---- files and patterns


def test_file_every_frame_in_order_then_the_end(clip: Path) -> None:  # R24
    info, pictures = read(clip)
    assert (info.codec, info.width, info.height, info.fps) == ("h264", 64, 48, FRAMES)
    assert info.lossless
    assert not info.live
    assert [picture.pts_us for picture in pictures] == [round(n * 1e6 / FRAMES) for n in range(FRAMES)]
    assert [n for n, picture in enumerate(pictures) if picture.reset] == [0]
    assert [n for n, picture in enumerate(pictures) if picture.keyframe] == [0, 10, 20]
    assert not any(picture.damaged for picture in pictures)


def test_file_arrival_belongs_to_its_own_packet(clip: Path) -> None:
    _, pictures = read(clip)
    with av.open(str(clip)) as container:
        decode_order = [packet.pts for packet in container.demux(video=0) if packet.size]
    by_arrival = sorted(range(FRAMES), key=lambda n: pictures[n].arrived_ns)
    assert by_arrival == [sorted(decode_order).index(pts) for pts in decode_order]
    assert by_arrival != list(range(FRAMES))  # there are B-frames


def test_file_without_b_frames_is_the_same_pixels_as_plain_decoding(clip: Path) -> None:
    _, pictures = read(clip)
    with av.open(str(clip)) as container:
        for picture, image in zip(pictures, container.decode(video=0), strict=True):
            assert (picture.image.to_ndarray() == image.to_ndarray()).all()  # type: ignore[union-attr]


def test_file_in_real_time_keeps_the_pace_and_may_be_overtaken(clip: Path) -> None:
    started_s = time.monotonic()
    info, pictures = read(clip, realtime=True)
    assert len(pictures) == FRAMES
    assert time.monotonic() - started_s > 0.85
    assert not info.lossless


def test_file_in_real_time_brings_pictures_when_they_are_due_not_when_their_packets_were_read(clip: Path) -> None:
    """Packets of B-frames are read out of order, those they lean on a frame or two ahead of their time."""
    _, pictures = read(clip, realtime=True)
    arrived_us = [picture.arrived_ns // 1000 for picture in pictures]
    assert arrived_us == sorted(arrived_us)
    in_the_middle = range(5, FRAMES - 5)
    for early, late in pairwise(in_the_middle):
        passed_us = arrived_us[late] - arrived_us[early]
        assert passed_us > 0.2e6 / FRAMES
    span_us = arrived_us[in_the_middle[-1]] - arrived_us[in_the_middle[0]]
    assert span_us >= 0.9e6 * (len(in_the_middle) - 1) / FRAMES


def test_file_loops_with_time_that_goes_on(clip: Path) -> None:
    _, pictures = read(clip, 3 * FRAMES, loop=True)
    times = [picture.pts_us for picture in pictures]
    assert times == sorted(set(times))
    assert len(times) == 3 * FRAMES
    assert [n for n, picture in enumerate(pictures) if picture.reset] == [0]


def test_file_damaged_in_the_middle_is_counted_up_to_the_next_keyframe(tmp_path: Path) -> None:  # R11
    data = bytearray(Path(elementary_stream(seconds=3)).read_bytes())
    units = [n for n in range(len(data) - 5) if data[n : n + 5] == b"\0\0\0\1\x09"]
    start = units[30]
    data[start + 60 : start + 400] = bytes(340)
    broken = tmp_path / "broken.h264"
    broken.write_bytes(data)
    _, pictures = read(broken)
    assert len(pictures) == 75
    assert [n for n, picture in enumerate(pictures) if picture.damaged] == list(range(30, 50))
    assert all((picture.image is None) == picture.damaged for picture in pictures)


def test_pattern_is_paced_like_a_camera() -> None:
    started_s = time.monotonic()
    info, pictures = read("lavfi:testsrc2=size=64x48:rate=20:duration=0.5")
    assert len(pictures) == 10
    assert time.monotonic() - started_s > 0.4
    assert (info.live, info.lossless) == (False, False)


def test_change_of_picture_size_is_a_reset(tmp_path: Path) -> None:
    both = tmp_path / "both.h264"
    small, large = (Path(elementary_stream(seconds=1, size=size)).read_bytes() for size in ("64x48", "128x96"))
    both.write_bytes(small + large)
    _, pictures = read(both)
    assert [n for n, picture in enumerate(pictures) if picture.reset] == [0, 25]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("/no/such/file.mp4", "not_found"),
        (__file__, "codec"),
        ("lavfi:nosuchfilter=1", "codec"),
        ("/dev/video97", "no_device"),
        ("webcam:97", "no_device"),
    ],
)
def test_unusable_source_is_named(url: str, reason: str) -> None:
    assert failure(url).reason == reason


@pytest.mark.parametrize("cover", [False, True])
def test_audio_file_is_no_video_even_with_a_cover_picture(tmp_path: Path, *, cover: bool) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as output:
        sound: Any = output.add_stream("aac", rate=16000)
        if cover:
            picture: Any = output.add_stream("png", rate=1)
            if not hasattr(picture, "disposition"):
                pytest.skip("this PyAV cannot write a cover picture; needs av>=15")
            picture.width, picture.height, picture.pix_fmt, picture.disposition = 64, 48, "rgb24", ATTACHED_PICTURE
            encode(picture, output, "testsrc2=size=64x48:rate=1:duration=1", "rgb24")
        with av.open("sine=duration=0.2:sample_rate=16000", format="lavfi") as source:
            for samples in source.decode(audio=0):
                output.mux(sound.encode(samples))
        output.mux(sound.encode(None))
    error = failure(path)
    assert error.reason == "codec"
    assert "expected a video stream, found audio (aac)" in str(error)


# ---- real clips


def test_clip_with_variable_frame_rate_needs_no_repair(clips: Path) -> None:  # R12
    source = open_source(SourceConfig(str(clips / "fix_highway_720p_vfr.mp4")))
    source.open()
    times = [picture.pts_us for picture in source.pictures()]
    source.close()
    steps = {after - before for before, after in pairwise(times)}
    assert min(steps) > 0
    assert len(steps) > 1
    assert source.repaired_pts == 0


def test_clip_without_timestamps_gets_them_and_they_are_counted(clips: Path) -> None:  # R12
    source = open_source(SourceConfig(str(clips / "mov_flower_720p.264")))
    source.open()
    times = [picture.pts_us for picture in islice(source.pictures(), 50)]
    source.close()
    assert times == [n * 40_000 for n in range(50)]
    assert source.repaired_pts == 49


# ---- HTTP


QUICK = {"open_timeout_s": 1.0, "read_timeout_s": 1.0}


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    with av.open("testsrc2=size=64x48:rate=10:duration=1,format=yuvj420p", format="lavfi") as source:
        encoder: Any = av.CodecContext.create("mjpeg", "w")
        encoder.width, encoder.height, encoder.pix_fmt = 64, 48, "yuvj420p"
        encoder.time_base = source.streams.video[0].time_base
        return [bytes(packet) for image in source.decode(video=0) for packet in encoder.encode(image)]


@pytest.fixture(scope="module")
def site(clip: Path, jpegs: list[bytes]) -> Iterator[str]:
    def breaks_off(request: Any, _stop: threading.Event) -> None:
        enough = threading.Event()
        threading.Timer(0.5, enough.set).start()
        motion_jpeg(jpegs, 25)(request, enough)

    pages: dict[str, Page] = {
        "/clip.mp4": content(clip.read_bytes(), "video/mp4"),
        "/page.html": content(b"<html><body>not a camera</body></html>" * 50, "text/html"),
        "/mjpeg": motion_jpeg(jpegs, 25),
        "/breaks": breaks_off,
        "/401": status(401),
        "/503": status(503),
        "/frozen": frozen,
        "/drip": slow_drip,
    }
    with http_server(pages) as port:
        yield f"http://u:hunter2@127.0.0.1:{port}"


def test_http_movie_is_a_file(site: str) -> None:
    info, pictures = read(f"{site}/clip.mp4")
    assert len(pictures) == FRAMES
    assert info.lossless


def test_http_motion_jpeg_is_a_camera(site: str) -> None:
    info, pictures = read(f"{site}/mjpeg", 10)
    assert (info.codec, info.live, len(pictures)) == ("mjpeg", True, 10)
    assert not any(picture.damaged for picture in pictures)


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("/page.html", "codec"),
        ("/none", "not_found"),
        ("/401", "auth"),
        ("/503", "refused"),
        ("/frozen", "timeout"),
        ("/drip", "timeout"),
        ("/breaks", "ended"),
    ],
)
def test_http_failures_have_their_reason_in_time_and_no_password(
    site: str, page: str, reason: str
) -> None:  # R2, R9, R20
    started_s = time.monotonic()
    error = failure(site + page, **QUICK)
    assert error.reason == reason
    assert time.monotonic() - started_s < 5
    assert "hunter2" not in "".join(traceback.format_exception(error))
    assert "hunter2" not in repr(SourceConfig(site + page))


def test_https_certificate_is_verified(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_certificates(tmp_path)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with http_server({"/clip.mp4": content(clip.read_bytes(), "video/mp4")}, cert=made.cert, key=made.key) as port:
        url = f"https://localhost:{port}/clip.mp4"
        for settings in ({}, {"tls_ca": str(made.other_ca)}):
            error = failure(url, **settings)
            assert error.reason == "tls"
            assert "tls_ca" in str(error)
        assert len(read(url, tls_ca=str(made.ca))[1]) == FRAMES
        assert len(read(url, tls_verify=False)[1]) == FRAMES
        other_name = failure(f"https://127.0.0.2:{port}/clip.mp4", tls_ca=str(made.ca))
        assert other_name.reason == "tls"
        monkeypatch.setenv("SSL_CERT_FILE", str(made.ca))  # as the system's authorities
        assert len(read(url)[1]) == FRAMES


# ---- FFmpeg's log


def test_log_lines_belong_to_the_thread_that_caused_them() -> None:
    said: dict[int, list[str]] = {}
    barrier = threading.Barrier(4)

    def camera(number: int) -> None:
        barrier.wait()
        lines: list[str] = []
        for _ in range(50):
            with captured_log() as captured:
                av.logging.log(av.logging.WARNING, "rtsp", f"RTP: missed {number % 2} packets\n")
            lines += [message for _level, _name, message in captured]
        said[number] = lines

    threads = [threading.Thread(target=camera, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):  # not one is swallowed because another camera said the same
        assert said[number] == [f"RTP: missed {number % 2} packets\n"] * 50
