"""Resumable passes run in one go."""

from collections.abc import Generator
from typing import Any, TypeVar

T = TypeVar("T")


def drain(steps: Generator[Any, None, T]) -> T:
    """Run a resumable pass to its end and return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
