"""MQTT: settings, one connection (`link`), and the publisher on top. Imported when used: a consumer needs the link alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from streaming.mqtt.publisher import CameraStatistics, Publisher, PublisherStatistics
    from streaming.mqtt.settings import BrokerSettings, MqttSettings, TlsSettings

_HOME: Final = {
    "BrokerSettings": "settings",
    "CameraStatistics": "publisher",
    "MqttSettings": "settings",
    "Publisher": "publisher",
    "PublisherStatistics": "publisher",
    "TlsSettings": "settings",
}

__all__ = ["BrokerSettings", "CameraStatistics", "MqttSettings", "Publisher", "PublisherStatistics", "TlsSettings"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'streaming.mqtt' has no attribute {name!r}")
    return getattr(import_module(f"streaming.mqtt.{_HOME[name]}"), name)
