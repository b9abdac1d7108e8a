"""Nothing secret in a log, an error or a state: passwords in URLs by their form, known secrets wherever they stand."""

import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote, urlsplit

MASK: Final = "***"
MIN_SECRET_CHARS: Final = 3
"""Shorter secrets are not registered: masking every "1" would hide the log, not the password."""

_QUERY_KEYS = (
    r"pass(?:word|wd|phrase)?|pwd|secret|(?:access_?|auth_?|session_?)?token|(?:api_?|access_?)?key|auth|sig(?:nature)?"
)
_PATTERNS: Final = (
    # scheme://user:password@host, up to the last @: people do write @ and / into passwords
    (re.compile(r"(://[^\s:/?#@]*:)[^\s\"'<>]+(?=@)"), rf"\g<1>{MASK}"),
    # the same, percent-encoded inside another URL
    (re.compile(r"(?i)(%3A%2F%2F(?:(?!%3A)[^\s&%]|%(?!3A|40))*%3A)[^\s&\"'<>]+?(?=%40)"), rf"\g<1>{MASK}"),
    # user:password@host without a scheme
    (re.compile(r"(?<![\w/:.%+-])([\w.%+-]+:)(?!//)[^\s\"'<>]+(?=@[\w\[])"), rf"\g<1>{MASK}"),
    # ?password=..., &token=..., and cameras that write user=admin_password=...
    (re.compile(rf"(?i)((?<![a-z])(?:{_QUERY_KEYS})(?:=|%3D))[^\s&;#\"'<>,)]+"), rf"\g<1>{MASK}"),
    (re.compile(r"(?i)\b((?:basic|bearer)\s+)[a-z0-9+/_.~-]{6,}=*"), rf"\g<1>{MASK}"),
)


def redact(text: str) -> str:
    """`text` with every password masked that shows itself by its form: in URLs, queries and HTTP credentials."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class Redactor:
    """`redact`, and besides masks every registered secret, however it is encoded. Meant for the log handler."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str) -> bool:
        """Mask `secret` from now on; False if it is too short to be one."""
        if len(secret) < MIN_SECRET_CHARS or not secret.strip(MASK):
            return False
        self._secrets.add(secret)
        longest_first = sorted(self._secrets, key=lambda known: (-len(known), known))
        self._pattern = re.compile("|".join(_any_spelling(known) for known in longest_first))
        return True

    def add_url(self, url: str) -> bool:
        """Mask the password of `url`, decoded or not; False if it has none."""
        try:
            password = urlsplit(url).password
        except ValueError:
            return False
        return bool(password) and self.add(unquote(password or ""))

    def redact(self, text: str) -> str:
        """`text` without any registered secret and without passwords that show themselves by their form."""
        masked = redact(self._mask(text))
        return masked if self._pattern is None or not self._pattern.search(masked) else MASK

    def _mask(self, text: str) -> str:
        return self._pattern.sub(MASK, text) if self._pattern else text


def _any_spelling(secret: str) -> str:
    """A pattern for `secret` in which each character may be plain, percent-encoded, or escaped as in JSON or Python."""
    return "".join(f"(?:{'|'.join(_spellings(char))})" for char in secret)


def _spellings(char: str) -> list[str]:
    percent = "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
    escaped = {json.dumps(char)[1:-1], char.encode("unicode_escape").decode("ascii"), f"\\{char}"}
    plain = [re.escape(spelling) for spelling in sorted({char, *escaped}, key=len, reverse=True)]
    return [*plain, f"(?i:{re.escape(percent)})", *([r"\+"] if char == " " else [])]
