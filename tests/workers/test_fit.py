import json
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from streaming.config import load_text
from workers.cli import app
from workers.fit import Bench, Trial, find_most
from workers.fit_report import as_yaml, trial_table

BASE = load_text("cameras: {x: a.mp4}\nencoder: {budget_ms: 70, quality_level: fast, gate: false}\n", env={})


def trial(count: int, fault: str | None = None) -> Trial:
    return Trial(count, 10.0 * count, 20.0, 50.0, 0.0, {}, 0.5, 0.01, 30, 40.0, fault)


@pytest.mark.parametrize("bears", range(18))
async def test_the_search_finds_the_most_cameras_that_hold_in_few_trials(bears: int) -> None:
    async def run(count: int) -> Trial:
        return trial(count, None if count <= bears else "too many")

    trials = await find_most(run, 16)
    assert max((one.cameras for one in trials if one.holds), default=0) == min(bears, 16)
    assert len(trials) <= 9
    assert len({one.cameras for one in trials}) == len(trials)


def test_a_trial_runs_copies_of_the_sources_with_the_settings_of_the_configuration() -> None:
    config = Bench(BASE, ["a.mp4", "rtsp://10.0.0.5/1"], 5).config(3)
    assert (config.encoder.budget_ms, config.encoder.quality_level, config.encoder.gate) == (70, "fast", False)
    assert [camera.url for camera in config.cameras.values()] == ["a.mp4", "rtsp://10.0.0.5/1", "a.mp4"]
    assert [config.camera(name).realtime for name in config.cameras] == [True, False, True]
    assert config.encoder.fidelity.audit == 0.1


def test_the_printed_configuration_loads_and_holds_no_secret() -> None:
    text = as_yaml(BASE, ["rtsp://admin:hunter2@10.0.0.5/1"], 2, 0.05)
    assert "hunter2" not in text
    config = load_text(text, env={})
    assert len(config.cameras) == 2
    assert (config.encoder.budget_ms, config.encoder.gate, config.encoder.fidelity.fvu) == (70, False, 0.05)


def test_when_not_even_one_camera_holds_it_says_what_to_do() -> None:
    text = as_yaml(BASE, ["a.mp4"], 0, 0.02)
    assert "choose a smaller model" in text
    assert all(line.startswith("#") for line in text.splitlines())


def test_a_table_of_trials_names_the_fault() -> None:
    table = trial_table([asdict(trial(2, "12 % of the frames were dropped")), asdict(trial(1))])
    assert table.row_count == 2
    assert list(table.columns[0].cells) == ["1", "2"]
    assert list(table.columns[-1].cells) == ["holds", "12 % of the frames were dropped"]


@pytest.mark.integration
@pytest.mark.timeout(120)
def test_fit_runs_the_whole_pipeline_and_prints_what_it_found() -> None:
    scene = "scene:quiet?seed=1&fps=5"
    done = CliRunner().invoke(app, ["fit", scene, "--seconds", "3", "--most", "1", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    (one,) = found["trials"]
    assert one["cameras"] == 1
    assert 3 <= one["fps"] <= 7
    assert one["p99_ms"] > 0
    assert found["cameras"] == (1 if one["fault"] is None else 0)
