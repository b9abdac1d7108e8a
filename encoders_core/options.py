"""Nested option dictionaries, checked before anything changes: unknown keys are errors that name the valid ones."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from encoders_core.errors import OptionError

Choices = tuple[str | None, ...]
Kind = type[bool] | type[float] | type[int] | Choices
Schema = Mapping[str, Mapping[str, Kind]]


def check_options(given: Mapping[str, Any], schema: Schema, where: str) -> dict[str, dict[str, Any]]:
    """`given` as plain dicts, when every section, key and value fits `schema`; a tuple in it lists allowed words.

    Raises OptionError with the path of the first thing that does not fit and what would.
    """
    _check_mapping(given, where)
    refuse_unknown(given, schema, where)
    checked: dict[str, dict[str, Any]] = {}
    for section, options in given.items():
        path = f"{where}.{section}"
        _check_mapping(options, path)
        refuse_unknown(options, schema[section], path)
        checked[section] = {
            key: _check_value(value, schema[section][key], f"{path}.{key}") for key, value in options.items()
        }
    return checked


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise OptionError for the first key that is not known, with a guess and the valid ones."""
    known = list(known)
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            guess = f" (did you mean {close[0]!r}?)" if close else ""
            raise OptionError(f"{where}: unknown key {key!r}{guess}; valid: {', '.join(known)}")


def _check_mapping(given: Any, path: str) -> None:
    if not isinstance(given, Mapping):
        raise OptionError(f"{path}: expected a dictionary of options, got {type(given).__name__}")


def _check_value(value: Any, kind: Kind, path: str) -> Any:
    if isinstance(kind, tuple):
        if value not in kind:
            raise OptionError(f"{path}: expected one of {', '.join(map(repr, kind))}, got {value!r}")
        return value
    fits = isinstance(value, bool) if kind is bool else isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or (kind is int and not isinstance(value, int)):
        raise OptionError(f"{path}: expected {kind.__name__}, got {value!r}")
    return float(value) if kind is float else value
