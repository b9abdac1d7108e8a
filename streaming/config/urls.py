"""URLs of sources and brokers: checked without ever being shown, because they hold passwords."""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, PlainSerializer, ValidationInfo
from pydantic_core.core_schema import FieldSerializationInfo

from streaming.config.fields import beside_config_file, expected, reveals, rule
from streaming.config.problems import nearest
from streaming.redaction import redact

NETWORK_SCHEMES: Final = ("rtsp", "rtsps", "http", "https")
LOCAL_SCHEMES: Final = ("webcam", "lavfi", "scene")
SOURCE_KINDS: Final = "rtsp://, rtsps://, http://, https://, a file, /dev/video0, webcam:0, lavfi:GRAPH or scene:NAME"
_ENCODE: Final = "in user and password percent-encode @ : / ? # (a ${VARIABLE} there is encoded for you)"
_SECRET_PARAMETER = re.compile(r"(?i)[?&;/][a-z_]*(?:pass(?:word|wd)?|pwd|token|secret|auth|key)=([^&;/#]+)")


def scheme_of(url: str) -> str | None:
    """`rtsp://...` -> "rtsp"; None for a path or anything else without a scheme."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", url)
    return match[1] if match else None


def source_kind(url: str) -> Literal["network", "device", "generated", "file"]:
    """What a checked source URL points at."""
    scheme = scheme_of(url)
    if scheme in NETWORK_SCHEMES:
        return "network"
    if scheme == "webcam" or url.startswith("/dev/"):
        return "device"
    return "generated" if scheme in LOCAL_SCHEMES else "file"


def _check_source_url(url: str, info: ValidationInfo) -> str:
    scheme = scheme_of(url)
    if scheme is None:
        return _check_path(url, info) if url else url
    if scheme not in {*NETWORK_SCHEMES, *LOCAL_SCHEMES}:
        raise rule(f"expected {SOURCE_KINDS}, got {_unknown_scheme(scheme, url)}")
    if scheme in NETWORK_SCHEMES:
        _check_authority(url, scheme)
    elif scheme == "webcam" and not re.fullmatch(r"webcam:\d{1,3}", url):
        raise rule("expected the number of a camera, such as webcam:0")
    elif url == f"{scheme}:":
        raise rule(f"expected something after {scheme}:, got nothing")
    return url


def _unknown_scheme(scheme: str, url: str) -> str:
    # Without "//" it may be a user and password that lack their scheme: nothing of it is shown.
    got = f"{scheme}://..." if url.startswith(f"{scheme}://") else "something else (for a file with a colon: ./NAME)"
    near = nearest(scheme, (*NETWORK_SCHEMES, *LOCAL_SCHEMES))
    return f"{got}; did you mean {near!r}?" if near else got


def _check_path(url: str, info: ValidationInfo) -> str:
    if url.isdigit():
        raise rule(f"expected {SOURCE_KINDS}, got a number; did you mean 'webcam:0'?")
    if re.match(r"\d+(\.\d+){3}(\D|$)", url):
        raise rule("expected a URL, got an address without its scheme; did you mean 'rtsp://ADDRESS/...'?")
    if "\0" in url:
        raise rule("expected a path without zero bytes")
    return str(beside_config_file(Path(url), info))


def _check_authority(url: str, scheme: str) -> None:
    if any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise rule("expected a URL without spaces and control characters: percent-encode them")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise rule(f"expected {scheme}://[USER:PASSWORD@]HOST[:PORT]/PATH, got another form; {_ENCODE}") from None
    if not host or not url.startswith(f"{scheme}://"):
        raise rule(f"expected a host after {scheme}://, got none; {_ENCODE}")


def secrets_in_url(url: str) -> set[str]:
    """The passwords and tokens of a checked URL, as written and decoded."""
    found = {match[1] for match in _SECRET_PARAMETER.finditer(url)}
    if source_kind(url) == "network":
        found.add(urlsplit(url).password or "")
    return {text for raw in found for text in (raw, unquote(raw)) if text}


def _dump_url(url: str, info: FieldSerializationInfo) -> str:
    return url if reveals(info) else redact(url)


SourceUrl = Annotated[
    str,
    AfterValidator(_check_source_url),
    PlainSerializer(_dump_url, return_type=str),
    Field(json_schema_extra=expected(SOURCE_KINDS)),
]
"""A source; a relative file starts at the folder of the configuration file. May hold a password."""


def broker_from_url(url: str) -> dict[str, Any]:
    """`mqtt://[USER[:PASSWORD]@]HOST[:PORT]` (mqtts: with TLS) -> the fields of the mqtt section."""
    form = "expected mqtt://[USER:PASSWORD@]HOST[:PORT] or mqtts://..."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise rule(f"{form}, got another form; {_ENCODE}") from None
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
        raise rule(f"{form}, or a mapping with host, port, ...")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise rule(f"{form} and nothing behind it; {_ENCODE}")
    fields = {"host": parts.hostname, "port": port, "username": parts.username, "password": parts.password}
    given = {
        key: unquote(value) if isinstance(value, str) else value for key, value in fields.items() if value is not None
    }
    return given | {"tls": parts.scheme == "mqtts"}
