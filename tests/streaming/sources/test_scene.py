from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from streaming.errors import ConfigError
from streaming.sources import scene_backdrop, scene_render
from streaming.sources.scene import Scene, SceneParams

STILL_LIGHT = "drift=0&lamp_every_s=0&clock=0&noise=0"


def scene(url: str) -> Scene:
    return Scene(SceneParams.parse(url))


def changed(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W): which pixels differ."""
    return (before != after).any(axis=2)


# --- pictures -------------------------------------------------------------------------------------------------------


def test_scene_same_seed_same_bytes_in_any_order() -> None:
    indexes = [0, 7, 299, 300, 455, 900]
    forward = {index: scene("scene:busy?cut_every_s=30").render(index) for index in indexes}
    for cached in (scene_backdrop.backdrop, scene_render._lamp_glow, scene_render._noise_field):
        cached.cache_clear()
    again = scene("scene:busy?cut_every_s=30")
    assert all((again.render(index) == forward[index]).all() for index in reversed(indexes))


def test_scene_other_seed_is_another_street() -> None:
    one, other = (scene(f"scene:quiet?seed={seed}").render(0) for seed in (1, 2))
    assert changed(one, other).mean() > 0.5


def test_scene_picture_has_the_size_asked_for() -> None:
    picture = scene("scene:street?size=320x180").render(3)
    assert picture.shape == (180, 320, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous


def test_scene_quiet_differs_by_the_noise_alone() -> None:
    quiet = scene("scene:quiet?clock=0&noise=1.5")
    error = quiet.render(10).astype(int) - quiet.render(400)
    # Two independent noises of 1.5 levels each (and their colour part) in quadrature: 2.3 levels.
    assert 1.5 < error.std() < 3.0
    assert np.abs(error).max() <= 16
    assert abs(error.mean()) < 0.05


def test_scene_clock_ticks_in_its_box_alone() -> None:
    ticking = scene("scene:quiet?noise=0&fps=10")
    x0, y0, x1, y1 = ticking.clock_box or pytest.fail("no clock")
    within_a_second = changed(ticking.render(20), ticking.render(29))
    assert not within_a_second.any()
    tick = changed(ticking.render(29), ticking.render(30))
    assert tick[y0:y1, x0:x1].any()
    tick[y0:y1, x0:x1] = False
    assert not tick.any()


# --- truth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [f"scene:busy?fps=5&{STILL_LIGHT}", f"scene:street?fps=5&seed=4&{STILL_LIGHT}"])
def test_truth_boxes_cover_what_changed_and_nothing_else_does(url: str) -> None:
    street = scene(url)
    moved = still = 0
    frames = ((index, street.render(index), street.truth(index)) for index in range(330))
    for (_, before, past), (index, after, truth) in pairwise(frames):
        difference = changed(before, after)
        if truth.cut:
            assert difference.mean() > 0.3
            continue
        for each in (*past.objects, *truth.objects):
            x0, y0, x1, y1 = each.box
            difference[y0:y1, x0:x1] = False
        assert not difference.any(), f"frame {index} changed outside of its objects"
        if not truth.moved:
            assert not changed(before, after).any(), f"frame {index} changed, and nothing moved"
        moved, still = moved + truth.moved, still + (not truth.moved)
    assert moved > 50
    assert still > 0 or "busy" in url


def test_truth_every_object_is_drawn_in_its_box() -> None:
    street = scene(f"scene:busy?{STILL_LIGHT}")
    empty = scene(f"scene:quiet?{STILL_LIGHT}").render(0)
    for index in range(0, 600, 37):
        drawn = changed(street.render(index), empty)
        for each in street.truth(index).objects:
            x0, y0, x1, y1 = each.box
            whole = x0 > 0 and x1 < 640
            assert not whole or drawn[y0:y1, x0:x1].mean() > 0.2, f"frame {index}: {each} is not there"


def test_truth_has_quiet_periods_in_which_nobody_is_there() -> None:
    street = scene("scene:street?active_s=30&quiet_s=15&fps=2&cut_every_s=0")
    for index in range(2 * 45 * 4):
        truth = street.truth(index)
        if index / 2 % 45 >= 30:
            assert truth.objects == ()
            assert truth.moved == (index / 2 % 45 == 30 and bool(street.truth(index - 1).objects))
    assert any(street.truth(index).moved for index in range(90))


def test_truth_of_a_busy_street_has_many_kinds_and_speeds() -> None:
    street = scene("scene:busy?fps=2")
    seen = [street.truth(index).objects for index in range(240)]
    assert {each.kind for objects in seen for each in objects} == {"car", "van", "walker", "child"}
    assert max(len(objects) for objects in seen) >= 6
    heights = [each.box[3] - each.box[1] for objects in seen for each in objects if each.kind == "walker"]
    assert max(heights) > 2 * min(heights)
    stays = [
        sum(any(each.id == name for each in objects) for objects in seen) for name in {each.id for each in seen[60]}
    ]
    assert len(set(stays)) > 1


@pytest.mark.parametrize("view", [0, 1, 2, 3])
def test_truth_objects_enter_and_leave_in_every_view(view: int) -> None:
    street = scene("scene:busy?fps=2&cut_every_s=60")
    visits = [{each.id for each in street.truth(view * 120 + index).objects} for index in range(120)]
    assert any(now - before for before, now in pairwise(visits))
    assert any(before - now for before, now in pairwise(visits))


def test_truth_marks_cuts_where_the_view_changes() -> None:
    street = scene("scene:street?fps=10&cut_every_s=30&views=3")
    assert [index for index in range(1201) if street.truth(index).cut] == [300, 600, 900, 1200]
    assert [street.truth(index).view for index in (0, 299, 300, 600, 900)] == [0, 0, 1, 2, 0]
    assert street.truth(310, previous=290).cut
    assert not street.truth(0).cut


def test_truth_light_says_when_the_lamp_goes_on() -> None:
    street = scene("scene:quiet?lamp_every_s=20&fps=10&noise=0&clock=0")
    assert street.truth(199).light == 1.0
    assert street.truth(200).light == 1.2
    assert street.truth(400).light == 1.0
    assert street.render(200).mean() > street.render(199).mean() + 3
    assert not street.truth(200).moved


def test_truth_light_drifts_slowly() -> None:
    street = scene("scene:quiet?drift=0.05&fps=10&noise=0&clock=0")
    lights = [street.truth(index).light for index in range(1200)]
    assert max(lights) == pytest.approx(1.05, abs=1e-4)
    assert max(abs(a - b) for a, b in pairwise(lights)) < 0.001
    assert street.render(300).mean() / street.render(0).mean() == pytest.approx(1.05, abs=0.01)


# --- parameters -----------------------------------------------------------------------------------------------------


def test_params_of_a_bare_name_are_the_defaults() -> None:
    assert SceneParams.parse("scene:street") == SceneParams()


def test_params_are_read() -> None:
    params = SceneParams.parse("scene:busy?seed=7&fps=30000/1001&size=1280x720&cut_every_s=12.5&log=/tmp/a%20b.jsonl")
    assert (params.seed, float(params.fps), params.size_hw) == (7, pytest.approx(29.97, abs=0.01), (720, 1280))
    assert (params.cut_every_s, params.log, params.activity) == (12.5, "/tmp/a b.jsonl", 1.0)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("scene:stret", r"unknown scene 'stret'.*street, busy, quiet; did you mean 'street'\?"),
        ("scene:street?fsp=3", r"unknown parameter 'fsp'.*did you mean 'fps'\?"),
        ("scene:street?fps=fast", r"fps: expected frames per second from 0.1 to 120.*got 'fast'"),
        ("scene:street?fps=1/0", "fps: expected"),
        ("scene:street?size=641x360", "size: expected WIDTHxHEIGHT, both even.*got '641x360'"),
        ("scene:street?size=128x72", "size: expected"),
        ("scene:street?noise=-1", "noise: expected a number from 0 to 40, got '-1'"),
        ("scene:street?noise=nan", "noise: expected a number"),
        ("scene:street?clock=yes", "clock: expected 0 or 1, got 'yes'"),
        ("scene:street?seed", "expected key=value"),
        ("scene:street?realtime=0", "realtime=0 needs frames=N"),
        ("scene:street?active_s=2", "active_s: expected at least 5"),
        ("rtsp://host", "expected a URL like scene:street"),
    ],
)
def test_params_that_are_wrong_say_what_is_right(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SceneParams.parse(url)
