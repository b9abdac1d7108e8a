"""transformers as the reference, quiet and offline; small random models are saved as users have them, then loaded."""

import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    module = pytest.importorskip("transformers", reason="parity with transformers needs: pip install 'camvec[dev]'")
    module.utils.logging.disable_progress_bar()
    return module


@pytest.fixture(autouse=True)
def same_weights_every_time() -> Iterator[None]:
    torch.manual_seed(7)
    with torch.no_grad():
        yield
