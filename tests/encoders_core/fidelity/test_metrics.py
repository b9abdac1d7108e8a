import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from encoders_core.fidelity import metrics

Vectors = NDArray[np.float64]


def vectors(rows: int = 12, dim: int = 4) -> st.SearchStrategy[Vectors]:
    return arrays(np.float64, (rows, dim), elements=st.floats(-100, 100, width=32))


def walk(count: int = 200, seed: int = 0) -> tuple[Vectors, Vectors]:
    """A camera whose vectors wander, ten a second, and the times."""
    steps = np.random.default_rng(seed).normal(size=(count, 8))
    return steps.cumsum(axis=0) + 20, np.arange(count) / 10


@given(vectors())
def test_fvu_of_the_truth_is_zero(truth: Vectors) -> None:
    assert metrics.fvu(truth, truth, 1.0) == 0


@given(vectors(), vectors())
def test_fvu_is_the_plain_formula(truth: Vectors, output: Vectors) -> None:
    spread = ((truth - truth.mean(axis=0)) ** 2).sum()
    wanted = ((output - truth) ** 2).sum() / max(spread, len(truth) * 0.01 * 50.0)

    assert metrics.fvu(truth, output, 50.0) == pytest.approx(wanted)


def test_fvu_of_the_mean_is_one() -> None:
    truth, _ = walk()

    assert metrics.fvu(truth, np.broadcast_to(truth.mean(axis=0), truth.shape), 0.0) == pytest.approx(1.0)


@given(st.floats(0.1, 10), vectors())
def test_fvu_does_not_depend_on_the_scale_of_the_vectors(factor: float, truth: Vectors) -> None:
    output = truth + 1.0

    assert metrics.fvu(factor * truth, factor * output, factor**2) == pytest.approx(metrics.fvu(truth, output, 1.0))


def test_fvu_of_an_idle_camera_is_measured_against_the_floor() -> None:
    truth = np.full((10, 4), 3.0)

    assert metrics.fvu(truth, truth + 0.5, model_variance=100.0) == pytest.approx(4 * 0.25 / 1.0)


@given(vectors(), vectors())
def test_cosines_lie_between_minus_one_and_one_and_are_symmetric(first: Vectors, second: Vectors) -> None:
    near = metrics.cosines(first, second)

    assert (np.abs(near) <= 1 + 1e-9).all()
    np.testing.assert_allclose(near, metrics.cosines(second, first))


def test_cosine_forgives_what_the_centred_cosine_does_not() -> None:
    truth, _ = walk()
    frozen = np.broadcast_to(truth[0], truth.shape) + 1e-3

    assert metrics.centred_cosines(truth, frozen).mean() < metrics.cosines(truth, frozen).mean()


def test_cosine_of_a_lost_vector_is_zero_and_of_two_empty_ones_is_one() -> None:
    assert metrics.cosines(np.array([[1.0, 0], [0, 0]]), np.zeros((2, 2))).tolist() == [0.0, 1.0]


def test_neighbours_of_the_truth_are_all_found() -> None:
    truth, at_s = walk()

    assert metrics.knn_overlap(truth, truth, at_s) == 1.0


def test_neighbours_are_looked_for_as_by_brute_force() -> None:
    truth, at_s = walk(60)
    output = truth + np.random.default_rng(1).normal(size=truth.shape)
    unit = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    overlaps = []
    for index, at in enumerate(at_s):
        far = [other for other in range(60) if abs(at_s[other] - at) > 1.0]
        sets = [set(sorted(far, key=lambda o: -(unit[o] @ query))[:10]) for query in (truth[index], output[index])]
        overlaps.append(len(sets[0] & sets[1]) / 10)

    assert metrics.knn_overlap(truth, output, at_s) == pytest.approx(np.mean(overlaps))


def test_neighbours_of_a_clip_of_half_a_second_are_unknown() -> None:
    truth, _ = walk(5)

    assert metrics.knn_overlap(truth, truth, np.arange(5) / 10) is None


def steps(at: list[float], count: int = 100) -> tuple[Vectors, Vectors]:
    """Vectors that jump at these times, ten frames a second, and the times."""
    at_s = np.arange(count) / 10
    level = np.sum([at_s >= moment for moment in at], axis=0)
    return np.stack([level % 2, np.zeros(count)], axis=1).astype(float), at_s


def test_change_points_are_where_the_vectors_jump() -> None:
    truth, at_s = steps([2.0, 5.0, 8.0])

    assert metrics.change_points(truth, at_s, 0.1).tolist() == pytest.approx([2.0, 5.0, 8.0])


def test_events_that_come_late_are_matched_with_their_delay() -> None:
    truth, at_s = steps([2.0, 5.0, 8.0])
    output, _ = steps([2.3, 5.3, 8.3])

    found = metrics.event_agreement(truth, output, at_s, 0.0)

    assert (found.events, found.f1, found.delay_s) == (3, 1.0, pytest.approx(0.3))


def test_events_that_come_too_late_or_never_are_missed() -> None:
    truth, at_s = steps([2.0, 5.0])
    output, _ = steps([2.0, 7.0])

    found = metrics.event_agreement(truth, output, at_s, 0.0)

    assert (found.f1, found.delay_s) == (0.5, 0.0)


def test_a_camera_without_events_agrees_with_one_without() -> None:
    still = np.ones((50, 3))

    assert metrics.event_agreement(still, still, np.arange(50) / 10, 1.0) == metrics.EventAgreement(0, 1.0, None)


def test_error_that_grows_with_age_shows_its_slope() -> None:
    age = np.tile(np.arange(20) / 10, 5)

    slope, table = metrics.error_by_age(0.3 * age, age)

    assert slope == pytest.approx(0.3)
    assert sum(row.frames for row in table) == 100
    assert [row.fvu for row in table] == sorted(row.fvu for row in table)


def test_the_worst_second_is_found_wherever_it_lies() -> None:
    errors = np.zeros(100)
    errors[63:73] = 1.0

    assert metrics.worst_window(errors, np.arange(100) / 10) == pytest.approx(1.0)


@given(st.integers(1, 60))
def test_the_worst_second_is_at_least_the_mean_of_whole_seconds(count: int) -> None:
    errors = np.random.default_rng(count).random(10 * count)

    assert metrics.worst_window(errors, np.arange(10 * count) / 10) >= errors.mean() - 1e-9


def test_segments_are_ten_seconds_long() -> None:
    assert np.bincount(metrics.segments(np.arange(250) / 10)).tolist() == [100, 100, 50]


def test_the_interval_holds_the_ratio_and_is_the_same_every_time() -> None:
    random = np.random.default_rng(0)
    errors, scales = random.random(12), random.random(12) + 1

    low, high = metrics.bootstrap_interval(errors, scales) or (0, 0)

    assert low < errors.sum() / scales.sum() < high
    assert metrics.bootstrap_interval(errors, scales) == (low, high)


def test_two_segments_are_too_few_for_an_interval() -> None:
    assert metrics.bootstrap_interval(np.ones(2), np.ones(2)) is None
