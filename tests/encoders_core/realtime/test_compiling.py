"""Loops with and without a compiler."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders_core.realtime import compiling
from encoders_core.realtime.compiling import COMPILED, compiled
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder
from tests.encoders_core.realtime.tiny_vits import scene, tiny_encoder, walk


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


def kinds() -> dict[str, int]:
    """How many kinds of arguments each compiled loop of ours has been compiled for."""
    modules = [module for name, module in sys.modules.items() if name.startswith("encoders_core.realtime")]
    loops = {
        f"{one.__module__}.{one.__name__}": one for module in modules for one in vars(module).values() if _is_loop(one)
    }
    return {name: len(loop.signatures) for name, loop in loops.items()}


def _is_loop(one: Any) -> bool:
    return hasattr(one, "py_func") and hasattr(one, "signatures")


@pytest.mark.skipif(not COMPILED, reason="numba is not installed: nothing is compiled")
def test_no_frame_waits_for_a_compiler() -> None:
    """Those of an image library may not be written to, which is another kind of argument to a compiler."""
    encoder = RealtimeVideoEncoder(tiny_encoder("timm, class token", depth=2))
    encoder.warm_up()
    before = kinds()
    for number, frame in enumerate([scene(0), scene(0), *walk(6), scene(1)]):
        frame.flags.writeable = False
        encoder.encode_stream([frame], timestamps_us=[number * 40_000])
    assert kinds() == before
    assert sum(before.values()) > 0  # the loops were found
