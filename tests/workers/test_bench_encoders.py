"""`camvec bench encoders`: contenders take turns, who is absent is said, and the JSON is whole."""

import json
import subprocess
import sys
from collections.abc import Generator

import pytest
import torch

from workers.bench_contenders import Contest, contest
from workers.bench_encoders import measure


@pytest.fixture(autouse=True)
def _threads() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def camvec(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workers.cli", "bench", "encoders", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)


def test_command_prints_one_json_object() -> None:
    done = camvec("--model", "vit-micro", "--seconds", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    model = found["models"]["vit-micro"]
    assert model["contenders"]["transformers"]["times_as_fast"] == 1.0
    assert model["rounds"] >= 5
    for name in ("camvec", "camvec packed", "camvec auto"):
        assert model["contenders"][name]["cosine"] > 0.99
    assert all(row["share_of_peak"] > 0 for row in model["contenders"].values())
    absent = {"onnxruntime", "openvino"} - model["contenders"].keys()
    assert all("camvec[bench]" in model["absent"][name] for name in absent)
    assert found["threads"] == 1
    assert "random" in found["weights"]


def test_unknown_model_names_the_known_ones() -> None:
    done = camvec("--model", "vit-x")
    assert done.returncode == 2
    assert "expected one of vit-ti16, vit-s16, vit-b16" in done.stderr


def test_contenders_compute_the_same_as_ours_in_float32() -> None:
    made = contest("vit-micro")
    assert made.flops == 2 * (4 * 768 * 32 + 5 * 12 * 32**2 + 2 * 5 * 5 * 32), "patches, linear layers, attention"
    with torch.inference_mode():
        expected = made.runs["camvec"]()
        for name in ("transformers", "camvec packed", "onnxruntime", "openvino float32"):
            if name in made.runs:
                torch.testing.assert_close(made.runs[name](), expected, atol=1e-5, rtol=1e-4)


def test_contender_that_fails_is_absent_with_its_reason() -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("no such kernel\nand more")

    made = Contest(baseline="fine")
    made.enter("fine", lambda: lambda: torch.ones(1, 4))
    made.enter("broken", lambda: broken)
    made.enter("missing", lambda: broken, package="no_such_package")
    assert made.absent["broken"] == "RuntimeError: no such kernel"
    assert made.absent["missing"].startswith("no_such_package is not installed")
    assert list(measure(made, 0.0, lambda _: None)["contenders"]) == ["fine"]
