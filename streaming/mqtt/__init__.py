"""MQTT: settings, one connection (`link`), and the publisher on top. Imported when used: a consumer needs the link alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from streaming.mqtt.publisher import Publisher
    from streaming.mqtt.settings import BrokerSettings, MqttSettings, TlsSettings
    from streaming.mqtt.statistics import CameraStatistics, PublisherStatistics

_HOME: Final = {
    "BrokerSettings": "settings",
    "CameraStatistics": "statistics",
    "MqttSettings": "settings",
    "Publisher": "publisher",
    "PublisherStatistics": "statistics",
    "TlsSettings": "settings",
}

__all__ = ["BrokerSettings", "CameraStatistics", "MqttSettings", "Publisher", "PublisherStatistics", "TlsSettings"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'streaming.mqtt' has no attribute {name!r}")
    return getattr(import_module(f"streaming.mqtt.{_HOME[name]}"), name)
