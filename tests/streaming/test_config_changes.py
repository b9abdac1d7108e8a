"""What a reload takes over, and what needs a restart."""

import pytest

from streaming.config import Config, diff_cameras, load_text, restart_needed

BASE = "node: n\nmqtt: {host: b}\nencoder: {budget_ms: 100}\ncameras:\n  a: rtsp://h/a\n  b: rtsp://h/b\n"


def load(text: str) -> Config:
    return load_text(text, env={})


def test_same_file_changes_nothing() -> None:
    assert diff_cameras(load(BASE), load(BASE)) == ((), (), ())
    assert restart_needed(load(BASE), load(BASE)) == []


def test_cameras_come_go_and_change() -> None:
    new = load(BASE.replace("a: rtsp://h/a", "a: rtsp://h/a2").replace("b: rtsp://h/b", "c: rtsp://h/c"))
    changes = diff_cameras(load(BASE), new)
    assert (changes.added, changes.removed, changes.changed) == (("c",), ("b",), ("a",))


def test_new_password_is_a_change() -> None:
    # R7: a camera that refused us is tried again at once when its credentials change.
    text = "cameras: {a: 'rtsp://u:${PW}@h/'}"
    old, new = (load_text(text, env={"PW": password}) for password in ("one", "two"))
    assert diff_cameras(old, new).changed == ("a",)


def test_switching_off_is_removal() -> None:
    new = load(BASE.replace("b: rtsp://h/b", "b: {url: rtsp://h/b, enabled: false}"))
    assert diff_cameras(load(BASE), new).removed == ("b",)
    assert diff_cameras(new, load(BASE)).added == ("b",)


def test_defaults_change_the_cameras_that_use_them() -> None:
    new = load(BASE.replace("b: rtsp://h/b", "b: {url: rtsp://h/b, transport: tcp}") + "defaults: {transport: udp}\n")
    assert diff_cameras(load(BASE), new).changed == ("a",)
    assert restart_needed(load(BASE), new) == []


def test_budget_of_the_encoder_is_live_but_its_processes_are_not() -> None:
    live = load(BASE.replace("budget_ms: 100", "budget_ms: 50"))
    assert diff_cameras(load(BASE), live).changed == ("a", "b")
    assert restart_needed(load(BASE), live) == []
    assert restart_needed(load(BASE), load(BASE.replace("budget_ms: 100", "processes: 2"))) == ["encoder"]


@pytest.mark.parametrize("section", ["node: m", "mqtt: {host: other}", "temporal: true", "logging: {level: debug}"])
def test_other_sections_take_a_restart(section: str) -> None:
    name = section.partition(":")[0]
    lines = [line for line in BASE.splitlines() if not line.startswith(f"{name}:")]
    needed = restart_needed(load(BASE), load("\n".join([section, *lines])))
    assert needed[-1] == ("mqtt" if name == "node" else name)  # the client id has the node in it


def test_reload_takes_cameras_and_nothing_else() -> None:
    new = load("node: other\nmqtt: {host: elsewhere}\ncameras: {c: c.mp4}")
    merged = load(BASE).with_cameras(new)
    assert merged.enabled_cameras() == ["c"]
    assert (merged.node, merged.mqtt.host) == ("n", "b")
