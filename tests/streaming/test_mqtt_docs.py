"""docs/mqtt.md and its example say what the code does."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from streaming import errors, events, feature, frames, message, records
from streaming.chain import Chain
from streaming.frames import Since
from streaming.mqtt import MqttSettings
from tests.gear.mosquitto import mosquitto
from tests.gear.mqtt import eventually, held, listening, model, publishing, sending, state
from tests.gear.mqtt import feature as feature_record
from tests.streaming.test_chain import beat, vector

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "mqtt.md").read_text()


def first_cells() -> set[str]:
    """Every `word` in the first cell of a table row."""
    cells = re.findall(r"^\|([^|]+)\|", TEXT, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize(
    "struct", [message.FeatureMessage, message.Heartbeat, feature.CameraState, feature.Model, events.Event]
)
def test_every_field_of_a_payload_is_documented(struct: type) -> None:
    missing = set(struct.__struct_fields__) - first_cells()  # type: ignore[attr-defined]
    assert missing - {"node"} == set()


@pytest.mark.parametrize("words", [frames.DROP_CAUSES, records.CameraStatus.__args__, errors.Reason.__args__])  # type: ignore[attr-defined]
def test_every_word_that_users_match_on_is_documented(words: tuple[str, ...]) -> None:
    assert set(words) - first_cells() == set()


@pytest.mark.parametrize("struct", [message.Ledger, message.MessageQuality])
def test_every_inner_field_is_documented(struct: type) -> None:
    row = next(
        line for line in TEXT.splitlines() if line.startswith(f"| `{struct.__name__.removeprefix('Message').lower()}`")
    )
    assert [name for name in struct.__struct_fields__ if f"`{name}`" not in row] == []  # type: ignore[attr-defined]


def test_the_worked_example_adds_up() -> None:
    table = TEXT[TEXT.index("| seq | message |") :]
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (\d+) \| (\d+) \| (\d+) \|.*\| (\d+) \|$", table, re.MULTILINE)
    assert len(rows) == 5
    chain = Chain()
    for seq, kind, frame_seq, held_frames, dropped, total in rows:
        since = Since(int(held_frames), {"late": int(dropped)} if int(dropped) else {})
        make = vector if kind == "vector" else beat
        chain.see(make(int(seq), int(frame_seq), since), 0)
        assert chain.statistics.frames == int(total)
    assert (chain.statistics.missing_messages, chain.statistics.missing_frames) == (1, 5)


@pytest.mark.integration
async def test_the_acl_of_the_documentation_is_enough_and_not_more(tmp_path: Path) -> None:
    acl = re.search(r"```acl\n(.*?)```", TEXT, re.DOTALL)
    assert acl is not None
    users = {"edge1": "e", "viewer": "v", "operator": "o"}
    with mosquitto(tmp_path, users=users, acl=acl[1]) as broker:
        settings = MqttSettings(port=broker.port, username="edge1", password="e")
        async with (
            listening(broker.port, username="viewer", password="v") as heard,
            publishing(settings, on_command=lambda _camera, _name, value: value) as publisher,
            sending(broker.port, username="operator", password="o") as ask,
            sending(broker.port, username="viewer", password="v") as forbidden,
        ):
            publisher.set_cameras(["front"])
            publisher.set_model(model())
            publisher.publish_state(state())
            await eventually(lambda: publisher.statistics().connected)
            publisher.publish_feature(feature_record(seq=0, cut=True))
            forbidden("camvec/edge1/cam/front/set/enabled", b'"viewer"')
            await asyncio.sleep(0.3)
            ask("camvec/edge1/cam/front/set/enabled", b'"operator"')
            ends = [
                "availability",
                "info",
                "model/lite0",
                "front/state",
                "embedding/lite0",
                "scene_change",
                "value/enabled",
            ]
            await heard.until(lambda: all(heard.on(end) for end in ends))
            assert heard.on("value/enabled") == [b'"operator"']
            assert publisher.statistics().problems == []


@pytest.mark.integration
@pytest.mark.parametrize("form", ["msgpack", "json"])
@pytest.mark.parametrize("dtype", ["f2", "f4"])
async def test_the_javascript_example_reads_what_we_send(tmp_path: Path, form: str, dtype: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node (apt-get install nodejs)")
    with mosquitto(tmp_path, users={"viewer": "p@ss"}) as broker:
        settings = MqttSettings(port=broker.port, username="viewer", password="p@ss", format=form, dtype=dtype)  # type: ignore[arg-type]
        async with publishing(settings) as publisher:
            await eventually(lambda: publisher.statistics().connected)
            url = f"mqtt://viewer:p%40ss@127.0.0.1:{broker.port}"
            process = await asyncio.create_subprocess_exec(
                node, DOCS / "examples" / "subscriber.mjs", url, "front", "2",
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stderr is not None
            assert (await process.stderr.readline()).startswith(b"subscribed")
            records = [feature_record(seq=0), feature_record(seq=5, since=Since(held=1))]
            publisher.publish_feature(records[0])
            publisher.publish_held(held(seq=3, frames=3))
            publisher.publish_feature(records[1])
            out, err = await process.communicate()
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["frame_seq"], line["gap"]) for line in lines] == [(0, 0), (5, 0)]
    for line, record in zip(lines, records, strict=True):
        exact = np.frombuffer(record.vector, "<f4")
        assert np.array_equal(np.array(line["vector"], "<f4").astype("<" + dtype), exact.astype("<" + dtype))
        assert 0 <= line["age_ms"] < 5000
