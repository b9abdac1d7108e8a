"""Configuration: `load_config("edge.yaml")` or `load_config("rtsp://...")` gives frozen, checked data."""

from streaming.config.broker import MqttConfig, SpoolConfig, TlsConfig
from streaming.config.cameras import ActivityConfig, CameraConfig, CameraSettings, EventsConfig, SceneChangeConfig
from streaming.config.changes import CameraChanges, diff_cameras, restart_needed
from streaming.config.load import load_config, load_text
from streaming.config.models import Config
from streaming.config.schema import editor_schema
from streaming.config.stages import (
    CaptureConfig,
    EncoderConfig,
    FidelityConfig,
    KeysConfig,
    LoggingConfig,
    ModelConfig,
    Role,
    TemporalConfig,
    TransportConfig,
)

__all__ = [
    "ActivityConfig",
    "CameraChanges",
    "CameraConfig",
    "CameraSettings",
    "CaptureConfig",
    "Config",
    "EncoderConfig",
    "EventsConfig",
    "FidelityConfig",
    "KeysConfig",
    "LoggingConfig",
    "ModelConfig",
    "MqttConfig",
    "Role",
    "SceneChangeConfig",
    "SpoolConfig",
    "TemporalConfig",
    "TlsConfig",
    "TransportConfig",
    "diff_cameras",
    "editor_schema",
    "load_config",
    "load_text",
    "restart_needed",
]
