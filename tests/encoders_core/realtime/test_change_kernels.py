from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoders_core.config import GateConfig
from encoders_core.realtime import change, frame_gate
from encoders_core.realtime import change_kernels as kernels
from encoders_core.realtime.frame_gate import FrameGate, GateCalibration

Pair = tuple[Callable[..., Any], Callable[..., Any]]
AS_WRITTEN: tuple[Pair, ...] = (
    (kernels._reduce, kernels.plain_reduce),
    (kernels._cells, kernels.plain_cells),
    (kernels._ranked, kernels.plain_ranked),
    (kernels._excess, kernels.plain_excess),
)
COMPILED: tuple[Pair, ...] = (
    (kernels.reduce_frame, kernels.plain_reduce),
    (kernels.cell_differences, kernels.plain_cells),
    (kernels.ranked, kernels.plain_ranked),
    (kernels.excess, kernels.plain_excess),
)


def pictures(seed: int, high: int, wide: int, noise: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture, and the same with a little noise: cells differ by some grey levels."""
    random = np.random.default_rng(seed)
    first = random.integers(0, 256, (high, wide, 3), np.uint8)
    other = np.clip(first + random.integers(-noise, noise + 1, first.shape), 0, 255).astype(np.uint8)
    return first, other


def assert_same(pairs: tuple[Pair, ...], first: NDArray[np.uint8], other: NDArray[np.uint8], floor: float) -> None:
    (reduce, plain_reduce), (cells, plain_cells), (ranked, plain_ranked), (excess, plain_excess) = pairs
    small, reference = reduce(first), plain_reduce(other)
    np.testing.assert_array_equal(small, plain_reduce(first))
    differ = plain_cells(small, reference)
    np.testing.assert_allclose(cells(small, reference), differ, rtol=1e-5, atol=1e-5)
    assert ranked(differ, differ.size // 10) == plain_ranked(differ, differ.size // 10)
    np.testing.assert_allclose(excess(differ, floor, 2.0, 12.0), plain_excess(differ, floor, 2.0, 12.0), rtol=1e-5)


def assert_same_vectors(distance: Pair, follow: Pair) -> None:
    random = np.random.default_rng(5)
    vector, mean = (random.normal(0, 3, 1280).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(distance[0](vector, mean), distance[1](vector, mean), rtol=1e-12)
    moved = mean.copy()
    np.testing.assert_allclose(follow[0](mean, vector, 0.1), follow[1](moved, vector, 0.1), rtol=1e-5)
    np.testing.assert_allclose(mean, moved, rtol=1e-6, atol=1e-6)


def test_vectors_are_compared_and_followed_as_plain_numpy_does() -> None:
    assert_same_vectors((kernels._distance, kernels.plain_distance), (kernels._follow, kernels.plain_follow))
    assert_same_vectors((kernels.distance, kernels.plain_distance), (kernels.follow, kernels.plain_follow))


def test_loops_equal_plain_numpy_before_they_are_compiled() -> None:
    assert_same(AS_WRITTEN, *pictures(0, 32, 48, 40), floor=1.5)


@given(st.integers(0, 999), st.sampled_from([32, 48, 50, 224]), st.sampled_from([16, 33, 224]), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_what_is_used_equals_plain_numpy_at_any_size(seed: int, high: int, wide: int, noise: int) -> None:
    assert_same(COMPILED, *pictures(seed, high, wide, noise), floor=noise / 20)


def test_a_picture_that_is_not_contiguous_is_reduced_all_the_same() -> None:
    picture = pictures(1, 224, 224, 0)[0]
    np.testing.assert_array_equal(kernels.reduce_frame(picture[:, ::-1]), kernels.reduce_frame(picture)[:, ::-1])


def test_gate_decides_the_same_with_loops_as_with_plain_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    def decisions() -> list[tuple[str, float]]:
        random, features = np.random.default_rng(3), np.random.default_rng(4)
        gate = FrameGate(GateConfig(target_fvu=0.04), GateCalibration(variance=172.3, gain=0.035))
        scene, said = random.integers(0, 256, (224, 224, 3), np.uint8), []
        for index in range(120):
            frame = np.clip(scene + random.normal(0, 2, scene.shape), 0, 255).astype(np.uint8)
            frame[40 : 40 + index % 60, 50:120] = 200
            decision = gate.decide(frame, index * 40_000_000)
            said.append((decision.reason, decision.change.share))
            if decision.encode:
                gate.begin(frame, index * 40_000_000, decision)
                gate.learn(features.normal(0, 1, 1280).astype(np.float32))
        return said

    used = decisions()
    for module, name, plain in (
        (frame_gate, "reduce_frame", kernels.plain_reduce),
        (change, "cell_differences", kernels.plain_cells),
        (change, "ranked", kernels.plain_ranked),
        (change, "excess", kernels.plain_excess),
    ):
        monkeypatch.setattr(module, name, plain)
    assert decisions() == used
    assert len({reason for reason, _ in used}) > 2
