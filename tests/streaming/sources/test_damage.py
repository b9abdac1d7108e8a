from hypothesis import given
from hypothesis import strategies as st

from streaming.sources.arrivals import Arrival, Arrivals
from streaming.sources.damage import DamageGate, broken_picture, lost_packets

SECOND_NS = 1_000_000_000


def joined_gate() -> DamageGate:
    gate = DamageGate()
    assert gate.passes(0, 0, keyframe=True)
    return gate


def test_gate_waits_for_the_first_keyframe() -> None:
    gate = DamageGate()
    assert not gate.passes(0, 0, keyframe=False)
    assert not gate.joined
    assert gate.passes(1, 0, keyframe=True)


def test_gate_closes_at_damage_and_opens_at_a_clean_keyframe() -> None:  # R11
    gate = joined_gate()
    gate.broken(5, 0)
    assert not gate.passes(5, 0, keyframe=False)
    assert not gate.passes(6, 0, keyframe=False)
    assert gate.passes(7, 0, keyframe=True)
    assert gate.passes(8, 0, keyframe=False)


def test_gate_keyframe_that_may_miss_packets_itself_does_not_open() -> None:
    gate = joined_gate()
    gate.lost(5, 0)  # seen while 5 was read: 5 or 6 is incomplete
    assert not gate.passes(6, 0, keyframe=True)
    assert gate.passes(7, 0, keyframe=True)


def test_gate_stream_without_keyframes_is_trusted_after_a_while() -> None:
    gate = DamageGate()
    assert not gate.passes(0, 5 * SECOND_NS, keyframe=False)
    assert not gate.passes(1, 24 * SECOND_NS, keyframe=False)
    assert gate.passes(2, 26 * SECOND_NS, keyframe=False)
    gate.broken(3, 30 * SECOND_NS)
    assert not gate.passes(3, 49 * SECOND_NS, keyframe=False)
    assert gate.passes(4, 51 * SECOND_NS, keyframe=False)


@given(st.lists(st.tuples(st.sampled_from(["good", "broken", "lost"]), st.booleans()), max_size=60))
def test_gate_nothing_passes_between_damage_and_the_next_keyframe(packets: list[tuple[str, bool]]) -> None:
    gate, trusted = joined_gate(), True
    for number, (event, keyframe) in enumerate(packets, start=1):
        if event == "broken":
            gate.broken(number, 0)
        if event == "lost":
            gate.lost(number, 0)
        trusted = event == "good" and (trusted or keyframe)
        if gate.passes(number, 0, keyframe=keyframe):
            assert trusted


def test_log_lines_of_damage_are_known_and_harmless_ones_are_not() -> None:
    assert lost_packets([(24, "rtsp", "RTP: missed 3 packets\n")])
    assert not lost_packets([(24, "rtsp", "max delay reached. need to consume packet\n")])
    assert broken_picture([(16, "h264", "error while decoding MB 26 17, bytestream 982\n")])
    assert broken_picture([(16, "hevc", "Could not find ref with POC 12\n")])
    assert not broken_picture([(16, "h264", "SEI type 5 size 64 truncated at 48\n"), (24, "mjpeg", "EOI missing\n")])


def arrival(number: int, pts: int | None) -> Arrival:
    return Arrival(number, pts, arrived_ns=number, arrived_us=number, keyframe=False)


def test_arrivals_reordered_pictures_find_their_own_packet() -> None:  # B-frames
    arrivals = Arrivals()
    for number, pts in enumerate([0, 3, 1, 2]):
        arrivals.add(arrival(number, pts))
    found = [arrivals.match(pts) for pts in (0, 1, 2, 3)]
    assert [(match.number if match else None, swallowed) for match, swallowed in found] == [
        *((0, 0), (2, 0), (3, 0), (1, 0))
    ]


def test_arrivals_swallowed_packets_are_counted() -> None:  # libavcodec's HEVC drops pictures without an error
    arrivals = Arrivals()
    for number in range(5):
        arrivals.add(arrival(number, number * 40))
    assert arrivals.match(0)[1] == 0
    match, swallowed = arrivals.match(160)
    assert match is not None
    assert (match.number, swallowed) == (4, 3)


def test_arrivals_without_pts_are_taken_in_order_and_bounded() -> None:
    arrivals = Arrivals()
    for number in range(1000):
        arrivals.add(arrival(number, None))
    assert len(arrivals.waiting) == 64
    match, _ = arrivals.match(None)
    assert match is not None
    assert match.number == 936
    assert Arrivals().match(7) == (None, 0)
