"""What a wrong configuration is told: where, what was expected, what came, and the nearest valid name."""

from pathlib import Path

import pytest

from streaming.config import load_config, load_text
from streaming.errors import ConfigError


def complaint(text: str, **env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(text, file="x.yaml", env=env)
    return str(caught.value)


CAMERA = "\ncameras: {a: a.mp4}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mqtt:\n  prot: 1883", "x.yaml:2: mqtt.prot: unknown key; did you mean 'port'?"),
        (
            "logging: {level: warn}",
            "logging.level: expected 'debug', 'info', 'warning', 'error', got 'warn'; did you mean 'warning'?",
        ),
        ("logging: {level: INFO}", "got 'INFO'; did you mean 'info'?"),
        ("quality_level: fast", "x.yaml:1: quality_level: unknown key; it belongs to encoder"),
        ("mqtt: {url: b}", "mqtt.url: unknown key; it belongs to a camera; mqtt takes embedded, host, "),
        ("mqtt: {port: many}", "mqtt.port: expected a whole number from 1 to 65535, got 'many'"),
        ("mqtt: {port: 70000}", "mqtt.port: expected a whole number from 1 to 65535, got 70000"),
        ("mqtt: {port: true}", "mqtt.port: expected a whole number from 1 to 65535, got true"),
        ("mqtt: {username: 12}", "got 12 (for text put it in quotes)"),
        ("encoder: {budget_ms: .nan}", "encoder.budget_ms: expected a number from 1 to 60000, got .nan"),
        ("encoder: {processes: 0}", "encoder.processes: expected 'auto' or a whole number from 1 to 64, got 0"),
        ("encoder: 3", "encoder: expected a mapping, got 3"),
        (
            "node: Front Gate",
            "node: expected 1 to 64 of a-z, 0-9, _ and -, got 'Front Gate'; did you mean 'front-gate'?",
        ),
        ("roles: [capture, capture]", "roles: expected each role once"),
        ("roles: [encode]", "roles: expected encode and publish on the same host"),
        ("roles: []", "roles: expected a list of at least 1 of 'capture', 'encode', 'publish', got a list of 0"),
        ("transport: {listen: nowhere}", "transport.listen: expected tcp://HOST:PORT"),
        (
            "transport: {listen: tcp://0.0.0.0:7450}",
            "transport.listen: expected transport.keys with an endpoint that leaves",
        ),
        ("transport: {keys: {secret: a}}", "transport.keys: expected listen or connect with them"),
        ("transport: {keys: {}}", "transport.keys.secret: expected a path, got nothing"),
        ("mqtt: {embedded: true, host: broker}", "mqtt.host: expected no host: the built-in broker"),
        ("mqtt: {embedded: true, tls: true}", "mqtt.tls: expected no tls: the built-in broker"),
        ("mqtt: {password: x}", "mqtt.password: expected a username with the password"),
        ("mqtt: {tls: {cert: a}}", "mqtt.tls.key: expected cert and key together"),
        ("mqtt: {spool: {}}", "mqtt.spool: expected 'offline: spool' beside it"),
        ("mqtt: {host: 'mqtt://b'}", "mqtt.host: expected a host name or address alone"),
        ("mqtt: http://b", "mqtt: expected mqtt://[USER:PASSWORD@]HOST[:PORT]"),
        ("node: '${NOD}'", "node: expected the environment variable NOD to be set; did you mean 'NODE'?"),
        ("node: '${'", "node: expected a } after ${"),
        ("node: '${a b}'", "node: expected ${NAME}"),
        ("node: '${file:relative}'", "node: expected an absolute path"),
        ("node: '${credential:x}'", "node: expected $CREDENTIALS_DIRECTORY"),
        ("model: {weights: ~nobody-here/w}", "model.weights: expected a path from /, because the home folder"),
        ("<<: {node: a}", "expected no merge key <<"),
        ("[a]: 1", "expected a name before the colon"),
        ("node: !x a", "node: expected a plain value, got one with a YAML tag"),
        ("node: *x", "got a value that begins with * or !: put it in quotes"),
        ("node: @x", "got a value that begins with '@': put it in quotes"),
        ("node: [", "expected YAML"),
        ("# one\n# two\nnode: \x01", "x.yaml:3: expected text, got a control character"),
    ],
)
def test_faulty_section_is_named(text: str, said: str) -> None:
    assert said in complaint(text + CAMERA, NODE="x")


@pytest.mark.parametrize(
    ("camera", "said"),
    [
        ("rtps://h/", "got rtps://...; did you mean 'rtsps'?"),
        ("ftp://h/", "expected rtsp://, rtsps://, http://, https://, a file"),
        ("rtsp:///path", "expected a host after rtsp://"),
        ("rtsp://h:99999/", "expected rtsp://[USER:PASSWORD@]HOST[:PORT]/PATH"),
        ("rtsp://u:p#w@h/", "in user and password percent-encode"),
        ("10.0.0.5/stream", "did you mean 'rtsp://ADDRESS/...'?"),
        ("webcam:front", "expected the number of a camera, such as webcam:0"),
        ("'0'", "did you mean 'webcam:0'?"),
        ("'scene:'", "expected something after scene:"),
        ("{}", "cameras.a: expected a url, got none"),
        ("{url: a.mp4, priority: hgih}", "did you mean 'high'?"),
        ("{url: a.mp4, budget: 3}", "cameras.a.budget: unknown key; did you mean 'budget_ms'?"),
        (
            "{url: a.mp4, events: {activity: {treshold: 1}}}",
            "cameras.a.events.activity.treshold: unknown key; did you mean 'threshold'?",
        ),
        ("[]", "cameras.a: expected"),
    ],
)
def test_faulty_camera_is_named(camera: str, said: str) -> None:
    assert said in complaint(f"cameras:\n  a: {camera}")


def test_camera_declared_twice_names_both_lines() -> None:
    text = "cameras:\n  front: a.mp4\n  back: b.mp4\n  front: c.mp4\n"
    assert complaint(text) == "x.yaml:4: cameras.front: expected each name once, got it on line 2 and on line 4"


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    said = complaint("node: A\nmqtt: {prt: 1}\ncameras:\n  Front: a.mp4\n  b: {url: x.mp4, loop: often}\n").splitlines()
    assert [line.split(": ")[0] for line in said] == ["x.yaml:1", "x.yaml:2", "x.yaml:4", "x.yaml:5"]


def test_many_problems_are_counted_instead_of_listed() -> None:
    said = complaint("\n".join(f"k{i}: 1" for i in range(30)) + CAMERA).splitlines()
    assert len(said) == 11
    assert said[-1] == "... and 20 more"


def test_fault_in_defaults_is_told_once_and_not_for_each_camera() -> None:
    said = complaint("defaults: {transport: tpc}\ncameras: {a: a.mp4, b: b.mp4}")
    assert said == "x.yaml:1: defaults.transport: expected 'tcp', 'udp', got 'tpc'; did you mean 'tcp'?"


def test_error_keeps_file_and_line_as_data() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("\n\nnod: a" + CAMERA, file="x.yaml")
    assert (caught.value.path, caught.value.line) == ("x.yaml", 3)


@pytest.mark.parametrize("text", ["", "# nothing\n", "cameras: {}", "cameras:"])
def test_no_camera_at_all(text: str) -> None:
    assert "cameras: expected" in complaint(text)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"cameras: {a: \xe9}"])
def test_other_bytes_than_text(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        load_config(file)


def test_file_that_is_not_there_says_what_would_have_done() -> None:
    with pytest.raises(ConfigError, match=r"expected a YAML file or a camera .*: No such file"):
        load_config("nowhere.yaml")


def test_huge_file_is_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("#" * 1_000_001, encoding="utf-8")
    with pytest.raises(ConfigError, match="at most 1000000 bytes"):
        load_config(file)


def test_alias_bomb_is_refused() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
    )
    assert "expected at most 20000 values" in complaint(bomb)


def test_value_that_contains_itself_is_refused() -> None:
    assert "expected at most 32 levels of nesting" in complaint("a: &a [*a]")


@pytest.mark.parametrize(
    "prefix",
    ["", "*", "&", "!", "%", "@", "`", "|", "[", "{", "'", '"', '"\\q', "- ", "? ", "#", "rtsp://u:", "x://u:"],
)
@pytest.mark.parametrize(
    "place",
    [
        "mqtt:\n  username: u\n  passwort: {}",
        "mqtt:\n  password: {}\n  prot: 1",
        "mqtt:\n  username: u\n  password:{}",
        "mqtt: {}",
        "mqtt: mqtt://u:{}@h:x",
        "cameras: {}",
        "cameras:\n  a: {}",
        "cameras:\n  a: rtsp://u:{}@h:x/",
        "cameras:\n  a: rtps://u:{}@h/",
        "cameras:\n  a:\n    url: rtsp://u:{}@h:x/",
        "cameras:\n  a:\n    url: [rtsp://u:{}@h/]",
        "cameras:\n  a:\n    options: {{headers: [{}]}}",
    ],
)
def test_secret_is_never_shown(place: str, prefix: str) -> None:
    text = place.format(prefix + "swordfish") + "\nunknown: 1\n"
    said = complaint(text, PW="swordfish")
    assert "swordfish" not in said


def test_secret_from_a_variable_in_the_wrong_place_is_not_shown() -> None:
    said = complaint("mqtt: {port: '${PW}'}" + CAMERA, PW="swordfish")
    assert "swordfish" not in said
    assert "got '${PW}'" in said
