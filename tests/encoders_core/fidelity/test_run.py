"""The measuring run: who gets which turn, what is booked, and what the report says of it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from encoders_core.errors import OptionError
from encoders_core.fidelity.catalogue import catalogue, choose
from encoders_core.fidelity.curves import Curve, draw
from encoders_core.fidelity.disturbances import texture
from encoders_core.fidelity.frame_policies import Hold, LowResolution, Plain
from encoders_core.fidelity.policy import Policy, Step
from encoders_core.fidelity.run import age_s, run_clip
from encoders_core.fidelity.study import perform, report, sampled_variance, steps
from tests.encoders_core.fidelity.fidelity_gear import SIZE_PX, as_clip, play, small_subject, small_vit, truth

NAMES = [
    "plain",
    "hold2",
    "hold3",
    "hold5",
    "frame_gate",
    "stale_kv",
    "tokenwise",
    "stgt",
    "random",
    "lowres",
    "camvec",
]


def moving(count: int = 24) -> list[np.ndarray]:
    frames = []
    for index in range(count):
        frame = texture(SIZE_PX)
        frame[20:40, 2 * index % 40 : 2 * index % 40 + 20] = (220, 30, 30)
        frames.append(frame)
    return frames


class Diary:
    """A policy that notes when its turn was."""

    def __init__(self, name: str, diary: list[str]) -> None:
        self.name, self._diary = name, diary

    def reset(self) -> None:
        self._diary.append(f"{self.name} resets")

    def step(self, frame: np.ndarray, at_ns: int) -> Step:  # noqa: ARG002
        self._diary.append(self.name)
        return Step(np.zeros(2, np.float32), 1, 1, 1.0, 1.0, encoded=True, full=True)


def test_turns_rotate_and_every_policy_sees_every_frame() -> None:
    diary: list[str] = []
    policies: list[Policy] = [Diary("a", diary), Diary("b", diary)]

    traces = run_clip(policies, as_clip(moving(8)), turn=4)

    assert diary == ["a resets", "b resets", *"aaaabbbb", *"bbbbaaaa"]
    assert [len(trace.features) for trace in traces] == [8, 8]


def test_hold_encodes_every_nth_frame() -> None:
    frames = moving(7)

    played = play(Hold(small_vit(), 3), frames)

    assert [step.encoded for step in played] == [True, False, False, True, False, False, True]
    np.testing.assert_array_equal([s.features for s in played], truth(small_vit(), frames)[[0, 0, 0, 3, 3, 3, 6]])


def test_low_resolution_costs_less_and_lies_elsewhere() -> None:
    step = LowResolution(small_subject(), 32).step(texture(SIZE_PX), 0)

    assert step.rows < 0.4 * step.rows_total
    assert np.abs(step.features - truth(small_vit(), [texture(SIZE_PX)])[0]).max() > 1e-3


def test_age_counts_from_the_last_full_pass() -> None:
    assert age_s(np.arange(5.0), [True, False, False, True, False]).tolist() == [0, 1, 2, 0, 1]


def test_the_catalogue_holds_every_policy_of_the_table() -> None:
    assert list(catalogue(small_subject())) == NAMES


def test_plain_is_always_among_the_chosen_and_a_wrong_name_is_told() -> None:
    entries = catalogue(small_subject())

    assert [entry.name for entry in choose(entries, ["stgt"])] == ["plain", "stgt"]
    with pytest.raises(OptionError, match=r"unknown policy hold9.*hold5"):
        choose(entries, ["hold9"])


def test_a_report_has_every_figure_of_every_policy_and_is_plain_json() -> None:
    subject, clips = small_subject(), [as_clip(moving(), "one"), as_clip(moving()[::-1], "two")]
    subject = subject.calibrated(sampled_variance(subject, clips))
    entries = list(catalogue(subject).values())

    found = json.loads(json.dumps(report(subject, clips, [perform(entries, clip, sweep=False) for clip in clips])))

    assert list(found["policies"]) == NAMES
    words = {"fvu", "cos_p5", "cos_min", "knn10", "tokens", "macs", "cpu_ms_per_frame", "p50_ms", "p95_ms", "p99_ms"}
    assert all(words <= row.keys() for row in found["policies"].values())
    assert [clip["name"] for clip in found["clips"]] == ["one", "two"]
    assert (found["trained"], found["variance_from"]) == (False, "run")
    plain = found["policies"]["plain"]
    assert (plain["fvu"], plain["tokens"], plain["cos_min"]) == (0.0, 1.0, pytest.approx(1.0))
    assert found["policies"]["hold2"]["tokens"] == 0.5
    assert 0 < found["policies"]["hold2"]["fvu"] < found["policies"]["hold5"]["fvu"]


def test_random_tokens_get_the_budget_that_camvec_used() -> None:
    entries = choose(catalogue(small_subject()), ["camvec", "random"])

    random, camvec = perform(entries, as_clip(moving()), sweep=False)[1:]

    assert (random.entry.name, camvec.entry.name) == ("random", "camvec")
    assert random.knob == pytest.approx(np.mean(camvec.trace.rows))


def test_a_sweep_makes_curves_and_ticks_as_often_as_it_said() -> None:
    ticks: list[int] = []
    entries, clip = choose(catalogue(small_subject()), ["tokenwise"]), as_clip(moving(10))

    done = perform(entries, clip, sweep=True, tick=lambda: ticks.append(1))
    found = report(small_subject(), [clip], [done])

    assert len(ticks) == steps(entries, [clip], sweep=True) == 10 * (1 + len(entries[1].sweep))
    assert len(found["curves"]["tokenwise"]) == len(entries[1].sweep)
    assert len(found["clips"][0]["policies"]) == 2


def costs(share: float) -> dict[str, float]:
    return {"tokens": share, "macs": share, "cpu_ms_per_frame": 10 * share}


def point(fvu: float, cost: float) -> dict[str, float]:
    return {"fvu": fvu, **costs(cost)}


def test_a_curve_is_read_between_its_points_in_log_fvu() -> None:
    found = Curve([point(0.04, 0.2), point(0.01, 0.4)]).at_target(0.02)

    assert found == {"fvu": 0.02, **{word: pytest.approx(cost) for word, cost in costs(0.3).items()}}


def test_a_policy_that_is_exact_enough_costs_what_its_cheapest_knob_does() -> None:
    assert Curve([point(0.004, 0.5), point(0.007, 0.3)]).at_target(0.02) == {"fvu": 0.007, **costs(0.3)}


def test_a_curve_is_never_extrapolated() -> None:
    assert Curve([point(0.04, 0.2), point(0.03, 0.4)]).at_target(0.02) is None


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves = {"plain": [point(0.0, 1.0)], "tokenwise": [point(0.01, 0.4), point(0.04, 0.2)]}

    draw(curves, tmp_path / "curves.png", title="two points")

    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    absent: Callable[[str], None] = lambda _: None  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", absent)

    with pytest.raises(OptionError, match=r"pip install 'camvec\[plot\]'"):
        draw({}, Path("curves.png"), title="")


def test_plain_is_deterministic() -> None:
    frames = moving(2)

    np.testing.assert_array_equal(truth(small_vit(), frames), [s.features for s in play(Plain(small_vit()), frames)])
