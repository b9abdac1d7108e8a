"""Where the two halves meet: the model's words become those of the wire, and an encoder is built from a configuration."""

import hashlib
import statistics
import time

import msgspec
import numpy as np

from encoders_core.config import QUALITY_TARGETS, AuditConfig, GateConfig, TemporalConfig
from encoders_core.draining import drain
from encoders_core.preprocessing import InputSpec
from encoders_core.realtime.fidelity import Fidelity
from encoders_core.realtime.frame_encoder import (
    EncoderDescriptor,
    FrameEncoder,
    dense_steps,
    load_frame_encoder,
    sizes_px,
)
from encoders_core.realtime.realtime_encoder import RealtimeVideoEncoder
from streaming.config import Config
from streaming.frames import FrameSpec
from streaming.records import FidelityRecord, ModelDescriptor

_PROFILE_PASSES = 7


def frame_spec_of(spec: InputSpec) -> FrameSpec:
    """The picture that capture has to deliver for a model."""
    return FrameSpec(size_hw=spec.size_hw, fit=spec.fit, scaler=spec.scaler)


def full_pass_ms(encoder: FrameEncoder) -> float:
    """Median time of a dense pass of one frame here and now, after a warm-up."""
    frame = np.zeros((*encoder.descriptor.input.size_hw, 3), np.uint8)
    times_ms = []
    for _ in range(_PROFILE_PASSES):
        started = time.perf_counter()
        drain(dense_steps(encoder, frame))
        times_ms.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times_ms[2:])


def over_budget(full_ms: float, budget_ms: float) -> str | None:
    """A sentence with the remedy when the model's full pass cannot keep the budget here; None when it can."""
    if full_ms <= budget_ms:
        return None
    return (
        f"a full pass of this model takes {full_ms:.0f} ms here and the budget is {budget_ms:.0f} ms: "
        "frames will be late or dropped; choose a smaller model or a higher budget_ms"
    )


def build_encoder(config: Config) -> RealtimeVideoEncoder:
    """The realtime encoder of a configuration, without cameras. Raises EncoderError when the model cannot be had."""
    settings = config.encoder
    target_fvu = target_fvu_of(config)
    frame_encoder = model_of(config)
    return RealtimeVideoEncoder(
        frame_encoder,
        budget_ms=settings.budget_ms,
        gate=GateConfig(target_fvu=target_fvu, max_hold_s=settings.max_hold_s) if settings.gate else None,
        temporal=temporal_config(config),
        rungs=sizes_px(frame_encoder) if settings.adaptive_resolution else None,
        audit=AuditConfig(share=settings.fidelity.audit) if settings.fidelity.audit else None,
        target_fvu=target_fvu,
    )


def model_of(config: Config) -> FrameEncoder:
    """The model of a configuration. Raises EncoderError when it cannot be had."""
    model = config.model
    return load_frame_encoder(model.name, weights=model.weights, fit=model.fit, backend=model.backend)


def target_fvu_of(config: Config) -> float:
    """The unexplained variance that may be spent: the number, or that of the level."""
    fvu = config.encoder.fidelity.fvu
    return QUALITY_TARGETS[config.encoder.quality_level] if fvu is None else fvu


def temporal_config(config: Config) -> TemporalConfig | None:
    """The temporal head that a configuration asks for."""
    head = config.temporal
    return TemporalConfig(kind=head.kind, window=head.window, depth=head.layers, skipped=head.skipped) if head else None


def describe(descriptor: EncoderDescriptor, *, full_ms: float) -> ModelDescriptor:
    """What subscribers are told of the model."""
    return ModelDescriptor(
        model_id=descriptor.model_id,
        fingerprint=descriptor.fingerprint,
        name=descriptor.name,
        dim=descriptor.dim,
        trained=descriptor.trained,
        frame_spec=frame_spec_of(descriptor.input),
        mean=descriptor.input.mean,
        std=descriptor.input.std,
        pooling=descriptor.pooling,
        full_pass_ms=round(full_ms, 2),
    )


def fidelity_record(camera: str, found: Fidelity) -> FidelityRecord:
    """What subscribers are told of a camera's vectors."""
    return FidelityRecord(
        camera=camera,
        fvu=found.fvu,
        fvu_upper=found.fvu_upper,
        cos_p5=found.cos_p5,
        audited=found.audited,
        coverage=found.coverage,
        scale=found.scale,
        gates=found.gates,
    )


def describe_temporal(frames: ModelDescriptor, config: TemporalConfig) -> ModelDescriptor:
    """The temporal head's output as a model of its own. Its weights are random until trained: it starts as a mean."""
    identity = f"{frames.fingerprint} {config!r}".encode()
    return msgspec.structs.replace(
        frames,
        model_id=f"{frames.model_id}-temporal",
        fingerprint=hashlib.sha256(identity).hexdigest()[:16],
        name=f"{frames.name}, temporal head over {config.window} frames",
        trained=False,
        pooling="temporal",
        temporal_of=frames.model_id,
    )
