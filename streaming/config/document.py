"""YAML text -> plain data that remembers its lines. Composed with ruamel, built here: nothing in it can run or explode."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from streaming.config.problems import Place, Problem

MAX_NODES: Final = 20_000
"""Values in one file, aliases counted each time: a few kilobytes of aliases can stand for terabytes."""
MAX_DEPTH: Final = 32
_TAG: Final = "tag:yaml.org,2002:"


@dataclass
class Document:
    """What a file says: `data` for the models, and for errors the line and the written text of each place."""

    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    written: dict[Place, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Place) -> int | None:
        """The line of a place, or of the nearest one around it; None without a file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def override(self, values: Mapping[str, Any]) -> None:
        """Replace top-level keys by values that do not come from the file, and so have no line."""
        if isinstance(self.data, dict):
            self.data = {**self.data, **values}
            self.lines = {place: line for place, line in self.lines.items() if not place or place[0] not in values}

    def complain(self, path: Place, sentence: str) -> None:
        """Note a problem at a place of this document."""
        self.problems.append(Problem(path, self.line(path), sentence))


def parse(text: str) -> Document:
    """YAML 1.2 text -> Document. Never raises: what is wrong stands in `problems`."""
    document = Document()
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except RecursionError:
        document.complain((), f"expected at most {MAX_DEPTH} levels of nesting")
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else None
        document.problems.append(Problem((), line, f"expected YAML, {_syntax(error.problem or error.context or '')}"))
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.problems.append(Problem((), line, "expected text, got a control character"))
    except (YAMLError, ValueError) as error:
        document.complain((), f"expected YAML text, got a form that it does not allow ({type(error).__name__})")
    else:
        _Builder(document).build_root(root)
    return document


def _syntax(problem: str) -> str:
    """The scanner's words without what it quotes from the file: that may be a password which begins with `*` or `!`."""
    if "undefined alias" in problem or "undefined tag" in problem:
        return "got a value that begins with * or !: put it in quotes"
    if match := re.search(r"found character '(.)' that cannot start", problem):
        return f"got a value that begins with {match[1]!r}: put it in quotes"
    if match := re.search(r"but found '(<[a-z ]+>)'", problem):
        return f"got {match[1][1:-1]} in the wrong place: check indentation, quotes and brackets"
    return re.sub(r"'(?!<[a-z ]+>').*", "...", problem)


class _Builder:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._count = 0

    def build_root(self, root: Node | None) -> None:
        self._document.lines[()] = 1
        self._document.data = {} if root is None else self._build(root, ())

    def _build(self, node: Node, path: Place) -> Any:
        self._count += 1
        if self._count > MAX_NODES:
            return self._refuse(path, f"expected at most {MAX_NODES} values in all, counting aliases")
        if len(path) >= MAX_DEPTH:
            return self._refuse(path, f"expected at most {MAX_DEPTH} levels of nesting")
        match node:
            case MappingNode():
                return self._mapping(node, path)
            case SequenceNode():
                for index, item in enumerate(node.value):
                    self._document.lines[*path, str(index)] = item.start_mark.line + 1
                return [self._build(item, (*path, str(index))) for index, item in enumerate(node.value)]
            case ScalarNode():
                return self._scalar(node, path)
        raise TypeError(type(node).__name__)

    def _mapping(self, node: MappingNode, path: Place) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self._document.problems.append(Problem(path, line, "expected a name before the colon"))
                continue
            if key_node.tag == f"{_TAG}merge":
                self._document.problems.append(
                    Problem(path, line, "expected no merge key <<: what cameras share stands in `defaults`")
                )
                continue
            inner = (*path, key_node.value)
            if key_node.value in built:
                first = self._document.lines[inner]
                sentence = f"expected each name once, got it on line {first} and on line {line}"
                self._document.problems.append(Problem(inner, line, sentence))
                continue
            self._document.lines[inner] = line
            built[key_node.value] = self._build(value_node, inner)
        return built

    def _scalar(self, node: ScalarNode, path: Place) -> Any:
        self._document.written[path] = node.value
        build = _SCALARS.get(str(node.tag).removeprefix(_TAG))
        if build is None:
            sentence = "expected a plain value, got one with a YAML tag: if it begins with !, put it in quotes"
            return self._refuse(path, sentence)
        try:
            return build(node.value)
        except (ValueError, OverflowError):
            return self._refuse(path, "expected a number, got something that only looks like one")

    def _refuse(self, path: Place, sentence: str) -> None:
        if not self._document.problems or self._document.problems[-1].sentence != sentence:
            self._document.complain(path, sentence)


def _whole(text: str) -> int:
    if len(text) > 32:
        raise ValueError("no setting is that large, and int() would be slow")
    return int(text.replace("_", ""), 0 if text.lstrip("+-")[:2].lower() in {"0x", "0o", "0b"} else 10)


def _number(text: str) -> float:
    return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: Final[dict[str, Callable[[str], Any]]] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": _whole,
    "float": _number,
    "str": str,
    "timestamp": str,
}
