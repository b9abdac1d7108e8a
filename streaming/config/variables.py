"""`${...}` in values, filled in after parsing, so that no value can change the structure of the file."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from streaming.config.document import Document
from streaming.config.problems import Place, nearest, shown

MAX_SECRET_FILE_BYTES: Final = 65_536
_PLACEHOLDER = re.compile(r"\$\$|\$\{(?P<inside>[^}]*)\}|(?P<open>\$\{)")
_NAME = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(:-(?P<default>.*))?", re.DOTALL)


class Variables:
    """Fills in `${NAME}`, `${NAME:-default}`, `${file:PATH}` and `${credential:NAME}`; `$$` is one dollar sign.

    In the user and password of a URL what is filled in gets percent-encoded. `${credential:NAME}` is systemd's
    LoadCredential: the file NAME in $CREDENTIALS_DIRECTORY.
    """

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._env = env

    def fill(self, text: str) -> str:
        """Text with its placeholders replaced. Raises ValueError with a sentence that holds no value."""
        userinfo = _userinfo(text)

        def replace(match: re.Match[str]) -> str:
            if match[0] == "$$":
                return "$"
            if match["open"]:
                raise ValueError("expected a } after ${, got none; write $$ for a dollar sign")
            value = self._look_up(match["inside"])
            return quote(value, safe="") if match.start() in userinfo else value

        return _PLACEHOLDER.sub(replace, text)

    def _look_up(self, inside: str) -> str:
        kind, colon, name = inside.partition(":")
        if colon and kind == "file":
            return _read_absolute(Path(name))
        if colon and kind == "credential":
            return self._credential(name)
        match = _NAME.fullmatch(inside)
        if match is None or "${" in inside:
            raise ValueError(
                "expected ${NAME}, ${NAME:-default}, ${file:PATH} or ${credential:NAME}; $$ is a dollar sign"
            )
        value = self._env.get(match["name"])
        if match["default"] is not None:
            return value or match["default"]
        if value is None:
            raise ValueError(
                f"expected the environment variable {match['name']} to be set{self._nearest(match['name'])}"
            )
        return value

    def _credential(self, name: str) -> str:
        folder = self._env.get("CREDENTIALS_DIRECTORY")
        if folder is None:
            raise ValueError("expected $CREDENTIALS_DIRECTORY, which systemd sets for units with LoadCredential=")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or name.startswith("."):
            raise ValueError("expected the name of a credential of letters, digits, dot, dash and underscore")
        return _read(Path(folder) / name)

    def _nearest(self, name: str) -> str:
        known = {name.lower(): name for name in self._env}
        near = nearest(name, known, cutoff=0.8)
        return f"; did you mean {known[near]!r}?" if near else ""


def _userinfo(text: str) -> range:
    """Where user and password of a URL stand in `text`; empty for anything else."""
    hidden = _PLACEHOLDER.sub(lambda match: "x" * len(match[0]), text)  # what a placeholder holds is no delimiter
    match = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)@", hidden)
    return range(*match.span(1)) if match else range(0)


def _read_absolute(path: Path) -> str:
    if not path.is_absolute():
        raise ValueError("expected an absolute path in ${file:PATH}")
    return _read(path)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        raise ValueError(f"expected a readable file at {shown(str(path))}: {why}") from None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"expected text in {shown(str(path))}, got other bytes") from None
    if len(content) > MAX_SECRET_FILE_BYTES:
        raise ValueError(f"expected at most {MAX_SECRET_FILE_BYTES} bytes in {shown(str(path))}")
    return text.removesuffix("\n").removesuffix("\r")


def fill_in(document: Document, variables: Variables) -> None:
    """Replace the placeholders in every value of `document`; keys are left as they are."""
    document.data = _filled(document.data, (), document, variables)


def _filled(value: Any, path: Place, document: Document, variables: Variables) -> Any:
    match value:
        case dict():
            return {key: _filled(item, (*path, key), document, variables) for key, item in value.items()}
        case list():
            return [_filled(item, (*path, str(index)), document, variables) for index, item in enumerate(value)]
        case str():
            try:
                return variables.fill(value)
            except ValueError as error:
                document.complain(path, str(error))
    return value
