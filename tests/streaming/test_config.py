"""What a configuration says, and what it amounts to."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from streaming.config import CameraConfig, CameraSettings, Config, EncoderConfig, MqttConfig, load_config, load_text
from streaming.errors import ConfigError

TWO_CAMERAS = """
mqtt:
  host: broker.local
  username: edge
  password: "${MQTT_PASSWORD}"
cameras:
  front: "rtsp://user:${CAM_PW}@10.0.0.5/stream2"
  back:
    url: rtsp://10.0.0.6/stream2
    budget_ms: 200
    priority: low
"""
ENV = {"MQTT_PASSWORD": "a: b # {c}", "CAM_PW": "p@ss/w:rd#1"}


def load(text: str, **env: str) -> Config:
    return load_text(text, file="x.yaml", env=env)


def test_bare_url_is_one_camera_with_the_built_in_broker() -> None:
    config = load_config("rtsp://user:${CAM_PW}@10.0.0.5/s", env=ENV)
    assert config.enabled_cameras() == ["camera"]
    assert config.cameras["camera"].url == "rtsp://user:p%40ss%2Fw%3Ard%231@10.0.0.5/s"
    assert config.mqtt.embedded
    assert config.mqtt.port == 1883


@pytest.mark.parametrize("source", ["scene:street?fps=5", "webcam:0", "/dev/video0", "lavfi:testsrc2", "clip.mp4"])
def test_anything_that_opens_as_a_camera_needs_no_file(source: str) -> None:
    url = load_config(source, env={}).cameras["camera"].url
    assert url == (str(Path.cwd() / source) if source == "clip.mp4" else source)


def test_variables_are_filled_in_after_parsing_and_encoded_in_urls() -> None:
    config = load_text(TWO_CAMERAS, env=ENV)
    assert config.mqtt.password is not None
    assert config.mqtt.password.get_secret_value() == "a: b # {c}"
    assert config.cameras["front"].url == "rtsp://user:p%40ss%2Fw%3Ard%231@10.0.0.5/stream2"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("${NODE}", "yard"),
        ("${NONE:-gate}", "gate"),
        ("${EMPTY:-gate}", "gate"),
        ("a-${NODE}-${NODE}", "a-yard-yard"),
    ],
)
def test_variables_in_plain_values(written: str, meant: str) -> None:
    assert load(f'node: "{written}"\ncameras: {{a: a.mp4}}', NODE="yard", EMPTY="").node == meant


def test_two_dollars_are_one() -> None:
    config = load("mqtt: {username: u, password: '$${X}$$'}\ncameras: {a: a.mp4}")
    assert config.mqtt.password is not None
    assert config.mqtt.password.get_secret_value() == "${X}$"


def test_numbers_and_switches_may_come_from_variables() -> None:
    config = load("mqtt: {port: '${PORT}', tls: '${TLS}'}\ncameras: {a: a.mp4}", PORT="8884", TLS="true")
    assert config.mqtt.port == 8884
    assert config.mqtt.tls is not None
    assert config.mqtt.tls.verify


def test_secrets_from_files_and_from_systemd_credentials(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("hunter2\n", encoding="utf-8")
    text = (
        f"mqtt: {{username: u, password: '${{file:{tmp_path}/pw}}'}}\ncameras: {{a: 'rtsp://u:${{credential:pw}}@h/'}}"
    )
    config = load(text, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert config.secrets() == {"hunter2"}


def test_broker_as_a_url() -> None:
    config = load("mqtt: 'mqtts://edge:${PW}@broker.local'\ncameras: {a: a.mp4}", PW="x@y")
    assert (config.mqtt.host, config.mqtt.port, config.mqtt.username) == ("broker.local", 8883, "edge")
    assert config.mqtt.tls is not None
    assert config.secrets() == {"x@y"}


def test_camera_takes_what_it_does_not_say_from_defaults_and_encoder() -> None:
    config = load("""
encoder: {budget_ms: 150}
defaults: {transport: udp, events: {activity: {threshold: 0.1, quiet_s: 7}}}
cameras:
  plain: rtsp://h/1
  own: {url: rtsp://h/2, transport: tcp, budget_ms: 50, events: {activity: {threshold: 0.3}}}
""")
    plain, own = config.cameras["plain"], config.cameras["own"]
    assert (plain.transport, plain.budget_ms, plain.events.activity.threshold) == ("udp", 150, 0.1)
    assert (own.transport, own.budget_ms, own.events.activity.threshold, own.events.activity.quiet_s) == (
        "tcp",
        50,
        0.3,
        7,
    )
    assert config.defaults.budget_ms == 150


def test_sections_built_in_python_are_inherited_alike() -> None:
    config = Config(
        encoder=EncoderConfig(budget_ms=50),
        defaults=CameraSettings(transport="udp"),
        cameras={"a": CameraConfig(url="a.mp4"), "b": CameraConfig(url="b.mp4", transport="tcp")},
        mqtt=MqttConfig(username="u", password="pw"),  # type: ignore[arg-type]
    )
    a, b = config.cameras["a"], config.cameras["b"]
    assert (a.budget_ms, a.transport, b.transport) == (50, "udp", "tcp")
    assert config.secrets() == {"pw"}


def test_defaults_beat_the_encoders_budget() -> None:
    config = load("encoder: {budget_ms: 150}\ndefaults: {budget_ms: 60}\ncameras: {a: a.mp4}")
    assert config.cameras["a"].budget_ms == 60


def test_encoder_host_gives_the_defaults_to_cameras_that_it_does_not_name() -> None:
    config = load("""
roles: [encode, publish]
encoder: {budget_ms: 150}
transport: {listen: tcp://127.0.0.1:7450}
cameras: {door: {priority: high}}
""")
    assert config.camera("door").priority == "high"
    assert config.camera("elsewhere").budget_ms == 150


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("cameras: {a: clips/a.mp4}\nmqtt: {tls: {ca: ca.pem}}", encoding="utf-8")
    config = load_config(file)
    assert config.cameras["a"].url == str(tmp_path / "clips/a.mp4")
    assert config.mqtt.tls is not None
    assert config.mqtt.tls.ca == tmp_path / "ca.pem"


def test_json_for_children_brings_everything_back() -> None:
    config = load_text(TWO_CAMERAS + "temporal: true\nmqtt_: 1".replace("mqtt_: 1", ""), env=ENV)
    assert Config.from_json(config.to_json()) == config


def test_json_that_is_not_ours_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="faulty: nodes") as caught:
        Config.from_json('{"nodes": "hunter2", "cameras": {"a": "a.mp4"}}')
    assert "hunter2" not in str(caught.value)


def test_dump_masks_and_repr_hides_every_secret() -> None:
    config = load_text(TWO_CAMERAS, env={"MQTT_PASSWORD": "hunter2", "CAM_PW": "swordfish"})
    assert config.secrets() == {"hunter2", "swordfish"}
    for text in (str(config.dump()), repr(config), str(config), config.model_dump_json(), str(config.model_dump())):
        assert "swordfish" not in text
        assert "hunter2" not in text
    assert config.dump(redacted=False)["mqtt"]["password"] == "hunter2"


def test_tokens_in_queries_and_ffmpeg_options_are_secrets() -> None:
    config = load("cameras: {a: {url: 'http://h/s?token=abcdef', options: {headers: 'Authorization: Basic xyz'}}}")
    assert config.secrets() == {"abcdef", "Authorization: Basic xyz"}
    assert "xyz" not in str(config.dump())


def test_overrides_of_the_command_line_win() -> None:
    file_roles = load_config("rtsp://h/", overrides={"roles": ["capture", "encode", "publish"]}, env={})
    assert file_roles.roles == ("capture", "encode", "publish")
    with pytest.raises(ConfigError, match=r"transport.connect: expected the endpoints"):
        load_config("rtsp://h/", overrides={"roles": ["capture"]}, env={})


def test_configuration_is_frozen() -> None:
    config = load_text("cameras: {a: a.mp4}")
    with pytest.raises(ValueError, match="frozen"):
        config.node = "other"  # type: ignore[misc]


def test_spool_exists_only_where_it_is_used() -> None:
    assert MqttConfig().spool is None
    spool = MqttConfig(offline="spool").spool
    assert spool is not None
    assert spool.max_mb == 256


def test_client_id_names_root_and_node() -> None:
    assert load("node: gate\ncameras: {a: a.mp4}").mqtt.client_id == "camvec-gate"


def test_picture_memory_becomes_a_bound_on_pixels() -> None:
    assert load("cameras: {a: a.mp4}").capture.max_pixels >= 3840 * 2160


def test_source_settings_say_what_the_camera_says() -> None:
    camera = load("""
cameras:
  a:
    url: rtsps://h/
    transport: udp
    open_timeout_s: 1
    read_timeout_s: 2
    stall_floor_s: 3
    stall_factor: 4
    realtime: true
    loop: true
    timecode_strip: true
    decode_gate: true
    tls: {ca: /x.pem, verify: no}
    options: {a: b}
""").cameras["a"]
    source, unchanged = camera.source(), load("cameras: {a: a.mp4}").cameras["a"].source()
    assert (source.url, source.transport, source.open_timeout_s, source.read_timeout_s) == ("rtsps://h/", "udp", 1, 2)
    assert (source.tls_ca, source.tls_verify, source.options) == ("/x.pem", False, {"a": "b"})
    untouched = {f.name for f in fields(source) if getattr(source, f.name) == getattr(unchanged, f.name)}
    assert untouched == {"max_pixels"}  # the capture worker sets it, from capture.frame_memory_mb


@pytest.mark.parametrize("module", ["streaming.logs", "streaming.mqtt", "streaming.client"])
def test_consumers_do_not_load_the_models_of_the_daemon(module: str) -> None:
    # The SDK has to start fast: pydantic alone takes a tenth of a second.
    program = f"import sys, {module}; sys.exit('pydantic' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False)
    assert result.returncode == 0
