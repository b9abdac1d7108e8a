"""The JSON Schema of a configuration, and what it says about a place: the words of errors and of the reference."""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from streaming.config.models import Config
from streaming.config.problems import Place

Node = dict[str, Any]
_VARIABLE: Final[Node] = {"type": "string", "pattern": r"\$\{.+\}"}


def editor_schema() -> Node:
    """JSON Schema 2020-12 for editors: wherever a number, a switch or a word stands, a `${VARIABLE}` may."""
    head: Node = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "camvec configuration"}
    return {key: _for_editors(value) for key, value in (raw_schema() | head).items()}


@cache
def raw_schema() -> Node:
    """The schema as pydantic makes it, with our own `x-` words."""
    return Config.model_json_schema()


def _for_editors(node: Any) -> Any:
    if isinstance(node, list):
        return [_for_editors(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _for_editors(value) for key, value in node.items() if not key.startswith("x-")}
    if "patternProperties" in plain:
        plain["additionalProperties"] = False  # else a camera id that does not fit goes unnoticed
    if plain.get("type") in {"integer", "number", "boolean"} or "enum" in plain or "const" in plain:
        notes = {key: plain.pop(key) for key in ("title", "description", "default") if key in plain}
        return notes | {"anyOf": [plain, _VARIABLE]}
    return plain


def resolve(node: Node) -> Node:
    """The node behind a `$ref`, with the words that stand beside the reference."""
    if "$ref" not in node:
        return node
    target = raw_schema()["$defs"][node["$ref"].rpartition("/")[2]]
    return {**target, **{key: value for key, value in node.items() if key != "$ref"}}


def branches(node: Node) -> Iterator[Node]:
    """The alternatives of a node, references followed; itself, if it has none."""
    node = resolve(node)
    if "anyOf" not in node:
        yield node
        return
    for branch in node["anyOf"]:
        yield from branches(branch)


def nodes_at(place: Place) -> list[Node]:
    """Every schema that may describe a place of the document; empty for a place that it does not know."""
    nodes = [raw_schema()]
    for key in place:
        nodes = [below for node in nodes for branch in branches(node) for below in _below(branch, key)]
    return nodes


def _below(node: Node, key: str) -> Iterator[Node]:
    if key in node.get("properties", {}):
        yield node["properties"][key]
    elif isinstance(node.get("additionalProperties"), dict):
        yield node["additionalProperties"]
    elif isinstance(node.get("patternProperties"), dict):
        yield from node["patternProperties"].values()
    elif isinstance(node.get("items"), dict) and key.isdigit():
        yield node["items"]


def keys_at(place: Place) -> list[str]:
    """The keys that a mapping at this place may have; empty where the names are free."""
    return [key for node in nodes_at(place) for branch in branches(node) for key in branch.get("properties", {})]


def choices_at(place: Place) -> list[str]:
    """The words that are valid at this place; empty where others are too."""
    found = [choice for node in nodes_at(place) for branch in branches(node) for choice in _choices(branch)]
    return [choice for choice in found if isinstance(choice, str)]


def _choices(node: Node) -> list[Any]:
    return [*node.get("enum", []), *([node["const"]] if "const" in node else [])]


def places_of(key: str) -> list[str]:
    """Where else a key is valid, as people write it: for "unknown key; it belongs to mqtt"."""
    sections = {"": raw_schema()} | {name: resolve(node) for name, node in raw_schema()["properties"].items()}
    sections["a camera"] = raw_schema()["$defs"]["CameraConfig"]
    return [
        name or "the top level"
        for name, section in sections.items()
        if any(key in branch.get("properties", {}) for branch in branches(section))
    ]


def describe(node: Node) -> str:
    """What a value must be, in a few words: `a whole number from 1 to 65535`."""
    node = resolve(node)
    if "x-expected" in node:
        return str(node["x-expected"])
    words = [_describe_branch(branch) for branch in branches(node) if branch.get("type") != "null"]
    return " or ".join(dict.fromkeys(words))


def _describe_branch(node: Node) -> str:
    if "x-expected" in node:
        return str(node["x-expected"])
    if choices := _choices(node):
        return ", ".join(repr(choice) for choice in choices)
    kind = node.get("type")
    if kind == "array":
        return f"a list{_length(node)} of {describe(node['items'])}"
    if kind == "string":
        return _describe_text(node)
    return f"{_KINDS[kind]}{_bounds(node)}" if kind in _KINDS else "a value"


_KINDS: Final = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "object": "a mapping"}


def _describe_text(node: Node) -> str:
    if node.get("format") == "path":
        return "a path"
    if "maxLength" in node:
        return f"text of {node.get('minLength', 0)} to {node['maxLength']} characters"
    return "text"


def _bounds(node: Node) -> str:
    low, above, high = (_plain(node.get(key)) for key in ("minimum", "exclusiveMinimum", "maximum"))
    start = f" from {low}" if low else f" above {above}" if above else ""
    if not high:
        return start
    return f"{start} to {high}" if low else f"{start} and at most {high}"


def _plain(bound: float | None) -> str:
    return "" if bound is None else str(int(bound)) if bound == int(bound) else str(bound)


def _length(node: Node) -> str:
    bounds = [
        f"{words} {node[key]}" for key, words in (("minItems", "at least"), ("maxItems", "at most")) if key in node
    ]
    return f" of {' and '.join(bounds)}" if bounds else ""
