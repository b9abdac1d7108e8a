"""What is wrong with a configuration, as sentences: where, what was expected, what came, and the nearest valid name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Final

from streaming.errors import ConfigError
from streaming.redaction import redact

Place = tuple[str, ...]
"""A place in the document: keys, and the numbers of list items, as text."""
MAX_SHOWN: Final = 10


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `line` counts from 1, None if there is no file."""

    path: Place
    line: int | None
    sentence: str

    @property
    def text(self) -> str:
        """`where: sentence`, without the line."""
        return f"{where(self.path)}: {self.sentence}" if self.path else self.sentence


def where(path: Place) -> str:
    """A path as people write it. Keys are shortened and redacted: they may be a value whose colon slipped."""
    return ".".join(shown(key) for key in path)


def shown(text: str, limit: int = 60) -> str:
    """Text for one line of an error: redacted first, then shortened, so that no cut can hide where a password ends."""
    if len(text) > 1000:
        return f"(text of {len(text)} characters)"
    printable = "".join(c if c.isprintable() else "?" for c in redact(text))
    return printable if len(printable) <= limit else printable[: limit - 3] + "..."


def nearest(word: str, valid: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The valid word that was probably meant, if any: of those equally near, one with the same letters, or beginning."""
    word = word.lower()

    def nearness(other: str) -> tuple[float, bool, bool]:
        ratio = SequenceMatcher(None, word, other.lower()).ratio()
        return ratio, sorted(other.lower()) == sorted(word), other[:1].lower() == word[:1]

    near = get_close_matches(word, valid, n=3, cutoff=cutoff)
    return max(near, key=nearness, default=None)


def as_error(problems: Sequence[Problem], file: str) -> ConfigError:
    """All problems as one error, one line each, in the order of the file."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem.line or 0)
    first, *rest = ordered[:MAX_SHOWN]
    lines = [first.text] + [_located(problem, file) for problem in rest]
    if len(ordered) > MAX_SHOWN:
        lines.append(f"... and {len(ordered) - MAX_SHOWN} more")
    return ConfigError("\n".join(lines), path=file, line=first.line)


def _located(problem: Problem, file: str) -> str:
    start = f"{file}:{problem.line}: " if file and problem.line is not None else f"{file}: " if file else ""
    return start + problem.text
