"""MQTT: settings, one connection, and the publisher on top."""
