"""The sections `cameras` and `defaults`: one camera, what it may cost, and which events it raises."""

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BeforeValidator, Field, field_serializer
from pydantic_core.core_schema import FieldSerializationInfo

from streaming.config.fields import ConfigPath, NotBool, Number, Section, Whole, default_text, reveals, switch
from streaming.config.urls import SourceUrl, secrets_in_url

if TYPE_CHECKING:
    from streaming.sources.base import SourceConfig


_SECRET_OPTION: Final = re.compile(r"(?i)header|cookie|pass|key|token|secret|auth")


class CameraTlsConfig(Section):
    """Trust towards a camera; for rtsps:// and https://."""

    verify: bool = Field(default=True, description="Check the camera's certificate.")
    ca: ConfigPath | None = Field(
        default=None,
        description="PEM file of the authorities to trust.",
        json_schema_extra=default_text("those of the system"),
    )


class SceneChangeConfig(Section):
    """The event `scene_change`: the picture changed as a whole."""

    enabled: bool = Field(default=True, description="Raise it.")


class ActivityConfig(Section):
    """The event `activity`: something moves."""

    enabled: bool = Field(default=True, description="Raise it.")
    threshold: Number = Field(
        default=0.02,
        gt=0,
        le=1,
        description="It begins when this share of the picture changes, 0 to 1; it goes on down to half of that.",
    )
    min_s: Number = Field(default=0.5, ge=0, le=3600, description="... for this long, seconds.")
    quiet_s: Number = Field(
        default=3.0, ge=0.1, le=3600, description="It ends when less has changed for this long, seconds."
    )


class EventsConfig(Section):
    """What is worth a message of its own."""

    scene_change: SceneChangeConfig = Field(
        default_factory=SceneChangeConfig, description="The picture changed as a whole."
    )
    activity: ActivityConfig = Field(default_factory=ActivityConfig, description="Something moves.")


class DecodeGateConfig(Section):
    """Packets of a camera that shows nothing new wait undecoded; their frames count as `blind`."""

    max_blind_s: Number = Field(
        default=1.0,
        ge=0.1,
        le=60,
        description="Look at a picture at least this often, seconds, as long as packets come.",
    )
    max_backlog: Whole = Field(
        default=60,
        ge=1,
        le=1000,
        description="Packets that may wait at most; fewer, if decoding them would take 40 % of `budget_ms`.",
    )


DecodeGate = Annotated[
    DecodeGateConfig | None, BeforeValidator(switch, json_schema_input_type=bool | DecodeGateConfig | None)
]
CATCH_UP_SHARE: Final = 0.4
"""Of the latency budget: what decoding the packets that wait may take once one of them speaks of a change."""


class CameraSettings(Section):
    """What a camera may set, and `defaults` for all of them."""

    enabled: bool = Field(default=True, description="`false`: declared, but not read.")
    budget_ms: Number = Field(
        default=100.0,
        ge=1,
        le=60_000,
        description="Latency budget, arrival to MQTT, milliseconds.",
        json_schema_extra=default_text("`encoder.budget_ms`"),
    )
    priority: Literal["low", "normal", "high"] = Field(
        default="normal", description="Who is served first when time is short."
    )
    max_fps: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False), NotBool] | None = Field(
        default=None,
        description="Take at most so many frames a second; the others count as `paced`.",
        json_schema_extra=default_text("all"),
    )
    decode_gate: DecodeGate = Field(
        default=None,
        description="Let packets wait undecoded while their sizes tell of nothing new: `true`, or a mapping.",
        json_schema_extra=default_text("`false`"),
    )
    transport: Literal["tcp", "udp"] = Field(default="tcp", description="How RTP travels; for rtsp:// only.")
    open_timeout_s: Number = Field(
        default=5.0, ge=0.1, le=300, description="Longest wait for the stream to open, seconds."
    )
    read_timeout_s: Number = Field(
        default=5.0, ge=0.1, le=300, description="Longest silence of an open stream, seconds."
    )
    stall_floor_s: Number = Field(
        default=10.0,
        ge=0.5,
        le=3600,
        description="A stream without pictures counts as stalled after this, seconds, at the earliest.",
    )
    stall_factor: Number = Field(
        default=20.0, ge=2, le=10_000, description="... and not before so many of its own frame intervals."
    )
    realtime: bool = Field(default=False, description="Files: deliver at the pace of a camera and lose what is late.")
    loop: bool = Field(default=False, description="Files: start again at the end.")
    timecode_strip: bool = Field(
        default=False,
        description="For measurements: the lowest 16 rows are a time code like that of the test scene, not picture.",
    )
    tls: CameraTlsConfig = Field(default_factory=CameraTlsConfig, description="Trust, for rtsps:// and https://.")
    options: dict[str, str] = Field(
        default_factory=dict, description="Further FFmpeg options for opening the source; they win over ours."
    )
    events: EventsConfig = Field(default_factory=EventsConfig, description="Which events are raised, and when.")

    @field_serializer("options")
    def _hide_options(self, options: dict[str, str], info: FieldSerializationInfo) -> dict[str, str]:
        return options if reveals(info) else dict.fromkeys(options, "***")  # headers and cookies live here


class CameraConfig(CameraSettings):
    """One camera; a bare URL stands for a mapping with nothing else."""

    url: SourceUrl = Field(
        default="",
        max_length=4096,
        repr=False,
        description="Where its pictures come from. Needed wherever the role `capture` runs.",
        json_schema_extra=default_text("needed"),
    )

    def secrets(self) -> set[str]:
        """What must never be shown: passwords and tokens, in the URL and in options."""
        return secrets_in_url(self.url) | {
            value for key, value in self.options.items() if value and _SECRET_OPTION.search(key)
        }

    def source(self) -> "SourceConfig":
        """These settings as a source takes them."""
        from streaming.sources.base import SourceConfig  # noqa: PLC0415 - brings FFmpeg, which only capture needs
        from streaming.sources.decode_gate import DecodeGateSettings  # noqa: PLC0415 - as above

        gate = self.decode_gate
        catch_up_ms = CATCH_UP_SHARE * self.budget_ms
        return SourceConfig(
            url=self.url,
            transport=self.transport,
            open_timeout_s=self.open_timeout_s,
            read_timeout_s=self.read_timeout_s,
            stall_floor_s=self.stall_floor_s,
            stall_factor=self.stall_factor,
            realtime=self.realtime,
            loop=self.loop,
            decode_gate=DecodeGateSettings(gate.max_blind_s, gate.max_backlog, catch_up_ms) if gate else None,
            strip=self.timecode_strip,
            options=self.options,
            tls_ca=None if self.tls.ca is None else str(self.tls.ca),
            tls_verify=self.tls.verify,
        )
