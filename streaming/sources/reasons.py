"""From FFmpeg's errors to a reason code and one sentence without secrets: what came, and what to do about it."""

import errno
from collections.abc import Sequence
from typing import Final, NamedTuple

import av.error
import av.logging

from streaming.errors import Reason, SourceError
from streaming.redaction import redact
from streaming.sources.ffmpeg_log import LogLine

Errors = tuple[type[BaseException], ...]


def _named(*names: str) -> Errors:
    """The error classes of those names that this PyAV has."""
    return tuple(getattr(av.error, name) for name in names if hasattr(av.error, name))


AV_ERRORS: Final[Errors] = (av.error.FFmpegError, OSError, ValueError)
"""What PyAV raises for reasons that are not ours."""


class Rule(NamedTuple):
    """The first rule of which all that is given applies decides."""

    reason: Reason
    advice: str
    errors: Errors = (Exception,)
    said: str = ""
    """What FFmpeg must have logged, lower case."""
    errnos: frozenset[int] = frozenset()
    device: bool | None = None
    reading: bool | None = None


UNREACHABLE: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})
ANSWERED: Final = (
    # We ask for video alone. Where there is none nothing is set up, and PLAY has no session to start.
    Rule("codec", "expected a video stream, found none", said="method play failed: 45"),
    Rule(
        "auth",
        "the camera refuses this user or password; correct the credentials",
        _named("HTTPUnauthorizedError", "HTTPForbiddenError"),
    ),
    Rule(
        "not_found",
        "the camera answers, but has no stream under this path; check the path",
        _named("HTTPNotFoundError"),
    ),
    Rule(
        "refused",
        "the camera answers with an error; it may have too many viewers or send no video here",
        _named("HTTPError", "HTTPClientError", "HTTPServerError"),
    ),
)
"""The other side spoke: this holds however long it took."""
SILENT: Final = Rule(
    "timeout",
    "no data within the time-out; if the camera sends less than one frame in this time, raise read_timeout_s",
    (TimeoutError, *_named("ExitError")),
)
FAILED: Final = (
    SILENT,
    Rule("no_device", "no permission to open it; add this user to the group video", (PermissionError,), device=True),
    Rule("no_device", "no such device; is the camera plugged in?", device=True),
    Rule("not_found", "no permission to read it", (PermissionError,)),
    Rule("not_found", "no such file", (FileNotFoundError,)),
    Rule("ended", "the connection broke off", reading=True),
    Rule("tls", "the certificate is not trusted; set tls_ca to the PEM file of its authority", said="certificate"),
    Rule("tls", "the TLS connection failed; does this port speak TLS?", said="tls"),
    Rule("refused", "nothing listens on this port; is the camera on, and the port right?", (ConnectionRefusedError,)),
    Rule("unreachable", "the host name cannot be resolved; check the name and the DNS", said="failed to resolve"),
    Rule("ended", "the other side closed the connection", (ConnectionError, EOFError)),
    Rule("unreachable", "no way to this host; check the address and the network", errnos=UNREACHABLE),
    Rule("unreachable", "input or output failed; check the address and the network", errnos=frozenset({errno.EIO})),
    Rule("codec", "what comes is not a video that can be decoded; does the URL point at a video stream?"),
)


def source_error(
    exc: BaseException,
    lines: Sequence[LogLine],
    url: str,
    *,
    device: bool = False,
    waited_out: bool = False,
    reading: bool = False,
) -> SourceError:
    """`exc` of av as a SourceError; `lines` is what FFmpeg logged meanwhile.

    `waited_out`: the time was up by then. `reading`: the source was open already.
    """
    said = " ".join(f"{name} {message}" for _level, name, message in lines).lower()
    facts = {"device": device, "reading": reading}
    rule = next((rule for rule in ANSWERED if _applies(rule, exc, said, facts)), None)
    if rule is None:
        rule = SILENT if waited_out else next(rule for rule in FAILED if _applies(rule, exc, said, facts))
    errors_said = [message.strip() for level, _name, message in lines if level <= av.logging.ERROR]
    detail = redact(errors_said[-1]) if errors_said else type(exc).__name__
    return SourceError(rule.reason, f"{redact(url)}: {rule.advice} ({detail})")


def _applies(rule: Rule, exc: BaseException, said: str, facts: dict[str, bool]) -> bool:
    return (
        isinstance(exc, rule.errors)
        and rule.said in said
        and (not rule.errnos or getattr(exc, "errno", None) in rule.errnos)
        and rule.device in (None, facts["device"])
        and rule.reading in (None, facts["reading"])
    )
