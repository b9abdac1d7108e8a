"""MQTT: settings, one connection (`link`), and the publisher on top."""

from streaming.mqtt.publisher import CameraStatistics, Publisher, PublisherStatistics
from streaming.mqtt.settings import BrokerSettings, MqttSettings, TlsSettings

__all__ = ["BrokerSettings", "CameraStatistics", "MqttSettings", "Publisher", "PublisherStatistics", "TlsSettings"]
