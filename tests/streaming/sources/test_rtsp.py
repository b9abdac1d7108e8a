"""Against a real RTSP server: what it serves, what it refuses, and what becomes of us when it dies or freezes."""

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import av.container
import pytest

from streaming.clock import SYSTEM_CLOCK
from streaming.errors import SourceError
from streaming.records import StateRecord
from streaming.retry import Backoff
from streaming.sources import Picture, SourceConfig, open_source
from streaming.sources.options import VERIFIES_RTSPS
from streaming.sources.probe import probe
from streaming.sources.reader import CameraReader, Taken
from tests.gear.mosquitto import free_port, make_certificates
from tests.gear.rtsp import RtspServer, elementary_stream, rtsp_server, tcp_server

pytestmark = pytest.mark.integration

PASSWORD = "hun:ter@2/"
LOGIN = "edge:hun%3Ater%402%2F"
QUICK: dict[str, Any] = {"open_timeout_s": 1.0, "read_timeout_s": 1.0, "stall_floor_s": 4.0}
SOUND = "( audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay0 )"


def mounts(**settings: Any) -> dict[str, dict[str, Any]]:
    return {
        "/h264": {"file": elementary_stream(size="640x360"), "fps": 25} | settings,
        "/h265": {"file": elementary_stream("h265", size="640x360"), "fps": 25} | settings,
    }


@pytest.fixture(scope="module")
def server() -> Iterator[RtspServer]:
    with rtsp_server(mounts() | {"/sound": {"launch": SOUND}}) as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[RtspServer]:
    """One that a test may kill and freeze."""
    with rtsp_server(mounts()) as running:
        yield running


def read(url: str, count: int, **settings: Any) -> list[Picture]:
    source = open_source(SourceConfig(url, **settings))
    try:
        source.open()
        return list(islice(source.pictures(), count))
    finally:
        source.close()


def pixels(picture: Picture) -> bytes:
    return picture.image.to_ndarray().tobytes() if picture.image else b""


def failure(url: str, **settings: Any) -> SourceError:
    with pytest.raises(SourceError) as raised:
        read(url, 1_000_000, **(QUICK | settings))
    return raised.value


# ---- what a camera sends


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_rtsp_frames_come_in_order_and_on_time(server: RtspServer, codec: str, transport: str) -> None:  # R11
    pictures = read(server.url(f"/{codec}"), 30, transport=transport)
    steps = {after.pts_us - before.pts_us for before, after in pairwise(pictures)}
    assert steps == {40_000}
    assert pictures[0].reset
    assert pictures[0].keyframe
    assert not any(picture.damaged for picture in pictures)
    arrivals = [picture.arrived_ns for picture in pictures]
    assert arrivals == sorted(arrivals)
    assert all(0 <= SYSTEM_CLOCK.monotonic_ns() - arrived_ns < 60e9 for arrived_ns in arrivals)


@pytest.mark.parametrize("method", ["basic", "digest"])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_rtsp_password_is_accepted_or_refused_by_name(method: str, transport: str) -> None:  # R7, R20
    with rtsp_server(mounts(), user="edge", password=PASSWORD, auth=method) as server:
        assert len(read(server.url("/h264", login=LOGIN), 3, transport=transport)) == 3
        for login in ("edge:wrong", ""):
            error = failure(server.url("/h264", login=login), transport=transport)
            assert error.reason == "auth"
            assert "wrong" not in str(error)
            assert PASSWORD not in str(error)


def test_rtsps_certificate_is_verified(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    both = tmp_path / "both.pem"
    both.write_text(made.cert.read_text() + made.key.read_text())
    with rtsp_server(mounts(), cert=str(both)) as server:
        url = server.url("/h264", host="localhost")
        assert len(read(url, 3, tls_verify=False)) == 3
        if av.library_versions["libavformat"] >= VERIFIES_RTSPS:
            assert len(read(url, 3, tls_ca=str(made.ca))) == 3
        assert failure(url).reason == "tls"
        assert failure(url, tls_ca=str(made.other_ca)).reason == "tls"
    with rtsp_server(mounts()) as server:
        assert failure(server.url("/h264").replace("rtsp:", "rtsps:")).reason == "tls"


def test_rtsp_camera_clock_is_used_once_it_reports(server: RtspServer) -> None:  # R13
    if not hasattr(av.container.InputContainer, "start_time_realtime"):
        pytest.skip("this PyAV does not hand on RTCP reports; they come with PyAV 18")
    source = open_source(SourceConfig(server.url("/h264")))
    source.open()
    try:
        before = next(source.pictures())
        reported = next(picture for picture in source.pictures() if picture.captured.clock == "rtcp")
    finally:
        source.close()
    assert before.captured.clock == "arrival"
    assert 10_000 <= reported.captured.error_us < 2_000_000  # same machine, same clock
    assert abs(SYSTEM_CLOCK.unix_us() - reported.captured.at_us) < 2_000_000


@pytest.mark.parametrize(("path", "reason"), [("/nope", "not_found"), ("/sound", "codec")])
def test_rtsp_mount_without_video_is_named(server: RtspServer, path: str, reason: str) -> None:
    assert failure(server.url(path)).reason == reason


def test_rtsp_closed_port_and_unknown_host_are_named() -> None:
    assert failure(f"rtsp://127.0.0.1:{free_port()}/x").reason == "refused"
    assert failure("rtsp://camera.invalid/x").reason == "unreachable"


# ---- damage


@pytest.mark.parametrize(("codec", "transport"), [("h265", "tcp"), ("h264", "udp")])
def test_rtsp_pictures_that_pass_are_those_that_were_sent(codec: str, transport: str) -> None:  # R11
    """To the last bit. Without the log lines of the demuxer about one in ten here would be another picture."""
    with rtsp_server(mounts(loss=0.01)) as server:
        received = read(server.url(f"/{codec}"), 120, transport=transport)
    intact = {pixels(picture) for picture in read(elementary_stream(codec, size="640x360"), 50)}
    good = [pixels(picture) for picture in received if picture.image]
    assert 0 < len(good) < 120
    assert all(sent in intact for sent in good)
    returns = [after for before, after in pairwise(received) if before.damaged > after.damaged]
    assert all(picture.keyframe for picture in returns)
    assert all((picture.image is None) == picture.damaged for picture in received)


# ---- death and silence


@dataclass
class Watched:
    reader: CameraReader
    task: asyncio.Task[None]
    states: list[StateRecord] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, found: Callable[[StateRecord], bool], *, timeout_s: float = 30) -> StateRecord:
        """The first state, from now on, of which this holds."""
        seen = len(self.states)
        async with asyncio.timeout(timeout_s):
            while True:
                for state in self.states[seen:] or self.states[-1:]:
                    if found(state):
                        return state
                seen = len(self.states)
                self.changed.clear()
                await self.changed.wait()

    async def until_state(self, name: str) -> StateRecord:
        return await self.until(lambda state: state.state == name)

    async def until_frames(self, count: int) -> None:
        target = len(self.taken) + count
        async with asyncio.timeout(30):
            while len(self.taken) < target:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def watching(url: str, **settings: Any) -> AsyncIterator[Watched]:
    states: list[StateRecord] = []
    changed = asyncio.Event()

    def on_state(state: StateRecord) -> None:
        states.append(state)
        changed.set()

    config = SourceConfig(url, **(QUICK | settings))
    reader = CameraReader(
        "front", config, on_state=on_state, backoff=Backoff(base_s=0.1, cap_s=0.3, rng=random.Random(1))
    )
    task = asyncio.create_task(reader.run())
    watched = Watched(reader, task, states, changed=changed)

    async def take() -> None:
        while True:
            watched.taken.append(await reader.slot.get())
            changed.set()

    taking = asyncio.create_task(take())
    try:
        yield watched
    finally:
        taking.cancel()
        task.cancel()
        await asyncio.wait({task, taking})


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_reader_server_killed_and_restarted(own_server: RtspServer, transport: str) -> None:  # R8, R9, R12
    async with watching(own_server.url("/h264"), transport=transport) as watched:
        await watched.until_frames(10)
        own_server.kill()
        state = await watched.until_state("backoff")
        assert state.reason in ("ended", "timeout")
        await watched.until(lambda state: state.reason == "refused")
        own_server.start()
        await watched.until_state("streaming")
        await watched.until_frames(5)
        assert watched.reader.state().reconnects == 1
    sequence = [taken.frame_seq for taken in watched.taken]
    times = [taken.picture.pts_us for taken in watched.taken]
    assert times == sorted(set(times))
    for before, after in pairwise(watched.taken):
        assert after.frame_seq - before.frame_seq == 1 + after.since.frames
    up_to_seq, since = watched.reader.tail()
    assert up_to_seq - sequence[-1] == since.frames
    assert sum(taken.picture.reset for taken in watched.taken) == 2


@pytest.mark.parametrize("transport", ["tcp", "udp"])
async def test_reader_server_frozen_in_mid_stream(own_server: RtspServer, transport: str) -> None:  # R1, R9
    async with watching(own_server.url("/h264"), transport=transport) as watched:
        await watched.until_frames(10)
        own_server.freeze()
        frozen_s = time.monotonic()
        await watched.until_state("stalled")
        state = await watched.until_state("backoff")
        assert state.reason in ("timeout", "stalled")
        assert time.monotonic() - frozen_s < 6
        assert (await watched.until(lambda state: state.state == "backoff")).reason == "timeout"
        own_server.thaw()
        await watched.until_state("streaming")
        await watched.until_frames(5)


async def test_reader_server_frozen_before_open(own_server: RtspServer) -> None:  # R2
    own_server.freeze()
    started_s = time.monotonic()
    async with watching(own_server.url("/h264")) as watched:
        state = await watched.until_state("backoff")
        assert state.reason == "timeout"
        assert time.monotonic() - started_s < 4


async def test_reader_frozen_server_does_not_delay_a_stop(own_server: RtspServer) -> None:  # R1, R21
    async with watching(own_server.url("/h264"), read_timeout_s=5.0) as watched:
        await watched.until_frames(5)
        own_server.freeze()
        await asyncio.sleep(0.2)
        started_s = time.monotonic()
        watched.task.cancel()
        await asyncio.wait({watched.task})
        assert time.monotonic() - started_s < 0.5


async def test_reader_slow_drip_is_a_time_out() -> None:  # R9
    def drip(connection: Any, stop: Any) -> None:
        connection.sendall(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n")
        while not stop.wait(0.1):
            connection.sendall(b"X")

    with tcp_server(drip) as port:
        async with watching(f"rtsp://127.0.0.1:{port}/x") as watched:
            state = await watched.until_state("backoff")
            assert state.reason == "timeout"


async def test_reader_one_dead_and_one_frozen_do_not_delay_the_third(
    own_server: RtspServer, server: RtspServer
) -> None:
    async with (
        watching(f"rtsp://127.0.0.1:{free_port()}/x") as dead,
        watching(own_server.url("/h264")) as frozen,
        watching(server.url("/h265")) as good,
    ):
        await frozen.until_frames(3)
        own_server.freeze()
        await good.until_frames(60)
        gaps_ms = [
            (after.picture.arrived_ns - before.picture.arrived_ns) / 1e6 for before, after in pairwise(good.taken)
        ]
        assert max(gaps_ms) < 1000  # 40 expected; a noisy machine is allowed
        assert {state.state for state in good.states} == {"connecting", "streaming"}
        assert dead.states[-1].reason == "refused"
        assert frozen.states[-1].state != "streaming"


async def test_reader_flapping_camera_leaves_no_threads_behind(own_server: RtspServer) -> None:  # R17
    async with watching(own_server.url("/h264")) as watched:
        for _ in range(3):
            await watched.until_frames(3)
            own_server.kill()
            await watched.until_state("backoff")
            own_server.start()
        await watched.until_frames(3)
        gc.collect()
        alive = [thread for thread in watched.reader._threads if thread.is_alive()]
        assert len(alive) == 1


# ---- probe


def test_probe_tells_what_the_camera_sends() -> None:
    with rtsp_server(mounts(), user="edge", password=PASSWORD, auth="digest") as server:
        report = probe(SourceConfig(server.url("/h265", login=LOGIN), transport="udp"), seconds=2.5)
        assert (report.reason, report.auth, report.codec, report.transport) == (None, "accepted", "hevc", "udp")
        assert (report.width, report.height) == (640, 360)
        assert report.fps_measured == pytest.approx(25, abs=0.5)
        assert report.keyframe_interval_s == pytest.approx(1.0, abs=0.01)
        assert report.first_frame_ms is not None
        assert report.open_ms is not None
        assert report.open_ms <= report.first_frame_ms
        refused = probe(SourceConfig(server.url("/h265", login="edge:wrong")), seconds=1)
        assert (refused.reason, refused.auth) == ("auth", "refused")
        assert "wrong" not in repr(refused)
        assert PASSWORD not in repr(report)
