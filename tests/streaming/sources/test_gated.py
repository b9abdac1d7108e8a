"""The decode gate in front of a real decoder: what is shown is what was sent, and every frame is told of."""

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from streaming.sources import SourceConfig, open_source
from streaming.sources.base import Picture
from streaming.sources.decode_gate import DecodeGateSettings
from streaming.sources.gated import gating_for
from streaming.sources.reader import CameraReader, Taken
from tests.gear.rtsp import rtsp_server
from tests.streaming.sources.gated_gear import (
    FPS,
    SIZE_HW,
    Scene,
    blind_share,
    encoded,
    gating,
    live_info,
    longest_blind_s,
    pixels,
    play,
    room,
)

STREAMS = [("libx264", ".mkv"), ("libx264", ".ts"), ("libx265", ".mkv"), ("libx265", ".ts")]


def with_visitor(scene: Scene, begin: int, end: int) -> Scene:
    """Somebody in a checked coat crosses the picture from frame `begin` to `end`."""
    coat = np.random.default_rng(2).integers(30, 230, (80, 60))

    def picture(index: int) -> NDArray[np.uint8]:
        image = scene(index).copy()
        if begin <= index < end:
            x = 4 * (index - begin) % (SIZE_HW[1] - 60)
            image[60:140, x : x + 60] = coat
        return image

    return picture


def assert_same_where_shown(gated: list[Picture], plain: list[Picture]) -> None:
    """One entry for each frame, at the same times; those that are shown equal to the last bit."""
    assert len(gated) == len(plain)
    for got, sent in zip(gated, plain, strict=True):
        assert (got.pts_us, got.arrived_ns, got.captured, got.keyframe) == (
            *(sent.pts_us, sent.arrived_ns, sent.captured, sent.keyframe),
        )
        assert got.blind == (got.image is None)
        if not got.blind:
            assert pixels(got) == pixels(sent)
            assert got.reset == sent.reset


@pytest.mark.parametrize(("codec", "suffix"), STREAMS)
def test_quiet_camera_is_shown_a_picture_a_second_and_each_is_exact(tmp_path: Path, codec: str, suffix: str) -> None:
    clip = encoded(tmp_path / f"quiet{suffix}", room(noise=2), 300, codec=codec)
    gated = play(clip, gating())
    assert_same_where_shown(gated, play(clip))
    assert blind_share(gated) > 0.75
    assert longest_blind_s(gated) <= 1.0 + 1e-6


@pytest.mark.parametrize(("codec", "suffix"), STREAMS)
def test_change_is_shown_with_the_packet_that_brings_it(tmp_path: Path, codec: str, suffix: str) -> None:
    clip = encoded(tmp_path / f"visit{suffix}", with_visitor(room(noise=2), 212, 250), 300, codec=codec)
    gated = play(clip, gating())
    assert_same_where_shown(gated, play(clip))
    assert gated[211].blind
    assert not any(picture.blind for picture in gated[212:260])


def test_keyframe_makes_those_before_it_needless(tmp_path: Path) -> None:
    clip = encoded(tmp_path / "quiet.mkv", room(noise=1), 400, gop=20)
    gate, fed = gating(), []

    def note(_index: int, packet: Any) -> Any:
        class Fed:
            def __getattr__(self, name: str) -> Any:
                return getattr(packet, name)

            def __bytes__(self) -> bytes:
                return bytes(packet)

            def decode(self) -> list[Any]:
                fed.append(packet.pts)
                return list(packet.decode())

        return Fed()

    gated = play(clip, gate, note)
    assert_same_where_shown(gated, play(clip))
    assert len([pts for pts in fed if pts is not None and pts >= 8000]) == 10  # of 200: the keyframes alone


def test_gate_that_never_dozes_changes_nothing(tmp_path: Path) -> None:
    clip = encoded(tmp_path / "busy.mkv", with_visitor(room(), 0, 100), 100)
    assert_same_where_shown(play(clip, gating()), play(clip))
    assert blind_share(play(clip, gating())) == 0


@pytest.mark.parametrize("options", [{"bf": "2", "tune": "film"}, {"bf": "3", "tune": "film", "b-pyramid": "normal"}])
def test_stream_with_b_frames_is_decoded_as_it_comes_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, str]
) -> None:
    clip = encoded(tmp_path / "b.mkv", room(noise=2), 120, **options)
    with caplog.at_level("INFO"):
        gated = play(clip, gating())
    assert [pixels(picture) for picture in gated] == [pixels(picture) for picture in play(clip)]
    assert "B-frames" in caplog.text


@pytest.mark.parametrize(
    ("info", "why"),
    [
        ({"codec": "mjpeg"}, "expected H.264 or HEVC, got mjpeg"),
        ({"lossless": True}, "every frame of a file counts"),
    ],
)
def test_source_that_cannot_be_gated_is_named_in_the_log(
    caplog: pytest.LogCaptureFixture, info: dict[str, Any], why: str
) -> None:
    with caplog.at_level("INFO"):
        assert gating_for(DecodeGateSettings(), replace(live_info(), **info), "cam") is None
    assert why in caplog.text
    assert gating_for(None, live_info(), "cam") is None


# ---- failure modes


def test_slow_fade_is_seen_within_the_longest_blind_time(tmp_path: Path) -> None:
    def dusk(index: int) -> NDArray[np.uint8]:
        return (room(noise=2)(index) * (1 - 0.5 * min(1, index / 500))).astype(np.uint8)

    gated = play(encoded(tmp_path / "dusk.mkv", dusk, 500), gating(max_blind_s=1.0))
    assert longest_blind_s(gated) <= 1.0 + 1e-6
    shown = [picture.image.to_ndarray()[: SIZE_HW[0]].mean() for picture in gated if picture.image is not None]
    assert max(abs(after - before) for before, after in pairwise(shown)) < 8  # levels: 60 in all


def test_pulsing_keyframes_do_not_keep_the_gate_awake(tmp_path: Path) -> None:
    clip = encoded(tmp_path / "pulse.mkv", room(noise=2), 500, gop=12, crf="36")
    gated = play(clip, gating())
    assert_same_where_shown(gated, play(clip))
    assert blind_share(gated[250:]) > 0.7


def test_clock_in_the_picture_does_not_keep_the_gate_awake(tmp_path: Path) -> None:
    def clock(index: int) -> NDArray[np.uint8]:
        image = room(noise=1)(index).copy()
        image[4:12, 100:106] = np.random.default_rng(index // FPS).integers(0, 2, (8, 6)) * 200 + 20
        return image

    gated = play(encoded(tmp_path / "clock.mkv", clock, 750), gating())
    assert blind_share(gated[250:]) > 0.75


def test_constant_bit_rate_where_sizes_tell_nothing_makes_the_gate_stand_aside(tmp_path: Path) -> None:
    """Each packet is padded to one size: a visitor every two seconds is found by looking, and looking becomes the rule."""
    clip = encoded(tmp_path / "cbr.mkv", visits(room(noise=1)), 1500, gop=50, crf="30")
    largest = max(packet.size for packet in packets(clip) if not packet.is_keyframe)

    def padded(_index: int, packet: Any) -> Any:
        return packet if packet.is_keyframe else repacked(packet, bytes(packet) + filler(largest + 64 - packet.size))

    gate = gating()
    gated = play(clip, gate, padded)
    assert_same_where_shown(gated, play(clip))
    assert longest_blind_s(gated) <= 1.0 + 1e-6
    assert gate.gate.patience_s > 2.0
    assert blind_share(gated[750:]) < 0.1


def visits(scene: Scene) -> Scene:
    """Somebody stands there for half a second, every two and a half."""

    def picture(index: int) -> NDArray[np.uint8]:
        image = scene(index).copy()
        if index % 62 >= 50:
            image[20:90, 40:100] = 220
        return image

    return picture


def packets(clip: Path) -> Iterator[Any]:
    with av.open(str(clip)) as container:
        yield from (packet for packet in container.demux(video=0) if packet.size)


def repacked(packet: Any, data: bytes) -> Any:
    copy = av.Packet(data)
    copy.stream, copy.pts, copy.dts, copy.time_base = packet.stream, packet.pts, packet.dts, packet.time_base
    copy.is_keyframe = packet.is_keyframe
    return copy


def filler(size: int) -> bytes:
    """A NAL unit of H.264 that means nothing, with its length before it, `size` bytes in all."""
    return (size - 4).to_bytes(4, "big") + b"\x0c" + b"\xff" * (size - 6) + b"\x80"


# ---- damage


def test_damage_in_a_packet_that_waited_is_noticed_and_lasts_to_the_next_keyframe(tmp_path: Path) -> None:
    clip = encoded(tmp_path / "damaged.mkv", with_visitor(room(noise=2), 190, 225), 300, gop=100)
    plain = play(clip)

    def damage(index: int, packet: Any) -> Any:
        data = bytes(packet)
        return repacked(packet, data[:20] + bytes(len(data) - 20)) if index == 180 else packet

    gated = play(clip, gating(), damage)
    first = next(index for index, picture in enumerate(gated) if picture.damaged)
    assert all(picture.blind for picture in gated[180:first])  # it waited: its damage could not be known yet
    assert 180 < first <= 190
    shown = [index for index, picture in enumerate(gated) if picture.image is not None]
    assert all(pixels(gated[index]) == pixels(plain[index]) for index in shown)
    assert [index for index, picture in enumerate(gated) if picture.damaged] == list(range(first, 200))
    assert pixels(gated[200]) == pixels(plain[200])
    assert len(gated) == len(plain)


def test_lost_packets_end_the_wait_and_count_until_the_next_keyframe(tmp_path: Path) -> None:
    clip = encoded(tmp_path / "lost.mkv", room(noise=2), 300, gop=100)
    plain = play(clip)

    def lose(index: int, packet: Any) -> Any:
        if index == 185:
            av.logging.log(av.logging.WARNING, "rtsp", "RTP: missed 3 packets\n")
        return packet

    gated = play(clip, gating(), lose)
    assert gated[184].blind
    assert [index for index, picture in enumerate(gated) if picture.damaged] == list(range(185, 200))
    assert pixels(gated[200]) == pixels(plain[200])
    assert not any(picture.blind for picture in gated[185:213])  # awake until it has been quiet again
    assert all(pixels(got) in (b"", pixels(sent)) for got, sent in zip(gated, plain, strict=True))


# ---- through the source


def test_gate_is_reached_from_the_source_and_a_live_file_is_gated(tmp_path: Path) -> None:
    clip = encoded(tmp_path / "quiet.mkv", room(noise=2), 60)
    shares = {}
    for gate in (None, DecodeGateSettings()):
        source = open_source(SourceConfig(str(clip), realtime=True, decode_gate=gate))
        source.open()
        pictures = list(source.pictures())
        source.close()
        assert len(pictures) == 60
        shares[gate is not None] = blind_share(pictures)
    assert shares[False] == 0
    assert shares[True] > 0.3


@pytest.mark.integration
@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".h264"), ("libx265", ".h265")])
async def test_rtsp_camera_that_shows_nothing_new_looks_alive(tmp_path: Path, codec: str, suffix: str) -> None:
    clip = encoded(tmp_path / f"quiet{suffix}", room(noise=2), 250, codec=codec)
    with rtsp_server({"/cam": {"file": str(clip), "fps": FPS}}) as server:
        config = SourceConfig(server.url("/cam"), decode_gate=DecodeGateSettings())
        reader = CameraReader("front", config)
        reading = asyncio.create_task(reader.run())
        taken: list[Taken] = []
        async with asyncio.timeout(30):
            while reader.state().captured < 150:
                taken.append(await reader.slot.get())
        state = reader.state()
        reading.cancel()
        await asyncio.wait({reading})
    up_to_seq, since = reader.tail()
    assert (state.state, state.codec) == ("streaming", {"libx264": "h264", "libx265": "hevc"}[codec])
    assert 20 < state.fps_in < 30
    assert state.last_frame_at_us is not None
    assert time.time() - state.last_frame_at_us / 1e6 < 2
    for before, after in pairwise(taken):
        assert after.frame_seq - before.frame_seq == 1 + after.since.frames
    assert up_to_seq - taken[-1].frame_seq == since.frames
    assert sum(one.since.dropped.get("blind", 0) for one in taken) > 50


def test_test_scene_is_not_gated_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        open_source(SourceConfig("scene:street", decode_gate=DecodeGateSettings()))
    assert "stands aside" in caplog.text


@pytest.mark.parametrize(
    ("name", "aside"),
    [
        ("fix_street_house.mp4", False),
        ("mov_dashcam_540p.mp4", False),
        ("fix_bottles.mp4", True),
        ("mov_flower_720p.264", True),
    ],
)
def test_real_clip_is_shown_to_the_last_bit(name: str, *, aside: bool) -> None:
    folder = os.environ.get("CAMVEC_CLIPS")
    if not folder:
        pytest.skip("needs real clips: set CAMVEC_CLIPS to their folder")
    gate, clip = gating(), Path(folder) / name
    for got, sent in zip(play(clip, gate), play(clip), strict=True):
        assert got.blind or pixels(got) == pixels(sent)
    assert gate.aside == aside
