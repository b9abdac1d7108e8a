"""Whatever a file holds: a Config or a ConfigError, never another exception."""

import json
import string
from io import StringIO
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from streaming.config import CameraSettings, Config, load_text
from streaming.config.schema import keys_at, nodes_at, raw_schema
from streaming.config.urls import secrets_in_url
from streaming.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
ENV = {"CAM_PW": "x", "MQTT_PASSWORD": "y"}

words = st.sampled_from(
    [
        *keys_at(()),
        *keys_at(("mqtt",)),
        *keys_at(("defaults",)),
        "a",
        "front",
        "tcp",
        "rtsp://h/",
        "${X}",
        "$",
        "true",
        "off",
        "1",
        "-1",
    ]
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words, st.text(max_size=12))
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4), max_leaves=12
)


def load_or_refuse(text: str) -> Config | None:
    try:
        return load_text(text, file="x.yaml", env=ENV)
    except ConfigError as error:
        said = str(error)
    assert said.startswith("x.yaml")
    assert len(said.splitlines()) <= 11
    return None


def as_yaml(tree: Any) -> str:
    stream = StringIO()
    YAML(typ="safe", pure=True).dump(tree, stream)
    return stream.getvalue()


@given(
    st.text(
        alphabet=st.one_of(st.sampled_from("abc:-?[]{}#&*!|>'\"%@`, \n\t${}~<=0x1_.e+"), st.characters()), max_size=80
    )
)
@example("? ")
@example("a: !!int x")
@example("a: !!float .")
@example("a: 0o9")
@example("%YAML 1.1\n---\na: 1")
@example("a: 1e999")
@example("a: !!bool maybe")
@settings(max_examples=200, deadline=None)
def test_any_text(text: str) -> None:
    load_or_refuse(text)


@given(st.dictionaries(words, trees, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_tree_of_nearly_right_words(tree: dict[str, Any]) -> None:
    load_or_refuse(as_yaml(tree))


@given(st.sampled_from(CONFIGS), st.data())
@settings(max_examples=100, deadline=None)
def test_valid_files_with_one_line_changed(path: Path, data: st.DataObject) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    change = data.draw(st.sampled_from(["drop", "double", "cut", "indent", "replace"]))
    line = lines[at]
    lines[at : at + 1] = {
        "drop": [],
        "double": [line, line],
        "cut": [line[: len(line) // 2]],
        "indent": ["  " + line],
        "replace": [data.draw(st.text(alphabet=string.printable, max_size=30))],
    }[change]
    load_or_refuse("\n".join(lines))


camera_settings = st.fixed_dictionaries(
    {},
    optional={
        "enabled": st.booleans(),
        "budget_ms": st.floats(1, 60_000),
        "priority": st.sampled_from(["low", "normal", "high"]),
        "max_fps": st.none() | st.floats(0.001, 1000),
        "transport": st.sampled_from(["tcp", "udp"]),
        "read_timeout_s": st.floats(0.1, 300),
        "stall_factor": st.integers(2, 10_000),
        "loop": st.sampled_from([True, False, "on", "off"]),
        "tls": st.fixed_dictionaries({}, optional={"verify": st.booleans(), "ca": st.none() | st.just("ca.pem")}),
        "options": st.dictionaries(st.text("abc", min_size=1), st.text("ab?#: -", max_size=5), max_size=2),
        "events": st.fixed_dictionaries(
            {}, optional={"activity": st.fixed_dictionaries({}, optional={"threshold": st.floats(0.001, 1)})}
        ),
    },
)


@given(camera_settings, camera_settings)
@settings(max_examples=100, deadline=None)
def test_settings_are_inherited_and_come_back_from_json(defaults: dict[str, Any], own: dict[str, Any]) -> None:
    cameras = {"a": {"url": "a.mp4"} | own, "b": "b.mp4"}
    config = load_or_refuse(json.dumps({"cameras": cameras, "defaults": defaults}))
    assert config is not None
    assert Config.from_json(config.to_json()) == config
    assert (
        CameraSettings(**config.cameras["b"].model_dump(exclude={"url"}, context={"reveal": True})) == config.defaults
    )
    for key in ("priority", "budget_ms", "transport", "enabled"):
        expected = own.get(key, defaults.get(key, getattr(CameraSettings(), key)))
        assert getattr(config.cameras["a"], key) == expected


@given(st.text(alphabet=string.printable, max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_password_survives_a_url(password: str) -> None:
    config = load_text("cameras: {a: 'rtsp://user:${PW}@h/s'}", env={"PW": password})
    assert secrets_in_url(config.cameras["a"].url) >= ({password} if password else set())


def test_every_key_of_the_schema_is_described() -> None:
    def undescribed(place: tuple[str, ...]) -> list[str]:
        keys = keys_at(place)
        here = [
            ".".join((*place, key)) for key in keys if not any(_described(node) for node in nodes_at((*place, key)))
        ]
        return here + [name for key in keys for name in undescribed((*place, key))]

    def _described(node: dict[str, Any]) -> bool:
        return "description" in node or "$ref" in node

    assert undescribed(()) + undescribed(("cameras", "a")) == []
    assert len(raw_schema()["$defs"]) > 10
