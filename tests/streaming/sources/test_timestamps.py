import time

from hypothesis import given
from hypothesis import strategies as st

from streaming.sources.timestamps import CaptureClock, Pacer, TimestampRepair

RAW_US = st.none() | st.integers(-(2**40), 2**40)
NOW_US = 1_800_000_000_000_000


@given(st.lists(RAW_US, max_size=80), st.booleans(), st.lists(st.integers(0, 20_000_000), min_size=80, max_size=80))
def test_repair_output_increases_strictly_whatever_comes(raw: list[int | None], live: bool, waits: list[int]) -> None:
    repair, now_ns, out = TimestampRepair(live=live), 0, []  # R12
    for raw_us, wait_us in zip(raw, waits, strict=False):
        now_ns += wait_us * 1000
        out.append(repair.feed(raw_us, now_ns))
    assert out == sorted(set(out))
    assert repair.repaired <= len(raw)


@given(st.lists(st.integers(1, 9_000_000), min_size=1, max_size=50), st.integers(-(2**40), 2**40))
def test_repair_leaves_good_timestamps_alone(steps: list[int], start: int) -> None:
    repair, raw_us = TimestampRepair(live=True), start
    for step_us in steps:
        raw_us += step_us
        assert repair.feed(raw_us, raw_us * 1000) == raw_us
    assert repair.repaired == 0


def test_repair_missing_pts_continue_at_the_usual_step() -> None:
    repair = TimestampRepair(live=True)
    assert [repair.feed(raw, 0) for raw in (None, 40_000, 80_000, None, None, 200_000)] == [
        *(0, 40_000, 80_000, 120_000, 160_000, 200_000)
    ]
    assert repair.repaired == 2  # the first packet of RTSP never has one: that is no fault of the camera


def test_repair_small_step_back_does_not_shift_what_follows() -> None:  # packed B-frames in AVI
    repair = TimestampRepair(live=False)
    assert [repair.feed(raw * 40_000, 0) for raw in (1, 4, 6, 5, 7)] == [40_000, 160_000, 240_000, 240_001, 280_000]
    assert repair.repaired == 1


def test_repair_reset_and_wrap_count_once_and_go_on_with_the_time_that_passed() -> None:
    repair, second = TimestampRepair(live=True), 1_000_000_000
    wrap_us = 2**33 * 100 // 9  # MPEG-TS
    for n in range(3):
        repair.feed(wrap_us - 120_000 + n * 40_000, n * 40_000_000)
    last_us = wrap_us - 40_000
    assert repair.feed(0, 120_000_000) == last_us + 40_000
    assert repair.feed(40_000, 160_000_000) == last_us + 80_000
    assert repair.feed(5_000_000_000, second) == last_us + 920_000  # five thousand seconds that did not pass
    assert repair.repaired == 2


def test_repair_long_pause_of_a_live_camera_is_no_jump() -> None:
    repair, minute_us = TimestampRepair(live=True), 60_000_000
    repair.feed(0, 0)
    assert repair.feed(minute_us, minute_us * 1000) == minute_us
    assert repair.repaired == 0


def test_repair_gap_in_a_file_is_kept() -> None:  # time lapse: nobody waited for it
    repair = TimestampRepair(live=False)
    assert [repair.feed(raw, 0) for raw in (0, 3_600_000_000)] == [0, 3_600_000_000]
    assert repair.repaired == 0


def test_capture_clock_believes_rtcp_with_its_age_as_error() -> None:  # R13
    captured = CaptureClock("rtsp").capture_time(5_000_000, NOW_US, NOW_US - 5_080_000)
    assert (captured.at_us, captured.clock, captured.error_us) == (NOW_US - 80_000, "rtcp", 80_000)


def test_capture_clock_without_reports_says_arrival() -> None:
    captured = CaptureClock("rtsp").capture_time(5_000_000, NOW_US, None)
    assert (captured.at_us, captured.clock) == (NOW_US, "arrival")
    assert captured.error_us > 0


def test_capture_clock_camera_in_the_future_or_past_is_not_believed() -> None:
    for wrong_us in (-3_600_000_000, 200_000):
        clock = CaptureClock("rtsp")
        assert clock.capture_time(0, NOW_US, NOW_US + wrong_us).clock == "arrival"
        assert clock.capture_time(0, NOW_US, NOW_US - 50_000).clock == "arrival"  # and not again in this connection


def test_capture_clock_driver_time_is_the_pts() -> None:
    captured = CaptureClock("device").capture_time(NOW_US - 12_000, NOW_US, None)
    assert (captured.at_us, captured.clock) == (NOW_US - 12_000, "driver")
    assert CaptureClock("device").capture_time(77_000_000, NOW_US, None).clock == "arrival"  # time since boot


def test_pacer_waits_for_the_stream_and_starts_anew_after_a_jump() -> None:
    pacer, started_s = Pacer(), time.monotonic()
    for stream_us in (1_000_000, 1_100_000, None, 1_200_000):
        pacer.wait(stream_us)
    assert time.monotonic() - started_s >= 0.2
    pacer.wait(7_200_000_000)
    assert time.monotonic() - started_s < 5
