from dataclasses import dataclass, field

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.sources.access_unit import AccessUnit, access_unit, nal_length_bytes
from streaming.sources.arrivals import Arrival, Arrivals
from streaming.sources.decode_gate import (
    FIRST_WAIT_S,
    MAX_BYTES,
    MAX_PATIENCE_S,
    PATIENCE_S,
    DecodeGate,
    DecodeGateSettings,
    PacketFacts,
    Verdict,
)
from streaming.sources.glance import GRID_WH, Glance
from streaming.sources.packet_sizes import MARGIN, MAX_MARGIN, READY, PacketSizes

MS = 1_000_000


@dataclass
class Camera:
    """Sends packets to a gate and answers its looks, on a clock of its own."""

    gate: DecodeGate = field(default_factory=DecodeGate)
    now_ns: int = 1_000 * MS
    decode_us: int = 1000
    waited: int = 0
    verdicts: list[Verdict] = field(default_factory=list)

    def send(self, size: int = 300, *, gap_ms: float = 40, changed: bool = False, **facts: bool) -> Verdict:
        self.now_ns += round(gap_ms * MS)
        verdict = self.gate.decide(PacketFacts(size, self.now_ns, **facts))
        self.verdicts.append(verdict)
        if verdict == "wait":
            self.waited += 1
            return verdict
        count = 1 if verdict == "restart" else 1 + self.waited
        self.waited = 0
        self.gate.decoded(count, count * self.decode_us)
        if self.gate.wants_look(self.now_ns):
            self.gate.looked(self.now_ns, changed=changed)
        return verdict

    def fall_asleep(self) -> None:
        """Nothing happens until packets may wait for as long as they ever may; it has just looked."""
        for index in range(1000):
            looked = self.send(300 + index % 7) != "wait"
            if looked and self.gate.wait_s == self.gate.settings.max_blind_s:
                return


def asleep(**settings: float) -> Camera:
    camera = Camera(DecodeGate(DecodeGateSettings(**settings)))  # type: ignore[arg-type]
    camera.fall_asleep()
    return camera


# ---- what may wait


def test_gate_begins_awake_and_dozes_after_it_has_been_quiet() -> None:
    camera = Camera()
    verdicts = [camera.send() for _ in range(40)]
    first = verdicts.index("wait")
    assert PATIENCE_S <= (first - 1) * 0.04 <= PATIENCE_S + 0.5
    assert camera.gate.wait_s >= FIRST_WAIT_S


def test_gate_decodes_a_packet_that_is_larger_than_usual_and_those_before_it() -> None:
    camera = asleep()
    camera.send()
    assert camera.send(3000, changed=True) == "decode"
    assert camera.gate.cause == "size"
    assert not camera.gate.dozing
    assert camera.send() == "decode"


def test_gate_sees_a_rise_that_is_small_but_stays() -> None:
    camera = asleep(max_blind_s=10.0, max_backlog=1000, max_catch_up_ms=1e6)
    assert camera.send(385) == "wait"
    assert "decode" in [camera.send(385) for _ in range(20)]
    assert camera.gate.sizes.margin > MARGIN  # a size, and a false alarm


@pytest.mark.parametrize(("restart", "verdict"), [(True, "restart"), (False, "decode")])
def test_gate_drops_what_waits_only_for_a_keyframe_after_which_nothing_needs_it(
    verdict: Verdict, *, restart: bool
) -> None:
    camera = asleep()
    camera.send()
    assert camera.send(40_000, keyframe=True, restart=restart) == verdict
    assert camera.gate.dozing  # keyframes are large: that says nothing
    assert camera.send() == "wait"


def test_gate_never_lets_parameter_sets_wait() -> None:
    camera = asleep()
    camera.send()
    assert camera.send(parameters=True) == "decode"


def test_gate_disposable_pictures_neither_alarm_nor_count_as_usual() -> None:
    camera = asleep()
    before = list(camera.gate.sizes._recent)
    assert camera.send(9000, disposable=True) == "wait"
    assert list(camera.gate.sizes._recent) == before


@pytest.mark.parametrize(
    ("settings", "decode_us", "most"),
    [
        ({"max_backlog": 7}, 100, 7),
        ({"max_catch_up_ms": 20.0}, 2000, 9),  # 9 that wait and the one that ends it
        ({"max_blind_s": 0.5}, 100, 12),
    ],
)
def test_gate_backlog_is_bounded_by_packets_by_decoding_time_and_by_time(
    settings: dict[str, float], decode_us: int, most: int
) -> None:
    camera = Camera(DecodeGate(DecodeGateSettings(**settings)), decode_us=decode_us)  # type: ignore[arg-type]
    longest = 0
    for index in range(300):
        camera.send(300 + index % 7)
        longest = max(longest, camera.waited)
    assert most - 1 <= longest <= most


def test_gate_slow_keyframes_do_not_shorten_the_wait() -> None:
    camera = asleep()
    camera.decode_us = 30_000
    camera.send(40_000, keyframe=True, restart=True)
    camera.decode_us = 1000
    assert [camera.send() for _ in range(20)] == ["wait"] * 20


def test_gate_backlog_is_bounded_by_bytes() -> None:
    camera = Camera(DecodeGate(DecodeGateSettings(max_blind_s=60.0, max_backlog=1000, max_catch_up_ms=1e6)))
    for _ in range(2000):
        camera.send(100_000)
        assert camera.gate.waiting_bytes <= MAX_BYTES
    assert camera.verdicts.count("wait") > 1000


# ---- what it learns


def test_gate_looks_that_find_nothing_double_the_wait() -> None:
    camera, waits = Camera(), []
    for _ in range(150):
        camera.send()
        if camera.gate.wait_s not in waits:
            waits.append(camera.gate.wait_s)
    assert waits == [0.0, 0.2, 0.4, 0.8, 1.0]


def test_gate_unannounced_changes_make_it_stand_aside_and_quiet_brings_it_back() -> None:  # constant bit rate
    camera = Camera()
    for _ in range(30 * 60 * 25):
        dozing = camera.gate.dozing
        camera.send(1000, changed=dozing)  # whenever it looks, there was something
    assert camera.gate.patience_s == MAX_PATIENCE_S
    assert camera.verdicts[-25 * 60 * 10 :].count("wait") < 0.01 * 25 * 60 * 10
    for _ in range(60 * 60 * 25):
        camera.send(1000)
    assert camera.gate.patience_s == PATIENCE_S


def test_gate_false_alarms_raise_the_margin_and_a_missed_change_resets_it() -> None:
    camera = asleep()
    for _ in range(20):
        for _ in range(10):
            camera.send()
        camera.send(900)
    assert camera.gate.sizes.margin > MARGIN
    assert camera.gate.dozing
    while camera.send(changed=True) == "wait":
        pass
    assert camera.gate.sizes.margin == MARGIN


def test_gate_that_is_woken_decodes_until_it_has_been_quiet_again() -> None:
    camera = asleep()
    camera.gate.wake()
    verdicts = [camera.send() for _ in range(round(PATIENCE_S / 0.04))]
    assert set(verdicts) == {"decode"}


def test_gate_slow_camera_is_looked_at_with_every_packet() -> None:
    camera = Camera()
    assert {camera.send(gap_ms=2000) for _ in range(50)} == {"decode"}


packets = st.tuples(
    st.integers(1, 200_000),
    st.sampled_from([1.0, 16.0, 40.0, 100.0, 1500.0]),
    st.booleans(),
    st.sampled_from(["", "", "", "", "", "keyframe", "restart", "disposable", "parameters"]),
    st.integers(100, 20_000),
)
bounds = st.builds(
    DecodeGateSettings,
    max_blind_s=st.floats(0.1, 5),
    max_backlog=st.integers(1, 100),
    max_catch_up_ms=st.floats(1, 200),
)


def run(settings: DecodeGateSettings, stream: list[tuple[int, float, bool, str, int]]) -> Camera:
    camera = Camera(DecodeGate(settings))
    for _ in range(60):
        camera.send()
    gate = camera.gate
    for size, gap_ms, changed, kind, decode_us in stream:
        facts = {kind: True} if kind else {}
        if kind == "restart":
            facts = {"keyframe": True, "restart": True}
        camera.decode_us = decode_us
        looked_ns = gate._looked_ns
        verdict = camera.send(size, gap_ms=gap_ms, changed=changed, **facts)
        assert gate.waiting == camera.waited <= settings.max_backlog
        assert gate.waiting_bytes <= MAX_BYTES
        if verdict == "wait":
            assert camera.now_ns - looked_ns < settings.max_blind_s * 1e9
            assert (gate.waiting + 1) * gate._cost_ms <= settings.max_catch_up_ms + 1e-9
            assert not facts.keys() & {"keyframe", "parameters"}
        if verdict == "restart":
            assert kind == "restart"
    return camera


@given(bounds, st.lists(packets, max_size=150))
def test_gate_bounds_hold_whatever_comes_and_decisions_replay(
    settings: DecodeGateSettings, stream: list[tuple[int, float, bool, str, int]]
) -> None:
    assert run(settings, stream).verdicts == run(settings, stream).verdicts


# ---- sizes


def test_sizes_say_nothing_before_they_know_enough() -> None:
    sizes = PacketSizes()
    for _ in range(READY - 1):
        sizes.add(100)
        assert not sizes.surprising()
    sizes.add(1_000_000)
    assert sizes.surprising()


@given(st.lists(st.integers(1, 1 << 24), min_size=1, max_size=200))
def test_sizes_that_are_all_alike_never_surprise_and_the_margin_is_bounded(sizes_seen: list[int]) -> None:
    sizes = PacketSizes()
    for size in sizes_seen:
        sizes.add(size)
        if sizes.surprising():
            sizes.false_alarm()
        assert MARGIN <= sizes.margin <= MAX_MARGIN
        assert len(sizes._recent) <= 64
    alike = PacketSizes()
    for _ in range(100):
        alike.add(sizes_seen[0])
        assert not alike.surprising()


# ---- looks


def cells(level: float = 100.0) -> np.ndarray:
    return np.full(GRID_WH[::-1], level, np.float32)


def test_glance_small_changes_add_up_until_they_count() -> None:
    glance = Glance()
    assert glance.changed_cells(cells())
    found = [glance.changed_cells(cells(100 + 0.05 * step)) for step in range(1, 30)]
    assert 3 < found.index(True) < 15


def test_glance_noise_is_no_change_and_a_moving_camera_is() -> None:
    rng, glance = np.random.default_rng(0), Glance()
    for _ in range(20):
        noisy = glance.changed_cells(cells() + rng.normal(0, 0.6, GRID_WH[::-1]).astype(np.float32))
    assert not noisy
    moving = [glance.changed_cells(rng.uniform(0, 255, GRID_WH[::-1]).astype(np.float32)) for _ in range(20)]
    assert all(moving)


def test_glance_does_not_look_at_a_strip_of_time_code() -> None:
    glances = [Glance(strip_px=16), Glance()]
    for value in (16, 235, 16):
        planes = np.full((72, 64), 128, np.uint8)
        planes[32:48] = value
        image = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        found = [glance.changed(image) for glance in glances]
    assert found == [False, True]


# ---- headers


def annexb(*headers: bytes) -> bytes:
    return b"".join(b"\0\0\0\1" + header + b"\x88\x84" for header in headers)


def avcc(*headers: bytes) -> bytes:
    return b"".join((len(header) + 2).to_bytes(4, "big") + header + b"\x88\x84" for header in headers)


@pytest.mark.parametrize(
    ("codec", "headers", "unit"),
    [
        ("h264", [b"\x67", b"\x68", b"\x65", b"\x65"], AccessUnit(restart=True, disposable=False, parameters=True)),
        ("h264", [b"\x09", b"\x06", b"\x41"], AccessUnit(restart=False, disposable=False, parameters=False)),
        ("h264", [b"\x01", b"\x01"], AccessUnit(restart=False, disposable=True, parameters=False)),
        ("h264", [b"\x65", b"\x41"], AccessUnit(restart=False, disposable=False, parameters=False)),
        ("h264", [], AccessUnit(restart=False, disposable=False, parameters=False)),
        ("hevc", [b"\x40\x01", b"\x26\x01"], AccessUnit(restart=True, disposable=False, parameters=True)),
        ("hevc", [b"\x28\x01"], AccessUnit(restart=True, disposable=False, parameters=False)),
        ("hevc", [b"\x2a\x01"], AccessUnit(restart=False, disposable=False, parameters=False)),  # CRA: open
        ("hevc", [b"\x02\x01"], AccessUnit(restart=False, disposable=False, parameters=False)),
    ],
)
def test_access_unit_says_what_its_headers_say(codec: str, headers: list[bytes], unit: AccessUnit) -> None:
    assert access_unit(annexb(*headers), codec, 0) == unit
    assert access_unit(avcc(*headers), codec, 4) == unit


@given(st.binary(max_size=200), st.sampled_from(["h264", "hevc"]), st.sampled_from([0, 1, 2, 4]))
def test_access_unit_reads_anything(data: bytes, codec: str, length_bytes: int) -> None:
    access_unit(data, codec, length_bytes)


def test_nal_length_is_read_from_the_extradata() -> None:
    assert nal_length_bytes("h264", b"\1\x64\0\x1f\xff\xe1") == 4
    assert nal_length_bytes("hevc", bytes([1, *[0] * 20, 0xFD])) == 2
    assert nal_length_bytes("h264", b"\0\0\0\1\x67") == nal_length_bytes("h264", None) == 0


# ---- arrivals


def test_arrivals_that_were_told_of_are_not_swallowed_again() -> None:
    arrivals = Arrivals()
    for number, told in enumerate([True, False, True, False]):
        arrivals.add(Arrival(number, 40 * number, number, number, keyframe=False, told=told))
    found, swallowed = arrivals.match(120)
    assert found is not None
    assert (found.number, swallowed) == (3, 1)
