"""One fault that pydantic found -> one Problem: what was expected, what came, and the nearest valid name."""

from collections.abc import Mapping
from typing import Any, Final

from streaming.config.document import Document
from streaming.config.fields import ID_WORDS, slug
from streaming.config.problems import Place, Problem, nearest, shown
from streaming.config.schema import choices_at, describe, keys_at, nodes_at, places_of

_SECRET_KEYS: Final = frozenset({"password", "url", "options"})


def explain(loc: tuple[int | str, ...], kind: str, context: Mapping[str, Any], document: Document) -> Problem:
    """Pydantic's place, kind and context of a fault -> Problem. Values of secret places are not shown."""
    keys = tuple(str(key) for key in loc)
    place = _in_document(keys, document)
    if kind == "rule":
        place, sentence = _up_to_value((*keys, *context["at"]), document), context["sentence"]
    elif kind == "extra_forbidden":
        sentence = f"unknown key; {_where_it_belongs(place)}"
    elif kind == "missing":
        place = (*place, keys[-1])
        sentence = f"expected {_wanted(place)}, got nothing"
    elif keys and keys[-1] == "[key]":
        near = slug(place[-1])
        sentence = f"expected a name of {ID_WORDS}" + (f"; did you mean {near!r}?" if near else "")
    else:
        sentence = f"expected {_wanted(place)}, got {_got(place, document)}"
    return Problem(place, document.line(place), sentence)


def _in_document(keys: Place, document: Document) -> Place:
    """The part of pydantic's path that is in the document; it ends with names of alternatives and validators."""
    while keys and keys not in document.lines and keys not in document.written:
        keys = keys[:-1]
    return keys


def _up_to_value(keys: Place, document: Document) -> Place:
    """A place up to the plain value that was written for it: `cameras.front` where a URL stands for a mapping."""
    ends = (end for end in range(1, len(keys)) if keys[:end] in document.written)
    return keys[: next(ends, len(keys))]


def _wanted(place: Place) -> str:
    return " or ".join(dict.fromkeys(describe(node) for node in nodes_at(place)))


def _where_it_belongs(place: Place) -> str:
    valid = keys_at(place[:-1])
    if near := nearest(place[-1], valid):
        return f"did you mean {near!r}?"
    if others := places_of(place[-1]):
        here = f"; {place[-2]} takes {', '.join(valid)}" if len(place) > 1 else ""
        return f"it belongs to {' or '.join(others)}{here}"
    return f"expected one of {', '.join(valid)}"


def _got(place: Place, document: Document) -> str:
    value = _value_at(place, document.data)
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return f"a list of {len(value)}"
    if _is_secret(place):
        return "something else (not shown here)"
    written = shown(document.written.get(place, ""))
    wanted = _wanted(place)
    if not isinstance(value, str):
        return f"{written} (for text put it in quotes)" if wanted.startswith("text") else written
    near = slug(value) if wanted == ID_WORDS else nearest(value, choices_at(place))
    return f"{written!r}; did you mean {near!r}?" if near else repr(written)


def _value_at(place: Place, value: Any) -> Any:
    for key in place:
        value = value[int(key)] if isinstance(value, list) else value.get(key) if isinstance(value, dict) else None
    return value


def _is_secret(place: Place) -> bool:
    """Where a password or a URL with one may stand, also by a slip of indentation."""
    return place in {(), ("mqtt",)} or (place[0] == "cameras" and len(place) <= 2) or not _SECRET_KEYS.isdisjoint(place)
