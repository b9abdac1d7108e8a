"""The `mqtt` section: the broker, how to reach it, and what is sent to it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator

from streaming.config.fields import (
    ConfigPath,
    Host,
    Id,
    Number,
    Secret,
    Section,
    Whole,
    default_text,
    is_loopback,
    rule,
    switch,
)


class TlsConfig(Section):
    """Encryption towards the broker."""

    verify: bool = Field(
        default=True, description="Check the broker's certificate and name. Switch it off for a test in a lab only."
    )
    ca: ConfigPath | None = Field(
        default=None,
        description="PEM file of the authorities to trust.",
        json_schema_extra=default_text("those of the system"),
    )
    cert: ConfigPath | None = Field(
        default=None, description="PEM file of the client certificate, for brokers that want one."
    )
    key: ConfigPath | None = Field(default=None, description="PEM file of its private key, not encrypted.")

    @field_validator("key")
    @classmethod
    def _with_cert(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("cert") is None):
            raise rule("expected cert and key together, got only one of them")
        return key


class SpoolConfig(Section):
    """Where embeddings wait on disk while the broker is away."""

    dir: ConfigPath = Field(
        default_factory=lambda: _state_dir() / "spool",
        description="Folder of the spool.",
        json_schema_extra=default_text("`$STATE_DIRECTORY/spool`, else `~/.local/state/camvec/spool`"),
    )
    max_mb: Whole = Field(
        default=256, ge=1, le=1_000_000, description="Disk that it may take, megabytes; then the oldest goes."
    )
    max_age_s: Number = Field(default=86_400.0, ge=1, le=31_536_000, description="What is older is dropped, seconds.")


def _state_dir() -> Path:
    if systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(systemd.partition(":")[0])
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "camvec"


def _port_of(data: Mapping[str, Any]) -> int:
    return 8883 if data.get("tls") else 1883


def _spool_of(data: Mapping[str, Any]) -> SpoolConfig | None:
    return SpoolConfig() if data.get("offline") == "spool" else None


def _protocol_name(value: Any) -> Any:
    return "5" if value == 5 else value


class MqttConfig(Section):
    """The broker and what is sent to it."""

    embedded: bool = Field(
        default=False,
        description="Run the built-in broker on 127.0.0.1. A configuration without an mqtt section does.",
    )
    host: Host = Field(default="127.0.0.1", description="Host name or address of the broker.")
    tls: Annotated[TlsConfig | None, BeforeValidator(switch, json_schema_input_type=bool | TlsConfig | None)] = Field(
        default=None,
        description="`true`: TLS, verified with the authorities of the system; a mapping: as it says.",
        json_schema_extra=default_text("`false`"),
    )
    port: Whole = Field(
        default_factory=_port_of,
        ge=1,
        le=65_535,
        description="TCP port of the broker.",
        json_schema_extra=default_text("1883; with tls 8883"),
    )
    username: str | None = Field(default=None, min_length=1, max_length=512, description="User name at the broker.")
    password: Secret | None = Field(default=None, description="Password at the broker, best as `${MQTT_PASSWORD}`.")
    client_id: str = Field(
        default="",
        max_length=128,
        description="MQTT client id; no two clients of a broker may share one.",
        json_schema_extra=default_text("`<root>-<node>`"),
    )
    protocol: Annotated[Literal["auto", "5", "3.1.1"], BeforeValidator(_protocol_name)] = Field(
        default="auto", description="MQTT version; `auto`: 5, and 3.1.1 where the broker does not answer that."
    )
    keepalive_s: Whole = Field(default=15, ge=5, le=3600, description="Longest silence towards the broker, seconds.")
    root: Id = Field(default="camvec", description="First level of every topic.")
    format: Literal["msgpack", "json"] = Field(
        default="msgpack", description="Form of embeddings; json is ten times larger."
    )
    dtype: Literal["float16", "float32"] = Field(default="float16", description="Numbers of the vectors in msgpack.")
    embedding_qos: Whole = Field(
        default=0, ge=0, le=1, description="QoS of embeddings; events and states always have 1."
    )
    expiry_s: Whole = Field(
        default=2,
        ge=1,
        le=3600,
        description="An older embedding is not sent any more, and expires at the broker, seconds.",
    )
    heartbeat_s: Number = Field(
        default=1.0,
        ge=1,
        le=3600,
        description="While nothing changes, a heartbeat this often in place of vectors, seconds.",
    )
    stats_interval_s: Number = Field(
        default=10.0, ge=1, le=3600, description="How often `stats` is published, seconds."
    )
    offline: Literal["newest", "spool"] = Field(
        default="newest",
        description="While the broker is away: keep the newest embedding of each camera, or spool all of them to disk.",
    )
    spool: SpoolConfig | None = Field(
        default_factory=_spool_of,
        description="The spool on disk; only with `offline: spool`.",
        json_schema_extra=default_text("see below"),
    )

    @field_validator("host")
    @classmethod
    def _embedded_is_local(cls, host: str, info: ValidationInfo) -> str:
        if info.data.get("embedded") and not is_loopback(host):
            raise rule("expected no host: the built-in broker listens on 127.0.0.1 only; leave out host or embedded")
        return host

    @field_validator("tls", "username")
    @classmethod
    def _embedded_is_plain(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("embedded"):
            raise rule(f"expected no {info.field_name}: the built-in broker is open, to this host alone")
        return value

    @field_validator("password")
    @classmethod
    def _with_username(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if password is not None and "username" in info.data and info.data["username"] is None:
            raise rule("expected a username with the password")
        return password

    @field_validator("spool")
    @classmethod
    def _spool_is_used(cls, spool: SpoolConfig | None, info: ValidationInfo) -> SpoolConfig | None:
        if spool is not None and info.data.get("offline") == "newest":
            raise rule("expected 'offline: spool' beside it, got 'newest': nothing would be spooled")
        return spool
