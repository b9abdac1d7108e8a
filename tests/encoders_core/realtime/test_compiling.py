"""Loops with and without a compiler."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders_core.realtime import compiling
from encoders_core.realtime.compiling import COMPILED, compiled


def twice(number: float) -> float:
    return 2 * number


def plain_twice(number: float) -> float:
    return number + number


def test_a_loop_without_numba_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "COMPILED", False)
    assert compiled(twice, plain_twice) is plain_twice


@pytest.mark.skipif(not COMPILED, reason="numba is not installed: nothing is compiled")
def test_a_loop_is_compiled_and_kept_beside_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))

    assert compiled(twice, plain_twice)(np.float32(2)) == 4

    assert [path.suffix for path in sorted(tmp_path.rglob("*.nb?"))] == [".nbc", ".nbi"]


@pytest.mark.skipif(not COMPILED, reason="numba is not installed: nothing is compiled")
def test_kept_code_is_made_anew_when_any_file_that_it_may_call_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))

    def hits() -> int:
        made: Any = compiled(twice, plain_twice)
        made(np.float32(2))
        return sum(made.stats.cache_hits.values())

    assert [hits(), hits()] == [0, 1]
    monkeypatch.setattr(compiling, "_sources", lambda: (("another.py", 1, 2),))
    assert [hits(), hits()] == [0, 1]


def test_sources_are_all_files_of_compiled_code() -> None:
    names = {name for name, _, _ in compiling._sources()}
    assert {"change_kernels.py", "kernels.py", "turns.py", "product_code.py", "function_code.py"} <= names


@pytest.mark.skipif(not COMPILED, reason="numba is not installed: nothing is compiled")
def test_a_loop_that_nothing_can_be_kept_of_is_compiled_all_the_same() -> None:
    made: dict[str, object] = {}
    exec("def thrice(number):\n    return 3 * number", made)

    assert compiled(made["thrice"], plain_twice)(2.0) == 6  # type: ignore[type-var]
