"""Camera sources, transport, MQTT and the consumer SDK. Never imports torch.

The names below are the consumer's: `from streaming import FeatureSubscriber`. They are imported when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from streaming.blocking import subscribe
    from streaming.client import Connection, FeatureSubscriber, SubscriberStatistics
    from streaming.errors import BrokerError, ConfigError, ModelMismatchError, StreamingError, WireError
    from streaming.events import Event
    from streaming.feature import Availability, CameraState, Feature, Figures, Model
    from streaming.mqtt.settings import TlsSettings

_HOME: Final = {
    "Availability": "feature",
    "BrokerError": "errors",
    "CameraState": "feature",
    "ConfigError": "errors",
    "Connection": "client",
    "Event": "events",
    "Feature": "feature",
    "FeatureSubscriber": "client",
    "Figures": "feature",
    "Model": "feature",
    "ModelMismatchError": "errors",
    "StreamingError": "errors",
    "SubscriberStatistics": "client",
    "TlsSettings": "mqtt.settings",
    "WireError": "errors",
    "subscribe": "blocking",
}

__all__ = [
    "Availability",
    "BrokerError",
    "CameraState",
    "ConfigError",
    "Connection",
    "Event",
    "Feature",
    "FeatureSubscriber",
    "Figures",
    "Model",
    "ModelMismatchError",
    "StreamingError",
    "SubscriberStatistics",
    "TlsSettings",
    "WireError",
    "subscribe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'streaming' has no attribute {name!r}")
    return getattr(import_module(f"streaming.{_HOME[name]}"), name)
