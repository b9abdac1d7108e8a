"""A broker's reason codes -> one sentence and a stable word. Pure; no secret gets in here."""

from typing import Final

from streaming.errors import BrokerError
from streaming.mqtt.settings import BrokerSettings

_CONNACK: Final = {1: "protocol", 132: "protocol", 133: "client_id", 134: "auth", 135: "auth", 138: "auth", 140: "auth"}
_DISCONNECT: Final = {142: "taken_over", 139: "unavailable", 135: "auth", 141: "timeout", 149: "too_large"}


def refused(settings: BrokerSettings, code: int, words: str) -> BrokerError:
    """It answered CONNECT with a refusal."""
    reason = _CONNACK.get(code, "unavailable")
    who = f"user {settings.username!r}" if settings.username else "a client without a user name"
    hint = "; check mqtt.username and mqtt.password" if reason == "auth" else ""
    return BrokerError(reason, f"the MQTT broker at {settings.address} refused {who}: {words}{hint}")


def unanswered(settings: BrokerSettings, protocol: str, *, closed: bool, socket_error: str) -> BrokerError:
    """It did not answer CONNECT: it closed the connection, or was silent."""
    where = f"the MQTT broker at {settings.address}"
    if not closed:
        return BrokerError("timeout", f"expected {where} to answer in MQTT {protocol}, got silence")
    if settings.tls and any(word in socket_error.lower() for word in ("ssl", "tls", "alert", "certificate")):
        said = f"{where} refused our TLS: it wants a client certificate (mqtt.tls.cert, mqtt.tls.key)"
        return BrokerError("tls", said)
    hint = "often a wrong password, a client id in use, or TLS on one side only"
    return BrokerError("closed", f"{where} closed the connection before it answered in MQTT {protocol}: {hint}")


def lost(settings: BrokerSettings, code: int, words: str) -> BrokerError:
    """It ended the connection, or the connection ended under us (code 0 or 128)."""
    where, reason = f"the MQTT broker at {settings.address}", _DISCONNECT.get(code, "closed")
    if reason == "taken_over":
        said = f"another client with the id {settings.client_id!r} took our place at {settings.address}: give each node its own"
    elif reason == "timeout":
        said = f"{where} has not answered for {settings.keepalive_s} s and more"
    elif code > 128:
        said = f"{where} ended the connection: {words}"
    else:
        said = f"{where} closed the connection"
    return BrokerError(reason, said)
