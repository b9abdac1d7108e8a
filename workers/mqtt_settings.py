"""The words of the configuration as the publisher takes them."""

from dataclasses import replace

from streaming.config import CameraConfig, Config
from streaming.events import EventSettings
from streaming.mqtt.settings import MqttSettings, TlsSettings


def mqtt_settings_of(config: Config, embedded_port: int | None) -> MqttSettings:
    """The broker and how to use it; `embedded_port` is that of the built-in broker when it runs."""
    mqtt, tls, spool = config.mqtt, config.mqtt.tls, config.mqtt.spool
    settings = MqttSettings(
        host=mqtt.host,
        port=embedded_port or mqtt.port,
        username=mqtt.username,
        password=mqtt.password.get_secret_value() if mqtt.password else None,
        tls=TlsSettings(verify=tls.verify, ca=tls.ca, cert=tls.cert, key=tls.key) if tls else None,
        client_id=mqtt.client_id,
        # The built-in broker takes MQTT 5 and 3.1.1 on two ports; what is published as 3.1.1 reaches clients of both.
        protocol="3.1.1" if embedded_port else mqtt.protocol,
        keepalive_s=mqtt.keepalive_s,
        root=mqtt.root,
        format=mqtt.format,
        dtype="f2" if mqtt.dtype == "float16" else "f4",
        embedding_qos=1 if mqtt.embedding_qos else 0,
        expiry_s=mqtt.expiry_s,
        heartbeat_s=mqtt.heartbeat_s,
        offline=mqtt.offline,
        spool_dir=spool.dir if spool else None,
    )
    if spool is None:
        return settings
    return replace(settings, spool_max_mb=spool.max_mb, spool_max_age_s=spool.max_age_s)


def event_settings_of(camera: CameraConfig, *, threshold: float | None = None) -> EventSettings:
    """Which events a camera raises, and when; `threshold` takes the place of the configured one."""
    activity, scene_change = camera.events.activity, camera.events.scene_change
    threshold = activity.threshold if threshold is None else threshold
    return EventSettings(
        activity=activity.enabled,
        scene_change=scene_change.enabled,
        start_change=threshold,
        stop_change=threshold / 2,
        min_duration_s=activity.min_s,
        quiet_s=activity.quiet_s,
    )
