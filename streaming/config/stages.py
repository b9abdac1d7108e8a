"""The sections of the stages: model, temporal, encoder, capture, transport; and logging."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from streaming.config.fields import (
    ConfigPath,
    NotBool,
    Number,
    Section,
    Whole,
    default_text,
    expected,
    is_loopback,
    rule,
)


class ModelConfig(Section):
    """What turns a frame into a vector."""

    name: str = Field(default="efficientnet-lite0", min_length=1, max_length=128, description="Name of the model.")
    weights: ConfigPath | None = Field(
        default=None,
        description="File with other weights for it: safetensors, or a PyTorch state dict.",
        json_schema_extra=default_text("those of the model's package"),
    )
    fit: Literal["squash", "crop", "letterbox"] = Field(
        default="squash",
        description="How a picture fills the model's square: squash keeps all of it, crop its middle, letterbox its shape.",
    )
    backend: Literal["torch", "openvino"] = Field(
        default="torch",
        description="What computes its passes. openvino is for efficientnet-lite0: the same vectors in about two thirds of "
        "the time. Needs `pip install 'camvec[openvino]'`.",
    )


class TemporalConfig(Section):
    """The temporal head: a second vector, of what the last frames show together."""

    kind: Literal["transformer", "lstm", "gru", "conv3d"] = Field(
        default="transformer", description="What it is made of; without training the transformer gives the mean."
    )
    window: Whole = Field(default=16, ge=2, le=512, description="Frames that it looks back over.")
    layers: Whole = Field(default=2, ge=1, le=12, description="Layers.")
    skipped: Literal["hold", "repeat", "dt"] = Field(
        default="hold",
        description="What a held frame is to it: nothing, the last vector again, or time that the next step knows of.",
    )


class FidelityConfig(Section):
    """How far vectors may be from those of full passes of every frame, and how that is watched."""

    fvu: Number | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Unexplained variance that may be spent; the gates are steered to it. 0: none, no frame that differs is skipped.",
        json_schema_extra=default_text("that of `quality_level`"),
    )
    audit: Number = Field(
        default=0.01,
        ge=0,
        le=0.1,
        description="Share of all frames that are encoded once more, in full and when there is time, to measure it; 0: none.",
    )


class EncoderConfig(Section):
    """How frames are encoded, and how much may be saved on the way."""

    budget_ms: Number = Field(
        default=100.0,
        ge=1,
        le=60_000,
        description="Latency budget, arrival to MQTT, of cameras that set none, milliseconds.",
    )
    processes: Literal["auto"] | Annotated[int, Field(ge=1, le=64), NotBool] = Field(
        default="auto", description="Encoder processes; `auto`: CPU cores less one, at least 1."
    )
    quality_level: Literal["high_quality", "balanced", "fast"] = Field(
        default="balanced",
        description="How far vectors may be from those of a full pass: unexplained variance .005, .02 or .05.",
    )
    fidelity: FidelityConfig = Field(
        default_factory=FidelityConfig, description="The same as a number, and how it is measured."
    )
    gate: bool = Field(default=True, description="Skip frames that have not changed since the last encoded one.")
    max_hold_s: Number = Field(
        default=10.0, ge=0.1, le=3600, description="Encode at least this often although nothing changes, seconds."
    )
    adaptive_resolution: bool = Field(
        default=False,
        description="Take smaller pictures rather than none when a full one would be late; their vectors differ more.",
    )


class CaptureConfig(Section):
    """The processes that read cameras."""

    cameras_per_worker: Whole = Field(default=4, ge=1, le=64, description="Cameras in one capture process.")
    rss_limit_mb: Whole = Field(
        default=1024, ge=128, le=1_000_000, description="A capture process above this memory is replaced, megabytes."
    )
    frame_memory_mb: Whole = Field(
        default=128,
        ge=4,
        le=65_536,
        description="Decoded pictures that a camera may hold, megabytes: a stream of which four do not fit is refused.",
    )

    @property
    def max_pixels(self) -> int:
        """The largest picture of which four fit into `frame_memory_mb`, at the 1.5 bytes a pixel of YUV 4:2:0."""
        return self.frame_memory_mb * 1_000_000 // 6


class KeysConfig(Section):
    """CURVE keys, made by `camvec keys`: who may connect, and to whom."""

    secret: ConfigPath = Field(description="Secret key file of this host.")
    server: ConfigPath | None = Field(default=None, description="Capture host: public key file of the encoder host.")
    clients: ConfigPath | None = Field(
        default=None,
        description="Encoder host: folder with the public key files of the capture hosts that may connect.",
    )


Role = Literal["capture", "encode", "publish"]
_TCP = re.compile(r"tcp://([^\s/@]+):(\d{1,5})")


def _check_endpoint(endpoint: str) -> str:
    if re.fullmatch(r"ipc:///\S+", endpoint) and len(endpoint.encode()) <= len("ipc://") + 107:
        return endpoint
    match = _TCP.fullmatch(endpoint)
    if match is None or not 1 <= int(match[2]) <= 65_535:
        raise rule("expected tcp://HOST:PORT, or ipc:///PATH of at most 107 bytes")
    return endpoint


def _leaves_host(endpoint: str) -> bool:
    match = _TCP.fullmatch(endpoint)
    return match is not None and not is_loopback(match[1])


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Endpoint = Annotated[
    str, AfterValidator(_check_endpoint), Field(json_schema_extra=expected("tcp://HOST:PORT or ipc:///PATH"))
]
Endpoints = Annotated[
    tuple[Endpoint, ...], BeforeValidator(_as_list, json_schema_input_type=Endpoint | tuple[Endpoint, ...])
]


_ENDPOINTS_WORDS = expected("tcp://HOST:PORT or ipc:///PATH, or a list of them")


class TransportConfig(Section):
    """Between capture and encoder on different hosts; on one host there is nothing to set."""

    keys: KeysConfig | None = Field(
        default=None, description="CURVE keys; needed as soon as an endpoint leaves this host."
    )
    listen: Endpoints = Field(
        default=(),
        max_length=64,
        description="Encoder host: endpoints to bind, one for each encoder process.",
        json_schema_extra=_ENDPOINTS_WORDS,
    )
    connect: Endpoints = Field(
        default=(),
        max_length=64,
        description="Capture host: the encoder's endpoints; cameras are spread over them.",
        json_schema_extra=_ENDPOINTS_WORDS,
    )

    @field_validator("listen", "connect")
    @classmethod
    def _encrypted(cls, endpoints: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(set(endpoints)) != len(endpoints):
            raise rule("expected each endpoint once")
        if "keys" in info.data and info.data["keys"] is None and any(map(_leaves_host, endpoints)):
            raise rule("expected transport.keys with an endpoint that leaves this host; make them with `camvec keys`")
        return endpoints

    def faults(self, roles: frozenset[Role], processes: Literal["auto"] | int) -> Iterator[tuple[str, str]]:
        """What does not fit what runs on this host: (key, sentence)."""
        encodes, captures = "encode" in roles, "capture" in roles
        if encodes and self.connect:
            yield "connect", "expected none where the role encode runs: frames stay on this host"
        if not encodes and not self.connect:
            yield "connect", "expected the endpoints of the encoder host: the role encode does not run here"
        if not encodes and self.listen:
            yield "listen", "expected none where the role encode does not run"
        if not captures and not self.listen:
            yield "listen", "expected endpoints for the capture hosts: the role capture does not run here"
        if self.listen and processes not in {"auto", len(self.listen)}:
            yield "listen", f"expected as many endpoints as encoder.processes, {processes}, got {len(self.listen)}"
        if self.keys is not None:
            yield from self._key_faults(self.keys, encodes=encodes, captures=captures)

    def _key_faults(self, keys: KeysConfig, *, encodes: bool, captures: bool) -> Iterator[tuple[str, str]]:
        if not self.listen and not self.connect:
            yield "keys", "expected listen or connect with them: on one host they would not be used"
        if captures and keys.server is None:
            yield "keys", "expected server, the public key file of the encoder host"
        if encodes and keys.clients is None:
            yield "keys", "expected clients, the folder with the public key files of the capture hosts"


class LoggingConfig(Section):
    """Log lines on stderr, secrets redacted."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least that is written."
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`auto`: console at a terminal, JSON lines everywhere else."
    )
