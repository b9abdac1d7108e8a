"""No option is accepted and ignored: each key of a section reaches the settings of the part that honours it."""

from dataclasses import fields
from pathlib import Path

import pytest

from encoders_core.config import GateConfig
from streaming.config import (
    ActivityConfig,
    Config,
    EncoderConfig,
    FidelityConfig,
    MqttConfig,
    SceneChangeConfig,
    SpoolConfig,
    load_text,
)
from streaming.config import TemporalConfig as TemporalSection
from streaming.config.cameras import DecodeGateConfig
from workers.encoding import build_encoder, target_fvu_of, temporal_config
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


def test_encoder_section_reaches_the_encoder() -> None:
    text = """
cameras: {a: a.mp4}
mqtt: {}
encoder:
  budget_ms: 70
  fidelity: {fvu: 0.03, audit: 0.02}
  max_hold_s: 5
  adaptive_resolution: true
"""
    encoder, plain = build_encoder(load(text)), build_encoder(load(PLAIN))
    assert (encoder.budget_ms, plain.budget_ms) == (70, 100)
    assert (encoder._gate, plain._gate) == (
        GateConfig(target_fvu=0.03, max_hold_s=5),
        GateConfig(target_fvu=0.02, max_hold_s=10),
    )
    assert encoder._auditor is not None
    assert plain._auditor is not None
    assert (encoder._auditor.config.share, encoder._auditor.target_fvu) == (0.02, 0.03)
    assert (plain._auditor.config.share, plain._auditor.target_fvu) == (0.01, 0.02)
    assert (encoder.scheduler.ladder.rungs, plain.scheduler.ladder.rungs) == ((224, 192, 160, 128), (224,))
    off = build_encoder(load(PLAIN + "encoder: {gate: false, quality_level: fast, fidelity: {audit: 0}}\n"))
    assert (off._gate, off._auditor) == (None, None)
    assert target_fvu_of(load(PLAIN + "encoder: {quality_level: fast}\n")) == 0.05
    assert {"processes"} == EncoderConfig.model_fields.keys() - {
        "budget_ms",
        "quality_level",
        "fidelity",
        "gate",
        "max_hold_s",
        "adaptive_resolution",
    }  # the supervisor's
    assert FidelityConfig.model_fields.keys() == {"fvu", "audit"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", None),
        ("decode_gate: false", None),
        ("decode_gate: true", (1.0, 60, 40.0)),
        ("decode_gate: {max_blind_s: 3, max_backlog: 9}, budget_ms: 200", (3.0, 9, 80.0)),
    ],
)
def test_decode_gate_reaches_the_source(said: str, expected: tuple[float, int, float] | None) -> None:
    for text in (f"cameras: {{a: {{url: a.mp4, {said}}}}}", f"defaults: {{{said}}}\ncameras: {{a: a.mp4}}"):
        gate = load(text).cameras["a"].source().decode_gate
        assert (gate and (gate.max_blind_s, gate.max_backlog, gate.max_catch_up_ms)) == expected
    assert DecodeGateConfig.model_fields.keys() == {"max_blind_s", "max_backlog"}


def test_decode_gate_is_taken_back_by_a_camera() -> None:
    cameras = load(
        "defaults: {decode_gate: {max_blind_s: 2}}\ncameras: {a: {url: a.mp4, decode_gate: false}, b: b.mp4}"
    ).cameras
    assert [camera.source().decode_gate is not None for camera in cameras.values()] == [False, True]


def test_temporal_section_reaches_the_head() -> None:
    head = temporal_config(load(PLAIN + "temporal: {kind: gru, window: 8, layers: 3, skipped: dt}\n"))
    assert head is not None
    assert (head.kind, head.window, head.depth, head.skipped) == ("gru", 8, 3, "dt")
    assert TemporalSection.model_fields.keys() == {"kind", "window", "layers", "skipped"}
