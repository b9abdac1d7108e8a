"""The blocks of docs/encoders.md run as they stand."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest

import encoders_core

pytest.importorskip("tokenizers", reason="tokenizing texts needs: pip install 'camvec[text]'")
PAGE = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text("utf-8")


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    blocks = list(re.finditer(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    with contextlib.chdir(tmp_path):
        for block in blocks:
            line = PAGE.count("\n", 0, block.start(1))
            exec(compile("\n" * line + block[1], "docs/encoders.md", "exec"), names)
    assert len(blocks) >= 9


def test_every_encoder_is_on_the_page() -> None:
    classes = [name for name in encoders_core.__all__ if name.endswith(("Encoder", "Combiner", "Fallback"))]
    assert {"VisionEncoder", "TextEncoder", "VideoEncoder", "MultimodalSearchEncoder"} <= set(classes)
    unnamed = {"MedicalEncoder", "RealtimeVideoEncoder"}  # made by create_specialized and create_realtime
    assert [name for name in classes if name not in PAGE and name not in unnamed] == []
