from streaming.sources.base import SourceConfig
from streaming.sources.watchdog import Watchdog

SECOND_NS = 1_000_000_000


def watched(interval_s: float, *, pictures: int = 20, config: SourceConfig | None = None) -> Watchdog:
    dog = Watchdog(config or SourceConfig("rtsp://camera"))
    dog.opened(1)
    for number in range(pictures):
        dog.picture(1 + round(number * interval_s * SECOND_NS))
    return dog


def test_watchdog_fast_camera_gets_the_floor() -> None:  # R10
    assert watched(0.04).stall_limit_s == 10.0


def test_watchdog_slow_camera_gets_k_intervals() -> None:  # R10
    assert watched(2.0).stall_limit_s == 40.0
    assert watched(4.0).read_timeout_s == 12.0


def test_watchdog_floor_and_factor_are_configured() -> None:
    config = SourceConfig("rtsp://camera", read_timeout_s=0.1, stall_floor_s=1.0, stall_factor=5.0)
    assert watched(0.04, config=config).stall_limit_s == 1.0
    assert (
        watched(1.0, config=config).stall_limit_s == 6.0
    )  # not before FFmpeg's own time-out of three intervals, twice


def test_watchdog_a_hiccup_is_forgotten() -> None:
    dog = watched(0.04)
    dog.picture(10 * SECOND_NS)
    assert dog.stall_limit_s > 100
    for number in range(100):
        dog.picture(10 * SECOND_NS + number * SECOND_NS // 25)
    assert dog.stall_limit_s == 10.0


def test_watchdog_counts_silence_from_the_last_packet() -> None:
    dog = Watchdog(SourceConfig("rtsp://camera"))
    dog.opened(5 * SECOND_NS)
    assert dog.silent_s(8 * SECOND_NS, last_packet_ns=0) == 3.0
    assert dog.silent_s(8 * SECOND_NS, last_packet_ns=7 * SECOND_NS) == 1.0
    assert dog.undecodable_left_s(8 * SECOND_NS) == 27.0


def test_watchdog_camera_cut_off_too_early_gets_more_time() -> None:
    dog = Watchdog(SourceConfig("rtsp://camera"))
    allowed = []
    for _ in range(5):
        allowed.append(dog.read_timeout_s)
        dog.opened(SECOND_NS)
        dog.picture(SECOND_NS)
        dog.closed(silent=True)
    assert allowed == [5.0, 10.0, 20.0, 40.0, 40.0]
    dog.opened(SECOND_NS)
    dog.picture(SECOND_NS)
    dog.picture(2 * SECOND_NS)
    dog.closed(silent=True)
    assert dog.read_timeout_s == 5.0


def test_watchdog_failed_open_changes_nothing() -> None:
    dog = Watchdog(SourceConfig("rtsp://camera"))
    dog.closed(silent=True)
    assert dog.read_timeout_s == 5.0
