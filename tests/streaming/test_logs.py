"""One known secret goes every way that a log line can take, and must come out of none of them. Repeats are counted."""

import asyncio
import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from streaming.config import load_text
from streaming.log_repeats import MAX_KINDS, Repeats
from streaming.logs import LineHandler, configure_logs, get_logger

SECRET = 'sw"ord/fïsh@1'
CONFIG = load_text("cameras: {front: 'rtsp://user:${PW}@10.0.0.5/s'}\nlogging: {format: json}", env={"PW": SECRET})
SPELLINGS = (
    SECRET,
    quote(SECRET, safe=""),
    json.dumps(SECRET)[1:-1],
    repr(SECRET)[1:-1],
    SECRET.encode("unicode_escape").decode(),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, sys.excepthook, threading.excepthook
    yield
    for handler in root.handlers:
        if isinstance(handler, LineHandler):
            handler.close()
    root.handlers[:], root.level, sys.excepthook, threading.excepthook = before
    logging.captureWarnings(capture=False)
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    configure_logs(CONFIG, worker="capture-0", stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def say_in_message(secret: str) -> None:
    get_logger("t").warning(f"opening rtsp://user:{secret}@10.0.0.5/s failed")


def say_in_field(secret: str) -> None:
    get_logger("t").warning("lost", camera="front", detail=f"401 for {secret}")


def say_in_bound_field(secret: str) -> None:
    get_logger("t", source=secret).warning("lost")


def say_in_context(secret: str) -> None:
    structlog.contextvars.bind_contextvars(source=secret)
    get_logger("t").warning("lost")


def say_in_nested_data(secret: str) -> None:
    get_logger("t").warning("lost", data={"a": [{"b": (secret,)}, {secret: 1}, {1, secret}], "bytes": secret.encode()})


def say_in_object(secret: str) -> None:
    class Odd:
        def __repr__(self) -> str:
            return f"<Odd {secret}>"

    get_logger("t").warning("lost", odd=Odd())


def say_in_positional(secret: str) -> None:
    get_logger("t").warning("lost %s", secret)


def say_in_exception(secret: str) -> None:
    try:
        try:
            raise ValueError(f"bad {secret}")  # noqa: TRY301 - the cause of the next one
        except ValueError as cause:
            raise OSError(5, "cannot open", f"rtsp://user:{secret}@h/") from cause
    except OSError as error:
        error.add_note(f"with {secret}")
        get_logger("t").exception("failed")


def say_in_given_exception(secret: str) -> None:
    get_logger("t").error("failed", exc_info=ValueError(secret))


def say_in_stdlib(secret: str) -> None:
    logging.getLogger("paho").warning("password %s", secret)
    logging.getLogger("av").error("Error opening %r", {"url": f"rtsp://user:{secret}@h/"})


def say_in_stdlib_exception(secret: str) -> None:
    try:
        raise RuntimeError(secret)  # noqa: TRY301 - the test is about what is logged
    except RuntimeError:
        logging.getLogger("aiomqtt").exception("loop ended", stack_info=True)


def say_in_broken_call(secret: str) -> None:
    with contextlib.suppress(TypeError):  # raised by pytest's own handler
        logging.getLogger("t").warning("%d cameras", secret)


def say_in_warning(secret: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"deprecated {secret}", stacklevel=1)


def say_in_uncaught(secret: str) -> None:
    error = ValueError(secret)
    sys.excepthook(ValueError, error, None)


def say_in_thread(secret: str) -> None:
    def fail() -> None:
        raise ValueError(secret)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def say_in_task(secret: str) -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_exception_handler({"message": "task failed", "exception": ValueError(secret)})

    asyncio.run(main())


WAYS = [way for name, way in list(globals().items()) if name.startswith("say_in_")]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_secret_comes_out_of_no_way(
    way: Any, spelling: str, stream: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    way(spelling)
    written = stream.getvalue() + "".join(capfd.readouterr())
    assert stream.getvalue()
    for known in SPELLINGS:
        assert known not in written


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_secret_stays_off_the_terminal_too(way: Any) -> None:
    terminal = Terminal()
    console = load_text("cameras: {a: 'rtsp://u:${PW}@h/'}", env={"PW": SECRET})
    configure_logs(console, stream=terminal)
    way(SECRET)
    assert terminal.getvalue()
    assert not any(known in terminal.getvalue() for known in SPELLINGS)


def test_every_way_is_tried() -> None:
    assert len(WAYS) == 16


def test_values_of_secret_keys_and_passwords_in_any_url_are_masked(stream: io.StringIO) -> None:
    get_logger("t").warning("x", password="abc", api_key="abc", url="rtsp://u:pass@h/", camera="front")
    (line,) = lines(stream)
    assert (line["password"], line["api_key"], line["url"], line["camera"]) == (
        "***",
        "***",
        "rtsp://u:***@h/",
        "front",
    )


def test_number_that_is_a_secret_is_masked(stream: io.StringIO) -> None:
    configure_logs(load_text("cameras: {a: 'rtsp://u:4711@h/'}", env={}))
    get_logger("t").warning("x", pin=4711, count=3, ratio=float("nan"))
    (line,) = lines(stream)
    assert (line["pin"], line["count"], line["ratio"]) == ("***", 3, "nan")  # JSON has no NaN


def test_line_names_time_level_logger_and_worker(stream: io.StringIO) -> None:
    get_logger("capture").info("streaming", camera="front", fps=25.0)
    logging.getLogger("aiomqtt").warning("reconnecting in %d s", 3)
    ours, theirs = lines(stream)
    assert ours["timestamp"].endswith("+00:00")
    assert {key: ours[key] for key in ("level", "event", "logger", "worker", "camera", "fps")} == {
        "level": "info",
        "event": "streaming",
        "logger": "camvec.capture",
        "worker": "capture-0",
        "camera": "front",
        "fps": 25.0,
    }
    assert (theirs["event"], theirs["logger"]) == ("reconnecting in 3 s", "aiomqtt")


def test_level_is_that_of_the_configuration(stream: io.StringIO) -> None:
    get_logger("t").debug("hidden")
    assert not stream.getvalue()
    configure_logs(load_text("cameras: {a: a.mp4}\nlogging: {level: debug}", env={}))
    get_logger("t").debug("shown")
    assert [line["event"] for line in lines(stream)] == ["shown"]


def test_debug_switch_of_the_command_line(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMVEC_DEBUG", "1")
    configure_logs(CONFIG)
    get_logger("t").debug("shown")
    assert stream.getvalue()


def test_worker_that_is_a_thread_names_itself_in_its_own_lines(stream: io.StringIO) -> None:
    def work() -> None:
        configure_logs(CONFIG, worker="encode-0")
        get_logger("t").info("from the thread")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    get_logger("t").info("from the first")
    assert [line["worker"] for line in lines(stream)] == ["encode-0", "capture-0"]
    assert sum(isinstance(handler, LineHandler) for handler in logging.getLogger().handlers) == 1


def test_secrets_of_a_reload_are_masked_too(stream: io.StringIO) -> None:
    configure_logs(load_text("cameras: {a: 'rtsp://u:brandnew@h/'}", env={}))
    get_logger("t").info("password is brandnew")
    assert "brandnew" not in stream.getvalue()


def test_very_long_text_is_cut(stream: io.StringIO) -> None:
    get_logger("t").info("x" * 1_000_000)
    assert len(stream.getvalue()) < 20_000


def test_stream_that_is_gone_stops_nobody() -> None:
    stream = io.StringIO()
    configure_logs(CONFIG, stream=stream)
    stream.close()
    get_logger("t").warning("nobody reads this")


def test_without_set_up_a_library_line_goes_where_the_program_wants_it(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("t").warning("lost", camera="front")
    assert "lost" in caplog.text


def handler_at(clock: list[float], stream: io.StringIO) -> logging.Logger:
    logger = logging.Logger("x")  # noqa: LOG001 - apart from the loggers of the process
    logger.addHandler(LineHandler(stream, "json", monotonic_s=lambda: clock[0]))
    return logger


def test_repeated_line_is_counted_and_written_once() -> None:
    clock, stream = [0.0], io.StringIO()
    logger = handler_at(clock, stream)
    for attempt in range(50):
        clock[0] = attempt * 0.1
        logger.warning("open failed, attempt %d", attempt)
    clock[0] = 11.0
    logger.warning("something else")
    first, other, counted = lines(stream)
    assert (first["event"], "repeated" in first) == ("open failed, attempt 0", False)
    assert other["event"] == "something else"
    assert (counted["event"], counted["repeated"]) == ("open failed, attempt 49", 49)


def test_lines_of_other_cameras_states_and_levels_are_not_repeats(stream: io.StringIO) -> None:
    log = get_logger("t")
    for camera in ("cam1", "cam2"):
        for state in ("backoff", "streaming"):
            log.info("state", camera=camera, state=state, retry_in_s=1.5)
            log.info("state", camera=camera, state=state, retry_in_s=2.5)
    log.warning("state", camera="cam1", state="backoff")
    assert [(line["camera"], line["state"]) for line in lines(stream)] == [
        ("cam1", "backoff"),
        ("cam1", "streaming"),
        ("cam2", "backoff"),
        ("cam2", "streaming"),
        ("cam1", "backoff"),
    ]


def test_counts_that_wait_are_written_at_the_end() -> None:
    clock, stream = [0.0], io.StringIO()
    logger = handler_at(clock, stream)
    for _ in range(4):
        logger.warning("lost")
    logger.handlers[0].close()
    assert [line.get("repeated") for line in lines(stream)] == [None, 3]


def test_counts_are_written_although_nothing_else_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.logs.WINDOW_S", 0.05)
    clock, written = [0.0], threading.Event()

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            if "repeated" in text:
                written.set()
            return super().write(text)

    logger = handler_at(clock, Stream())
    logger.warning("lost")
    logger.warning("lost")
    clock[0] = 10.0
    assert written.wait(10)


def test_count_that_began_late_is_written_by_the_next_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.logs.WINDOW_S", 0.05)
    clock, stream = [0.0], io.StringIO()
    logger = handler_at(clock, stream)
    handler = logger.handlers[0]
    assert isinstance(handler, LineHandler)
    for event in ("early", "early", "late", "late"):
        clock[0] = 5.0 if event == "late" else 0.0
        logger.warning(event)
    clock[0] = 10.0  # only the window of "early" is over
    deadline = time.monotonic() + 10
    while "early" not in stream.getvalue().splitlines()[-1] and time.monotonic() < deadline:
        time.sleep(0.01)
    clock[0] = 15.0
    while "late" not in stream.getvalue().splitlines()[-1] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [(line["event"], line.get("repeated")) for line in lines(stream)] == [
        ("early", None),
        ("late", None),
        ("early", 1),
        ("late", 1),
    ]


def test_next_line_after_the_window_carries_the_count() -> None:
    repeats = Repeats(window_s=10)
    assert repeats.admit({"event": "lost"}, 0) == {"event": "lost"}
    assert repeats.admit({"event": "lost"}, 9.9) is None
    assert repeats.admit({"event": "lost"}, 10) == {"event": "lost", "repeated": 1}
    assert repeats.due(19) == []


def test_kinds_of_lines_are_bounded_and_none_is_lost() -> None:
    repeats, written = Repeats(), 0
    for number in range(2 * MAX_KINDS):
        for _ in range(2):
            written += repeats.admit({"event": f"e{number}"}, 0.0) is not None
        written += sum(event["repeated"] for event in repeats.due(0.0))
    written += sum(event["repeated"] for event in repeats.due(0.0, everything=True))
    assert written == 4 * MAX_KINDS


def test_journal_gets_the_priority_of_a_line() -> None:
    # A pipe stands in for the journal's socket: JOURNAL_STREAM names its device and inode.
    read, write = os.pipe()
    with os.fdopen(read) as reader:
        found = os.fstat(write)
        program = (
            "from streaming.config import load_text; from streaming.logs import configure_logs, get_logger\n"
            "configure_logs(load_text('cameras: {a: a.mp4}', env={}), worker='w'); get_logger('t').warning('lost')"
        )
        env = os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}", "PYTHONPATH": "."}
        subprocess.run([sys.executable, "-c", program], stderr=write, env=env, check=True)
        os.close(write)
        line = reader.read()
    assert line.startswith('<4>{"timestamp"')
    assert json.loads(line[3:])["event"] == "lost"


def test_uncaught_exception_of_a_process_is_one_redacted_line() -> None:
    program = (
        "from streaming.config import load_text; from streaming.logs import configure_logs\n"
        "configure_logs(load_text('cameras: {a: \"rtsp://u:swordfish@h/\"}', env={}))\n"
        "raise OSError(5, 'cannot open', 'sword' + 'fish')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert result.returncode == 1
    assert json.loads(result.stderr)["level"] == "critical"
    assert "swordfish" not in result.stderr
