from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoders_core.realtime.compiling import COMPILED
from encoders_core.realtime.tokens import kernels, plain
from encoders_core.realtime.tokens.plain import AttentionWatch, Norm

PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "store": (kernels._store, plain.store),
    "measure_both": (kernels._measure_both, plain.measure_both),
    "select": (kernels._select, plain.select),
    "due": (kernels._due, plain.due),
    "learn_slopes": (kernels._learn_slopes, plain.learn_slopes),
    "settle": (kernels._settle, plain.settle),
    "measure": (kernels._measure, plain.measure),
    "let_through": (kernels._let_through, plain.let_through),
    "distances": (kernels._distances, plain.distances),
    "most_urgent": (kernels._most_urgent, plain.most_urgent),
    "grow_older": (kernels._grow_older, plain.grow_older),
    "settled": (kernels._settled, plain.settled),
    "total": (kernels._total, plain.total),
}
WATCHING = ("select", "due", "learn_slopes", "most_urgent", "grow_older", "settled", "total")


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.random.Generator, int, int, NDArray[np.int64]]:
    """A source of numbers, N, D, and some of the N rows: none, all, or any between, ascending."""
    rows, dim = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    chosen = sorted(draw(st.sets(st.integers(0, rows - 1))))
    return np.random.default_rng(draw(st.integers(0, 2**32))), rows, dim, np.array(chosen, np.int64)


def floats(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return random.standard_normal(shape).astype(np.float32) * 3


def watching(name: str, random: np.random.Generator, rows: int, indices: NDArray[np.int64]) -> list[Any]:
    """Limits, ages and watches of rows, some never seen and some that are let through whatever they do."""
    change, forced = np.abs(floats(random, len(indices))), random.integers(0, rows, 2)
    limit, age = floats(random, rows), random.integers(1, 300, rows).astype(np.float32)
    chosen = np.flatnonzero(random.random(len(indices)) < 0.7)
    if name == "select":
        return [change, limit, age, indices, forced]
    if name == "most_urgent":
        return [change, limit, age, indices, forced, chosen, int(random.integers(0, len(chosen) + 1))]
    if name == "grow_older":
        return [age, indices, chosen]
    if name == "total":
        return [change, chosen]
    slope = np.abs(floats(random, rows))
    slope[random.random(rows) < 0.3] = np.inf
    watch = AttentionWatch(np.array([2.0]), *np.abs(floats(random, 2, rows)), slope)
    if name == "due":
        return [watch, limit, age, indices[:3], forced]
    return [watch, indices, chosen if name == "settled" else change]


def arguments(name: str, case: tuple[np.random.Generator, int, int, NDArray[np.int64]]) -> list[Any]:
    random, rows, dim, indices = case
    if name in WATCHING:
        return watching(name, random, rows, indices)
    if name in ("store", "settle"):
        into = [floats(random, rows, dim) for _ in range(1 if name == "store" else 2)]
        return [*into, indices, floats(random, len(indices), dim)]
    if name in ("measure", "measure_both"):
        norm = Norm(floats(random, dim), floats(random, dim), 1e-6)
        return [floats(random, rows, dim), norm, *(floats(random, rows, dim) for _ in range(2 + (name != "measure")))]
    if name == "let_through":
        source = floats(random, rows + 3, dim)
        places = random.permutation(rows + 3)[: len(indices)].astype(np.int64)
        return [source, places, floats(random, rows, dim), indices, floats(random, len(indices), dim)]
    return [floats(random, len(indices), dim), floats(random, rows, dim), indices]


def copied(part: Any) -> Any:
    if isinstance(part, tuple):
        return type(part)(*map(copied, part))
    return part.copy() if isinstance(part, np.ndarray) else part


def flat(parts: Iterable[Any]) -> Iterator[Any]:
    for part in parts:
        yield from flat(part) if isinstance(part, tuple) else (part,)


def assert_same(name: str, one: Callable[..., Any], other: Callable[..., Any], case: Any) -> None:
    """The same result, and the same left in every argument."""
    given_one = arguments(name, case)
    given_other = [copied(part) for part in given_one]
    results = [flat((one(*given_one), *given_one)), flat((other(*given_other), *given_other))]
    for got, expected in zip(*results, strict=True):
        if expected is None:
            assert got is None
            continue
        finite = np.abs(expected)[np.isfinite(expected)]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(np.max(finite, initial=0))))
        assert np.asarray(got).dtype == np.asarray(expected).dtype


@pytest.mark.skipif(not COMPILED, reason="numba is not installed: the plain kernels are used")
@pytest.mark.parametrize("name", PAIRS)
@given(case=cases())
@settings(deadline=None, max_examples=60)
def test_compiled_kernels_equal_plain_numpy(name: str, case: Any) -> None:
    assert_same(name, getattr(kernels, name), PAIRS[name][1], case)


@pytest.mark.parametrize("name", PAIRS)
@given(case=cases())
@settings(deadline=None, max_examples=8)
def test_loops_equal_plain_numpy_before_they_are_compiled(name: str, case: Any) -> None:
    assert_same(name, *PAIRS[name], case)


def test_no_rows_chosen_leaves_memory_as_it_is() -> None:
    none, rows = np.empty(0, np.int64), np.empty((0, 4), np.float32)
    x, output = np.ones((3, 4), np.float32), np.full((3, 4), 2, np.float32)
    kernels.settle(x, output, none, rows)
    kernels.let_through(x, none, output, none, rows)
    assert (x == 3).all()
    assert (output == 2).all()
    assert kernels.distances(rows, output, none).shape == (0,)
