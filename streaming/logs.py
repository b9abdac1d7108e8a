"""Log lines on stderr: structlog and stdlib logging through one handler that redacts, collapses repeats and renders."""

import contextlib
import logging
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, cast

import structlog

from streaming.log_repeats import WINDOW_S, Event, Repeats
from streaming.redaction import MASK, Redactor

if TYPE_CHECKING:
    from streaming.config import Config

Logger = structlog.stdlib.BoundLogger
MAX_TEXT_CHARS: Final = 16_000
_SECRET_KEY = re.compile(
    r"(?i)pass(word|wd|phrase)?$|pwd$|secret|token$|credential|authorization|api_?key$|private_?key$"
)
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # of syslog


def get_logger(name: str, **fields: Any) -> Logger:
    """A structlog logger: `log.warning("source lost", camera="front", reason="timeout")`. `fields` go with every line.

    It ends in stdlib logging, so a program that uses this library keeps its own logging set-up.
    """
    logger = structlog.wrap_logger(
        logging.getLogger(f"camvec.{name}"),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=Logger,
        cache_logger_on_first_use=True,
        **fields,
    )
    return cast("Logger", logger)


def configure_logs(config: "Config", *, worker: str = "", stream: TextIO | None = None) -> None:
    """Send all logging of this process to stderr as `config.logging` says, with its secrets masked.

    `worker` stands in each line. Called again, by a worker that is a thread or after a reload, it takes over the new
    level and secrets; a thread names itself in its own lines only. $CAMVEC_DEBUG lowers the level to debug.
    """
    root = logging.getLogger()
    handler = next((known for known in root.handlers if isinstance(known, LineHandler)), None)
    if handler is None:
        handler = LineHandler(stream or sys.stderr, config.logging.format, worker=worker)
        root.handlers[:] = [handler]
        logging.captureWarnings(capture=True)
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread
    elif worker:
        structlog.contextvars.bind_contextvars(worker=worker)
    for secret in config.secrets():
        handler.redactor.add(secret)
    root.setLevel("DEBUG" if os.environ.get("CAMVEC_DEBUG") else config.logging.level.upper())


class LineHandler(logging.Handler):
    """Any log record -> one redacted line. `form` auto: for people at a terminal, else JSON."""

    def __init__(
        self,
        stream: TextIO,
        form: Literal["auto", "json", "console"] = "auto",
        *,
        worker: str = "",
        redactor: Redactor | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.redactor = redactor or Redactor()
        self._stream = stream
        self._worker = worker
        self._monotonic_s = monotonic_s
        self._repeats = Repeats()
        self._timer: threading.Timer | None = None
        self._render = _renderer(form, stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it if it says the same again."""
        try:
            event = self._safe_event(record)
            now_s = self._monotonic_s()
            admitted = self._repeats.admit(event, now_s, _template(record))
            if admitted is not None:
                self._write(admitted)
            for counted in self._repeats.due(now_s):
                self._write(counted)
            self._arm()
        except Exception as error:  # noqa: BLE001 - a log line must not end the work that it tells of
            self._complain(record, error)

    def flush(self) -> None:
        """Write the counts that are due, and what the stream has buffered."""
        self._sweep(everything=False)

    def close(self) -> None:
        """Write every count that is still waiting."""
        self._sweep(everything=True)
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def _sweep(self, *, everything: bool) -> None:
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError, ValueError):  # stderr may be gone
            for event in self._repeats.due(self._monotonic_s(), everything=everything):
                self._write(event)
            self._stream.flush()

    def _arm(self) -> None:
        """See to it that a count is written although nothing else is logged."""
        if self._repeats.holds_back and (self._timer is None or not self._timer.is_alive()):
            self._timer = threading.Timer(WINDOW_S, self._ring)
            self._timer.daemon = True
            self._timer.start()

    def _ring(self) -> None:
        with self.lock or contextlib.nullcontext():
            self._timer = None
            self.flush()
            self._arm()  # for counts that began after this timer

    def _safe_event(self, record: logging.LogRecord) -> Event:
        said, exc_info, stack = _said(record)
        place = {"worker": self._worker} if self._worker else {}
        fields = place | structlog.contextvars.get_contextvars() | said
        head = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": self._safe(fields.pop("event", "")),
            "logger": record.name,
        }
        event = head | {key: self._safe(value, key) for key, value in fields.items() if key not in head}
        if exc_info is not None:
            event["exception"] = self._safe("".join(traceback.format_exception(exc_info)).rstrip())
        if stack:
            event["stack"] = self._safe(stack)
        return event

    def _safe(self, value: Any, key: str = "", depth: int = 0) -> Any:
        """A value as plain data without secrets: by its key, by its form, and by what was registered."""
        if value is None or isinstance(value, bool):
            return value
        if _SECRET_KEY.search(key):
            return MASK
        if isinstance(value, int | float) and math.isfinite(value):
            return value if self.redactor.redact(str(value)) == str(value) else MASK
        if isinstance(value, Mapping) and depth < 6:
            return {self._text(name): self._safe(item, str(name), depth + 1) for name, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset) and depth < 6:
            return [self._safe(item, key, depth + 1) for item in value]
        return self._text(value)

    def _text(self, value: Any) -> str:
        if isinstance(value, bytes):
            value = value.decode(errors="backslashreplace")
        text = str(value)
        # Cut wide of the limit first: redaction of megabytes would take seconds, and no secret may be cut in two.
        safe = self.redactor.redact(text[: 4 * MAX_TEXT_CHARS])
        return safe if len(safe) <= MAX_TEXT_CHARS else f"{safe[:MAX_TEXT_CHARS]}... ({len(text)} characters)"

    def _write(self, event: Event) -> None:
        self._stream.write(self._render(event) + "\n")
        self._stream.flush()

    def _complain(self, record: logging.LogRecord, error: Exception) -> None:
        """Stands for logging's own complaint, which would print the arguments of the call, secrets and all."""
        with contextlib.suppress(Exception):
            self._stream.write(f"log line lost: {type(error).__name__} at {record.pathname}:{record.lineno}\n")


def _said(record: logging.LogRecord) -> tuple[Event, BaseException | None, str]:
    """What a record says, its exception, and its stack: from structlog a mapping, from stdlib a text with arguments."""
    if not isinstance(record.msg, dict):
        said: Event = {"event": record.getMessage()}
        return said, record.exc_info[1] if record.exc_info else None, record.stack_info or ""
    said = {key: value for key, value in record.msg.items() if key not in {"exc_info", "stack_info"}}
    return said, _exception(record.msg.get("exc_info")), str(record.msg.get("stack_info") or "")


def _template(record: logging.LogRecord) -> str:
    """The text of a stdlib record before its numbers were put in; empty if there are none to tell apart."""
    if isinstance(record.msg, dict) or not isinstance(record.args, tuple) or not record.args:
        return ""
    return " ".join([str(record.msg), *(str(arg) for arg in record.args if not isinstance(arg, int | float))])


def _exception(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return cast("BaseException | None", exc_info[1])
    return sys.exc_info()[1] if exc_info else None


def _renderer(form: str, stream: TextIO) -> Callable[[Event], str]:
    at_terminal = stream.isatty()
    if form == "console" or (form == "auto" and at_terminal):
        console = structlog.dev.ConsoleRenderer(
            colors=at_terminal, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
        return lambda event: str(console(None, "", dict(event)))
    json = structlog.processors.JSONRenderer(ensure_ascii=False)

    def line(event: Event) -> str:
        return str(json(None, "", dict(event)))

    return _with_priority(line) if _is_journal(stream) else line


def _with_priority(line: Callable[[Event], str]) -> Callable[[Event], str]:
    return lambda event: f"<{_PRIORITIES.get(event['level'], 6)}>{line(event)}"


def _is_journal(stream: TextIO) -> bool:
    """Whether systemd's journal reads this stream: it takes the priority of a line from `<N>` before it."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    get_logger("uncaught").critical("uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and args.exc_type is not SystemExit:
        name = args.thread.name if args.thread else "?"
        get_logger("uncaught").critical("uncaught exception in a thread", thread=name, exc_info=args.exc_value)
