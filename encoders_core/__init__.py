"""Models and encoders: pictures, clips and streams to vectors. Needs torch; opens no sockets, speaks no MQTT."""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "ClassNameBridge": "encoders_core.search.bridge",
    "DataSet": "encoders_core.benchmarking.datasets",
    "BenchmarkResults": "encoders_core.benchmarking.results",
    "EncoderBenchmark": "encoders_core.benchmark",
    "EncoderError": "encoders_core.errors",
    "EncoderWithFallback": "encoders_core.fallback",
    "EncodingResult": "encoders_core.results",
    "FallbackResult": "encoders_core.fallback",
    "FusionResult": "encoders_core.multimodal_combiner",
    "GateConfig": "encoders_core.config",
    "ImageTransform": "encoders_core.image_transform",
    "InputError": "encoders_core.errors",
    "InputSpec": "encoders_core.preprocessing",
    "DicomImage": "encoders_core.medical.dicom",
    "MedicalEncoder": "encoders_core.medical_encoder",
    "MedicalResult": "encoders_core.medical.result",
    "MemoryBoundError": "encoders_core.memory_bound",
    "MultimodalCombiner": "encoders_core.multimodal_combiner",
    "MultimodalSearchEncoder": "encoders_core.multimodal_search",
    "NotAppliedError": "encoders_core.optimization",
    "OptimizationReport": "encoders_core.optimization",
    "OptionError": "encoders_core.errors",
    "RealtimeVideoEncoder": "encoders_core.realtime.realtime_encoder",
    "SearchHit": "encoders_core.search.index",
    "StreamFeature": "encoders_core.realtime.results",
    "StreamFeatures": "encoders_core.realtime.results",
    "StreamQuality": "encoders_core.realtime.results",
    "TemporalConfig": "encoders_core.config",
    "TextEncoder": "encoders_core.text_encoder",
    "TextResult": "encoders_core.results",
    "Tokenizer": "encoders_core.tokenizer",
    "VectorIndex": "encoders_core.search.index",
    "VideoEncoder": "encoders_core.video_encoder",
    "VideoResult": "encoders_core.video.result",
    "VisionEncoder": "encoders_core.vision_encoder",
    "VisionResult": "encoders_core.results",
    "WeightsError": "encoders_core.errors",
    "WeightsNotFoundError": "encoders_core.errors",
    "configure_threads": "encoders_core.hardware_threads",
    "load_dicom_image": "encoders_core.medical.dicom",
    "load_frame_encoder": "encoders_core.realtime.frame_encoder",
    "memory_efficient_encoding": "encoders_core.memory_bound",
    "optimize_for_hardware": "encoders_core.hardware",
}
"""Public name -> the module that holds it, imported on first use: `import encoders_core` loads no torch."""

__all__ = sorted(_EXPORTS)  # noqa: PLE0605  one table, so that a name cannot be in one place and not in the other


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
