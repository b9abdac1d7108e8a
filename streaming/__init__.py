"""Camera sources, transport, MQTT and the consumer SDK. Never imports torch."""
