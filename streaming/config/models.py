"""The whole configuration as frozen data. Validation, JSON Schema and reference all come from these models."""

import socket
from collections.abc import Mapping
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from streaming.config.broker import MqttConfig
from streaming.config.cameras import CameraConfig, CameraSettings
from streaming.config.fields import ConfigPath, Id, Number, Section, default_text, expected, rule, slug, switch
from streaming.config.stages import (
    CaptureConfig,
    EncoderConfig,
    LoggingConfig,
    ModelConfig,
    Role,
    TemporalConfig,
    TransportConfig,
)
from streaming.config.urls import SOURCE_KINDS, broker_from_url
from streaming.errors import ConfigError

ROLES: Final[tuple[Role, ...]] = ("capture", "encode", "publish")


def default_node() -> str:
    """The host name as an `Id`: stable on one device, and usually unique."""
    return slug(socket.gethostname().partition(".")[0]) or "camvec"


def _broker_shorthand(value: Any) -> Any:
    return broker_from_url(value) if isinstance(value, str) else value


def _camera_shorthand(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else _said(value)


def _said(section: Any) -> Any:
    """What a section that is built already says itself, without its defaults: only that overrides what is inherited."""
    if isinstance(section, BaseModel):
        return section.model_dump(exclude_unset=True, context={"reveal": True})
    return section


BrokerUrl = Annotated[str, Field(json_schema_extra=expected("mqtt://[USER:PASSWORD@]HOST[:PORT]"))]
CameraUrl = Annotated[str, Field(json_schema_extra=expected(SOURCE_KINDS))]
Mqtt = Annotated[MqttConfig, BeforeValidator(_broker_shorthand, json_schema_input_type=BrokerUrl | MqttConfig)]
Camera = Annotated[CameraConfig, BeforeValidator(_camera_shorthand, json_schema_input_type=CameraUrl | CameraConfig)]
Temporal = Annotated[
    TemporalConfig | None, BeforeValidator(switch, json_schema_input_type=bool | TemporalConfig | None)
]


class Config(Section):
    """Everything that a daemon needs to know; `load_config` makes it from a file or a bare URL."""

    node: Id = Field(
        default_factory=default_node,
        description="Name of this device in every topic: unique at the broker, and stable.",
        json_schema_extra=default_text("the host name"),
    )
    roles: tuple[Role, ...] = Field(
        default=ROLES, min_length=1, description="What runs on this host; encode and publish always run together."
    )
    mqtt: Mqtt = Field(
        default_factory=lambda: MqttConfig(embedded=True),
        description="The broker: a mapping, or just its URL, `mqtts://USER:${MQTT_PASSWORD}@HOST`.",
        json_schema_extra=default_text("`{embedded: true}`"),
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="What turns a frame into a vector.")
    temporal: Temporal = Field(
        default=None,
        description="The temporal head, a second vector: `true`, or a mapping.",
        json_schema_extra=default_text("`false`"),
    )
    encoder: EncoderConfig = Field(default_factory=EncoderConfig, description="How frames are encoded.")
    capture: CaptureConfig = Field(default_factory=CaptureConfig, description="The processes that read cameras.")
    transport: TransportConfig = Field(
        default_factory=TransportConfig, description="Between capture and encoder on different hosts."
    )
    defaults: CameraSettings = Field(
        default_factory=CameraSettings, description="What holds for every camera that does not say otherwise."
    )
    cameras: dict[Id, Camera] = Field(
        default_factory=dict,
        description="The cameras: `ID: URL`, or `ID:` and a mapping. Needed wherever the role `capture` runs.",
        json_schema_extra=default_text("needed"),
    )
    logging: LoggingConfig = Field(default_factory=LoggingConfig, description="Log lines on stderr.")
    runtime_dir: ConfigPath | None = Field(
        default=None,
        description="Folder for sockets and counters; kept short, as a socket's path has at most 107 bytes.",
        json_schema_extra=default_text("`$RUNTIME_DIRECTORY`, else `$XDG_RUNTIME_DIR/camvec`, else one in /tmp"),
    )
    shutdown_timeout_s: Number = Field(
        default=5.0, ge=1, le=60, description="A stop takes at most this long, whatever hangs, seconds."
    )

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any, info: ValidationInfo) -> Any:
        """A camera gets what it does not say itself: from `defaults`, and its budget from `encoder`."""
        if not isinstance(data, dict):
            return data
        defaults = _accepted(CameraSettings, data.get("defaults"), info)
        encoder = _accepted(EncoderConfig, data.get("encoder"), info)
        if defaults is None or encoder is None:
            return data  # reported where it is written, once
        defaults = {key: encoder[key] for key in ("budget_ms",) if key in encoder} | defaults
        cameras = data.get("cameras")
        if isinstance(cameras, dict):
            cameras = {key: _under(defaults, _camera_shorthand(camera)) for key, camera in cameras.items()}
            data = data | {"cameras": cameras}
        return data | {"defaults": defaults}

    @field_validator("roles")
    @classmethod
    def _roles_fit(cls, roles: tuple[Role, ...]) -> tuple[Role, ...]:
        if len(set(roles)) != len(roles):
            raise rule("expected each role once")
        if ("encode" in roles) != ("publish" in roles):
            raise rule("expected encode and publish on the same host, got only one of them")
        return roles

    @field_validator("transport")
    @classmethod
    def _transport_fits(cls, transport: TransportConfig, info: ValidationInfo) -> TransportConfig:
        roles, encoder = info.data.get("roles"), info.data.get("encoder")
        if roles is not None and encoder is not None:  # else they are faulty and told
            for key, sentence in transport.faults(frozenset(roles), encoder.processes):
                raise rule(sentence, key)
        return transport

    @field_validator("cameras")
    @classmethod
    def _cameras_have_urls(cls, cameras: dict[str, CameraConfig], info: ValidationInfo) -> dict[str, CameraConfig]:
        if "capture" not in info.data.get("roles", ()):
            return cameras
        if not cameras:
            raise rule("expected at least one camera, such as `front: rtsp://10.0.0.5/stream`, got none")
        for name, camera in cameras.items():
            if not camera.url:
                raise rule("expected a url, got none", name)
        return cameras

    @field_validator("mqtt")
    @classmethod
    def _mqtt_has_client(cls, mqtt: MqttConfig, info: ValidationInfo) -> MqttConfig:
        if mqtt.client_id or "node" not in info.data:
            return mqtt
        return mqtt.model_copy(update={"client_id": f"{mqtt.root}-{info.data['node']}"})

    def enabled_cameras(self) -> list[str]:
        """The ids of the cameras to run, in the order of the file."""
        return [name for name, camera in self.cameras.items() if camera.enabled]

    def camera(self, name: str) -> CameraConfig:
        """The settings of a camera; on an encoder host one that is declared elsewhere gets the defaults."""
        declared = self.cameras.get(name)
        return declared or CameraConfig.model_validate(self.defaults.model_dump(context={"reveal": True}))

    def with_cameras(self, other: "Config") -> Self:
        """This configuration with the cameras and defaults of `other`: what a reload may change."""
        return self.model_copy(update={"cameras": other.cameras, "defaults": other.defaults})

    def secrets(self) -> frozenset[str]:
        """Every secret in it, for the Redactor: passwords and tokens as written and decoded."""
        found = {secret for camera in self.cameras.values() for secret in camera.secrets()}
        if self.mqtt.password is not None:
            found.add(self.mqtt.password.get_secret_value())
        return frozenset(found - {""})

    def dump(self, *, redacted: bool = True) -> dict[str, Any]:
        """The effective configuration as plain data, every default filled in, secrets masked."""
        return self.model_dump(mode="json", context={"reveal": not redacted})

    def to_json(self) -> str:
        """Everything, secrets included: for the standard input of a child process and nothing else."""
        return self.model_dump_json(context={"reveal": True})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """What `to_json` wrote. Raises ConfigError, without a value in it."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            places = ", ".join(".".join(map(str, fault["loc"])) or "document" for fault in error.errors())
            raise ConfigError(f"expected a configuration as `to_json` writes it; faulty: {places}") from None


def _accepted(model: type[BaseModel], raw: Any, info: ValidationInfo) -> dict[str, Any] | None:
    raw = {} if raw is None else _said(raw)
    try:
        model.model_validate(raw, context=info.context)
    except ValidationError:
        return None
    return raw if isinstance(raw, dict) else None


def _under(defaults: Mapping[str, Any], own: Any) -> Any:
    """`own` over `defaults`, mapping by mapping."""
    if not isinstance(own, dict):
        return own
    both = {
        key: _under(value, own[key]) if isinstance(value, dict) and key in own else own.get(key, value)
        for key, value in defaults.items()
    }
    return both | {key: value for key, value in own.items() if key not in defaults}
