"""A file, or just the URL of a camera -> Config. Whatever is wrong comes as one ConfigError that names every place."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from streaming.config.document import Document, parse
from streaming.config.explain import explain
from streaming.config.models import Config
from streaming.config.problems import Problem, as_error
from streaming.config.urls import SOURCE_KINDS, scheme_of
from streaming.config.variables import Variables, fill_in
from streaming.errors import ConfigError

MAX_FILE_BYTES: Final = 1_000_000
_CONFIG_SUFFIXES: Final = frozenset({"", ".yaml", ".yml", ".json", ".conf"})


def load_config(
    source: str | Path, *, overrides: Mapping[str, Any] | None = None, env: Mapping[str, str] = os.environ
) -> Config:
    """The path of a YAML file, or the URL of one camera -> Config. Raises ConfigError.

    `overrides` replace top-level keys, whatever the file says: options of the command line.
    """
    if isinstance(source, str) and is_camera(source):
        document = Document(data={"cameras": {"camera": source}}, written={("cameras", "camera"): source})
        return _build(document, overrides, file="", env=env, base_dir=Path.cwd())
    path = Path(source)
    return _build(parse(_read(path)), overrides, file=str(path), env=env, base_dir=path.absolute().parent)


def load_text(
    text: str, *, file: str = "", env: Mapping[str, str] = os.environ, base_dir: Path | None = None
) -> Config:
    """YAML text -> Config. `base_dir` is where relative paths start. Raises ConfigError, with `file` in its lines."""
    return _build(parse(text), None, file=file, env=env, base_dir=base_dir)


def is_camera(source: str) -> bool:
    """Whether a command line argument is the URL of a camera (or a video file) and not a configuration file."""
    return scheme_of(source) is not None or source.startswith("/dev/") or Path(source).suffix not in _CONFIG_SUFFIXES


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise ConfigError(f"expected a YAML file or a camera ({SOURCE_KINDS}): {why}", path=str(path)) from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"expected at most {MAX_FILE_BYTES} bytes of YAML", path=str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError("expected UTF-8 text, got other bytes", path=str(path), line=line) from None


def _build(
    document: Document,
    overrides: Mapping[str, Any] | None,
    *,
    file: str,
    env: Mapping[str, str],
    base_dir: Path | None,
) -> Config:
    fill_in(document, Variables(env))
    document.override(overrides or {})
    try:
        config = Config.model_validate(document.data, context={"base_dir": base_dir})
    except ValidationError as error:
        document.problems += _new_problems(error, document)
        raise as_error(document.problems, file) from None
    if document.problems:
        raise as_error(document.problems, file)
    return config


def _new_problems(error: ValidationError, document: Document) -> Iterator[Problem]:
    """Pydantic's errors in our words, one for each place, none where the document itself has one already."""
    told = {problem.path for problem in document.problems}
    for fault in error.errors(include_url=False, include_input=False):
        if fault["type"] == "default_factory_not_called":
            continue  # what it depends on is faulty and told
        problem = explain(fault["loc"], fault["type"], fault.get("ctx", {}), document)
        if problem.path not in told:
            told.add(problem.path)
            yield problem
