"""The files beside the code: every example loads, the full one is full, the reference is what the models say."""

import json
from pathlib import Path
from typing import Any

import pytest

from streaming.config import editor_schema, load_config
from streaming.config.document import parse
from streaming.config.reference import reference
from streaming.config.schema import keys_at

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    for name in ("mqtt-password", "cam-password"):
        (tmp_path / name).write_text("hunter2\n", encoding="utf-8")
    return {"MQTT_PASSWORD": "hunter2", "CAM_PW": "hunter2", "CREDENTIALS_DIRECTORY": str(tmp_path)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_example_loads(path: Path, env: dict[str, str]) -> None:
    config = load_config(path, env=env)
    assert config.cameras
    assert "hunter2" not in json.dumps(config.dump())


def test_examples_are_complete() -> None:
    assert {path.stem for path in CONFIGS} >= {"two-cameras", "edge", "full", "secure-capture", "secure-encoder"}


def test_host_pair_fits_together(env: dict[str, str]) -> None:
    capture = load_config(ROOT / "configs/secure-capture.yaml", env=env)
    encoder = load_config(ROOT / "configs/secure-encoder.yaml", env=env)
    assert capture.roles == ("capture",)
    assert encoder.roles == ("encode", "publish")
    port = encoder.transport.listen[0].rpartition(":")[2]
    assert capture.transport.connect[0].endswith(f":{port}")
    assert set(encoder.cameras) <= set(capture.cameras)


def test_full_example_has_every_key() -> None:
    data = parse((ROOT / "configs/full.yaml").read_text(encoding="utf-8")).data

    def absent(place: tuple[str, ...], here: Any) -> list[str]:
        keys = keys_at(place)
        return [
            name
            for key in keys
            for name in ([".".join((*place, key))] if key not in here else absent((*place, key), here[key]))
        ]

    assert absent((), data) == []


def test_full_example_shows_the_defaults_where_it_does_not_say_otherwise(env: dict[str, str]) -> None:
    text = (ROOT / "configs/full.yaml").read_text(encoding="utf-8")
    full = load_config(ROOT / "configs/full.yaml", env=env).dump(redacted=False)
    plain = load_config("rtsp://h/", overrides={"temporal": True, "mqtt": {"offline": "spool"}}, env={}).dump()
    sections = ("mqtt", "temporal", "model", "encoder", "capture", "defaults", "logging")
    lines = text.splitlines()
    for section in sections:
        start = next(i for i, line in enumerate(lines) if line.startswith(f"{section}:"))
        for key, value in plain[section].items():
            line = next(line for line in lines[start:] if line.startswith(f"  {key}:"))
            if "default:" not in line and not isinstance(value, dict):
                assert full[section][key] == value, line


def test_reference_page_is_what_the_models_say() -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "run `python -m streaming.config.reference > docs/configuration.md`"


def test_schema_for_editors_takes_variables_and_shorthands() -> None:
    schema = editor_schema()
    port = schema["$defs"]["MqttConfig"]["properties"]["port"]
    assert port["anyOf"] == [
        {"type": "integer", "minimum": 1, "maximum": 65535},
        {"type": "string", "pattern": r"\$\{.+\}"},
    ]
    assert {"type": "string"} in schema["properties"]["mqtt"]["anyOf"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["cameras"]["additionalProperties"] is False
    assert '"x-' not in json.dumps(schema)
