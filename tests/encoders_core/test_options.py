"""Nested options: checked as a whole before anything changes; and no option without a test that sets it."""

import re
from pathlib import Path
from typing import Any

import pytest

from encoders_core.errors import OptionError
from encoders_core.hardware import DEVICE_OPTIONS
from encoders_core.medical.options import MEDICAL_OPTIONS, MedicalSettings
from encoders_core.memory import MEMORY_OPTIONS
from encoders_core.multimodal_combiner import FUSION_OPTIONS
from encoders_core.options import Schema, check_options, refuse_unknown
from encoders_core.video.live import REALTIME_OPTIONS
from encoders_core.video.options import TEMPORAL_OPTIONS
from encoders_core.vision_settings import ADVANCED_OPTIONS

SCHEMA: Schema = {"one": {"flag": bool, "share": float, "count": int, "word": (None, "a", "b")}}


def test_what_fits_comes_back_as_plain_data() -> None:
    given = {"one": {"flag": True, "share": 1, "count": 2, "word": None}}
    checked = check_options(given, SCHEMA, "here")
    assert checked == given
    assert isinstance(checked["one"]["share"], float), "an integer is a number, too"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"onee": {}}, r"here: unknown key 'onee' \(did you mean 'one'\?\); valid: one"),
        ({"one": {"flg": True}}, r"here\.one: unknown key 'flg' \(did you mean 'flag'\?\); valid: flag, share"),
        ({"one": {"flag": 1}}, r"here\.one\.flag: expected bool, got 1"),
        ({"one": {"share": True}}, "expected float, got True"),
        ({"one": {"count": 1.5}}, r"expected int, got 1\.5"),
        ({"one": {"word": "c"}}, "expected one of None, 'a', 'b', got 'c'"),
        ({"one": 3}, r"here\.one: expected a dictionary of options, got int"),
        (["one"], "here: expected a dictionary of options, got list"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(given: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        check_options(given, SCHEMA, "here")


def test_nothing_like_it_gives_no_guess() -> None:
    with pytest.raises(OptionError, match="unknown key 'xyz'; valid: one, two"):
        refuse_unknown(["xyz"], ["one", "two"], "here")


def test_medical_settings_and_their_words_go_both_ways() -> None:
    settings = MedicalSettings(noise_reduction="bilateral_filter", multi_scale_features=True)
    assert MedicalSettings.from_config(settings.to_config()) == settings
    flat = {key for section in MEDICAL_OPTIONS.values() for key in section}
    assert flat == MedicalSettings.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    "schema",
    [
        ADVANCED_OPTIONS, TEMPORAL_OPTIONS, FUSION_OPTIONS, MEMORY_OPTIONS, REALTIME_OPTIONS, MEDICAL_OPTIONS,
        {"device": DEVICE_OPTIONS, "memory": {"gradient_checkpointing": bool}},
    ],
)  # fmt: skip
def test_every_option_is_set_in_a_test(schema: Schema) -> None:
    here = Path(__file__)
    texts = "".join(path.read_text("utf-8") for path in here.parent.rglob("test_*.py") if path != here)
    said = set(re.findall(r"\w+", texts))
    assert [key for section in schema.values() for key in section if key not in said] == []
