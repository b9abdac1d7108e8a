import numpy as np
import pytest
from numpy.typing import NDArray

from encoders_core.realtime.change import NoiseFloor, identical, is_light, measure
from encoders_core.realtime.change_kernels import cell_differences, reduce_frame

Picture = NDArray[np.uint8]


def picture(seed: int = 0, size: int = 224) -> Picture:
    """Something with structure at all scales, like a photograph."""
    import cv2

    random = np.random.default_rng(seed)
    layers = [
        cv2.resize(random.random((n, n, 3)), (size, size), interpolation=cv2.INTER_CUBIC) for n in (4, 8, 16, 32, 64)
    ]
    return np.clip(255 * np.mean(layers, axis=0), 0, 255).astype(np.uint8)


def reduce_plain(frame: Picture) -> NDArray[np.float64]:
    high, wide, _ = frame.shape
    return frame.reshape(high // 4, 4, wide // 4, 4, 3).mean(axis=(1, 3))


def cells_plain(small: Picture, reference: Picture) -> NDArray[np.float64]:
    difference = np.abs(small.astype(float) - reference.astype(float))
    high, wide, _ = small.shape
    return difference.reshape(high // 4, 4, wide // 4, 4, 3).mean(axis=(1, 3, 4))


@pytest.mark.parametrize("size", [224, 160, 112])
def test_fast_measures_equal_plain_numpy(size: int) -> None:
    one, two = picture(1, size), picture(2, size)
    np.testing.assert_allclose(reduce_frame(one), reduce_plain(one), atol=0.51)
    small, reference = reduce_frame(one), reduce_frame(two)
    np.testing.assert_allclose(cell_differences(small, reference), cells_plain(small, reference), atol=1e-3)


def test_identical_sees_a_single_pixel() -> None:
    one = picture()
    other = one.copy()
    assert identical(one, other)
    other[100, 100, 1] ^= 1
    assert not identical(one, other)
    assert not identical(one, one[:200])


def test_change_of_light_is_no_cut() -> None:
    one = picture()
    brighter = np.clip(one * 1.3, 0, 255).astype(np.uint8)
    change = measure(reduce_frame(brighter), reduce_frame(one), floor=0.0)
    assert change.light
    assert not change.cut


@pytest.mark.parametrize("other", [picture(7), np.zeros((224, 224, 3), np.uint8)], ids=["another scene", "black"])
def test_another_picture_is_a_cut(other: Picture) -> None:
    change = measure(reduce_frame(other), reduce_frame(np.clip(picture() * 1.5, 0, 255).astype(np.uint8)), floor=0.0)
    assert change.cut
    assert not change.light
    assert change.share > 0.9


def test_a_moved_object_is_neither() -> None:
    one, two = picture(), picture()
    two[60:120, 60:120] = 255
    change = measure(reduce_frame(two), reduce_frame(one), floor=0.0)
    assert (change.cut, change.light) == (False, False)
    assert 16 / 196 <= change.share <= 25 / 196


def test_black_reference_is_no_change_of_light() -> None:
    assert not is_light(reduce_frame(picture()), np.zeros((56, 56, 3), np.uint8))


@pytest.mark.parametrize("sigma", [0, 1, 2, 4, 8])
def test_noise_floor_swallows_noise_and_leaves_objects(sigma: float) -> None:
    random, still, floor = np.random.default_rng(0), picture(), NoiseFloor()

    def shot(scene: Picture) -> Picture:
        return reduce_frame(np.clip(scene + random.normal(0, sigma, scene.shape), 0, 255).astype(np.uint8))

    for _ in range(30):
        level = floor.update(shot(still))
    reference = shot(still)
    scores = [measure(shot(still), reference, level).score for _ in range(30)]
    assert max(scores) < 0.02
    with_object = still.copy()
    with_object[100:132, 100:132] = 255 - with_object[100:132, 100:132]
    assert measure(shot(with_object), reference, level).score > 0.3


def test_noise_floor_does_not_rise_with_motion_in_most_of_the_picture() -> None:
    floor = NoiseFloor()
    for index in range(50):
        moving = picture()
        moving[:190] = picture(index)[:190]
        level = floor.update(reduce_frame(moving))
    assert level < 0.1


def test_measure_with_the_cells_of_the_floor_is_the_same_as_without() -> None:
    floor, one, two = NoiseFloor(), reduce_frame(picture(1)), reduce_frame(picture(2))
    floor.update(one)
    level = floor.update(two)
    assert floor.previous is one
    assert measure(two, one, level, floor.cells) == measure(two, one, level)
