"""No option is accepted and ignored: each key of a section reaches the settings of the part that honours it."""

from dataclasses import fields
from pathlib import Path

from streaming.config import ActivityConfig, Config, MqttConfig, SceneChangeConfig, SpoolConfig, load_text
from workers.mqtt_settings import event_settings_of, mqtt_settings_of

PLAIN = "cameras: {a: a.mp4}\nmqtt: {}\n"
CHANGED = """
mqtt:
  host: b
  port: 1999
  username: u
  password: pw
  tls: {ca: /ca.pem, cert: /c.pem, key: /k.pem, verify: false}
  client_id: me
  protocol: 3.1.1
  keepalive_s: 33
  root: other
  format: json
  dtype: float32
  embedding_qos: 1
  expiry_s: 4
  heartbeat_s: 2
  offline: spool
  spool: {dir: /spool, max_mb: 7, max_age_s: 8}
cameras:
  a:
    url: a.mp4
    events: {scene_change: {enabled: false}, activity: {enabled: false, threshold: 0.5, min_s: 4, quiet_s: 9}}
"""


def load(text: str) -> Config:
    return load_text(text, env={})


def test_mqtt_section_reaches_the_publisher() -> None:
    settings, plain = mqtt_settings_of(load(CHANGED), None), mqtt_settings_of(load(PLAIN), None)
    assert settings.tls is not None
    assert (settings.password, settings.tls.key, settings.tls.verify) == ("pw", Path("/k.pem"), False)
    assert (settings.spool_dir, settings.spool_max_mb, settings.spool_max_age_s) == (Path("/spool"), 7, 8)
    changed = {field.name for field in fields(settings) if getattr(settings, field.name) != getattr(plain, field.name)}
    elsewhere = {
        "embedded",
        "stats_interval_s",
        "spool",
    }  # the supervisor, the worker's statistics, the spool's own names
    assert changed >= MqttConfig.model_fields.keys() - elsewhere
    assert changed >= {f"spool_{key}" for key in SpoolConfig.model_fields}


def test_events_reach_the_detector() -> None:
    settings, plain = (event_settings_of(load(text).cameras["a"]) for text in (CHANGED, PLAIN))
    changed = {field.name for field in fields(settings) if getattr(settings, field.name) != getattr(plain, field.name)}
    assert changed == {"scene_change", "activity", "start_change", "stop_change", "min_duration_s", "quiet_s"}
    assert ActivityConfig.model_fields.keys() == {"enabled", "threshold", "min_s", "quiet_s"}
    assert SceneChangeConfig.model_fields.keys() == {"enabled"}
