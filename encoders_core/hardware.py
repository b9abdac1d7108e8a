"""Encoders made ready for the hardware at hand: what helps is found by measuring, what cannot work is said."""

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Literal, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from torch import Tensor, nn

from encoders_core.backends.openvino import openvino_obstacle, to_openvino
from encoders_core.encoder import Encoder
from encoders_core.errors import OptionError
from encoders_core.hardware_copies import make_contiguous, shared_copy, to_channels_last
from encoders_core.hardware_threads import configure_threads
from encoders_core.models.packed_linear import packing_obstacle
from encoders_core.optimization import OptimizationReport, precision_obstacle
from encoders_core.options import check_options
from encoders_core.packing import pack
from encoders_core.quantization import to_int8

DeviceType = Literal["auto", "cpu", "gpu", "tpu"]
AnyEncoder = TypeVar("AnyEncoder", bound=Encoder)

DEVICE_OPTIONS: Final[dict[str, Any]] = {
    "mixed_precision": (True, False, "float16", "bfloat16"),
    "compile_mode": (None, "default", "reduce-overhead", "max-autotune"),
    "memory_format": (None, "channels_last", "contiguous"),
    "use_flash_attention": bool,
    "xla_optimization": bool,
    "mesh_parallelism": bool,
    "gradient_checkpointing": bool,
    "threading": (None, "auto"),
    "vectorization": bool,
    "memory_layout": (None, "contiguous"),
    "quantization": (None, "int8"),
    "packing": (None, "float32", "bfloat16"),
    "backend": (None, "openvino"),
}
"""What `optimize_for_device` knows."""

DEVICE_CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "gpu": {
        "mixed_precision": True,
        "compile_mode": "reduce-overhead",
        "memory_format": "channels_last",
        "use_flash_attention": True,
    },
    "tpu": {
        "mixed_precision": "bfloat16",
        "xla_optimization": True,
        "mesh_parallelism": True,
        "gradient_checkpointing": True,
    },
    "cpu": {
        "threading": "auto",
        "vectorization": True,
        "memory_layout": "contiguous",
        "memory_format": "channels_last",
        "packing": "float32",
        "quantization": "int8",
        "backend": "openvino",
    },
}
"""What `optimize_for_hardware` asks for."""

_WORTH_IT: Final = 1.05
"""A change must be this much faster to be kept: less is noise."""
_HOPELESS: Final = 3.0
_LEAST_COSINE: Final = 0.99


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A changed encoder against the one before."""

    speedup: float
    fidelity: float
    """Lowest cosine between the features of the two."""


def optimize_for_hardware(encoder: AnyEncoder, device_type: DeviceType = "auto", *, strict: bool = False) -> AnyEncoder:
    """The encoder with what `DEVICE_CONFIGS` asks for on such a device; its `optimization` is the report.

    "auto" is the GPU if there is one, else the CPU. See `optimize_for_device`. Raises NotAppliedError when `strict` and
    something cannot work here; what works and was measured not to help is no reason.
    """
    if device_type == "auto":
        device_type = "gpu" if torch.cuda.is_available() else "cpu"
    if device_type not in DEVICE_CONFIGS:
        raise OptionError(f"device_type: expected one of auto, {', '.join(DEVICE_CONFIGS)}, got {device_type!r}")
    missing = _missing_device(device_type)
    return optimize_for_device(encoder, DEVICE_CONFIGS[device_type], strict=strict, missing=missing)


def optimize_for_device(
    encoder: AnyEncoder,
    config: Mapping[str, Any],
    *,
    strict: bool = False,
    time_budget_s: float = 2.0,
    missing: Mapping[str, str] | None = None,
) -> AnyEncoder:
    """A copy of the encoder, with the same weights in the same memory, changed as `config` says; its `optimization` says what came of it.

    channels_last, packing (layers through oneDNN, see `PackedLinear`, `PackedEfficientNetLite`), int8, OpenVINO, and bfloat16 on a CPU are kept
    only where they are measured to be 1.05 times as fast, on random input, and every feature keeps a cosine of 0.99. Packing,
    int8, OpenVINO, and OpenVINO in int8 where both are asked for, are ways to do the same work: the fastest stays. "threading" acts on the whole process: one thread, see
    `hardware_threads`. Measuring takes about `time_budget_s` for each. Raises OptionError that names the valid options,
    NotAppliedError when `strict`; nothing is changed then.
    """
    options = check_options({"options": config}, {"options": DEVICE_OPTIONS}, "device")["options"]
    report, threads = OptimizationReport(not_applied=dict(missing or {})), torch.get_num_threads()
    made = shared_copy(encoder)
    made.optimization = report
    try:
        _apply_process(options, report)
        _apply_accelerator(made, options, report)
        _apply_memory(made, options, report)
        if options.get("memory_layout") == "contiguous":
            report.applied["memory_layout"] = f"{make_contiguous(made)} tensors were not contiguous and are now"
        made = _apply_measured(made, options, report, time_budget_s)
        report.refuse(strict=strict, choosing=missing is not None)
    except Exception:
        torch.set_num_threads(threads)
        raise
    return made


def compare(before: Encoder, after: Encoder, time_budget_s: float, reference: Encoder | None = None) -> Comparison:
    """Both on the same random input by turns, 3 to 50 times each, once where the second is hopeless or both are slow.

    Medians. The fidelity is that to `reference`, or to `before`.
    """
    inputs = sample_input(before)
    times: tuple[list[float], list[float]] = ([], [])
    clock = time.process_time if torch.get_num_threads() == 1 and before.device.type == "cpu" else time.perf_counter
    started, features = time.perf_counter(), [_features(one, inputs) for one in (before, after)]
    if reference is not None and reference is not before:
        features[0] = _features(reference, inputs)
    while _goes_on(len(times[0]), time.perf_counter() - started, time_budget_s):
        for one, taken in zip((before, after), times, strict=True):
            start = clock()  # one thread's own time, where it is one thread: other processes do not count
            _features(one, inputs)
            taken.append(clock() - start)
        if times[1][0] > _HOPELESS * times[0][0] and times[0][0] > 0.05:
            break
    cosine = F.cosine_similarity(features[0], features[1], dim=-1).min()
    return Comparison(statistics.median(times[0]) / statistics.median(times[1]), float(cosine))


def _goes_on(rounds: int, spent_s: float, budget_s: float) -> bool:
    return not rounds or (rounds < 3 and spent_s < 3.0 * budget_s + 1.0) or (rounds < 50 and spent_s < budget_s)


def sample_input(encoder: Any) -> Any:
    """Random model input, two items, for `encoder(...)`: pictures, clips, token ids or features by modality."""
    generator = torch.Generator().manual_seed(0)

    def floats(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(encoder.device, encoder.dtype)

    if "image" in encoder.modalities and hasattr(encoder, "config"):
        return floats(2, encoder.config.in_chans, *encoder.config.img_size)
    if "image" in encoder.modalities:
        return floats(2, len(encoder.transform.mean), *encoder.transform.size_hw)
    if "video" in encoder.modalities:
        model = encoder.tower.model.config
        frames = getattr(model, "num_frames", min(2, encoder.config.max_frames))
        return floats(2, frames, model.in_chans, *model.img_size)
    if "text" in encoder.modalities:
        length = min(16, encoder.config.context_length)
        return torch.randint(1, encoder.config.vocab_size, (2, length), generator=generator).to(encoder.device)
    return {name: floats(2, 8, dim) for name, dim in encoder.config.input_dimensions.items()}


def _features(encoder: Encoder, inputs: Any) -> Tensor:
    with encoder.inference():
        features: Tensor = encoder(inputs)
        return features.float()


def _apply_process(options: dict[str, Any], report: OptimizationReport) -> None:
    if options.get("threading") == "auto":
        configure_threads(1)
        report.applied["threading"] = "one thread in this process; more work, more processes"
    if "vectorization" in options:
        kind = torch.backends.cpu.get_cpu_capability()
        if options["vectorization"] and kind != "DEFAULT":
            report.applied["vectorization"] = f"torch's kernels for {kind}, as always"
        elif options["vectorization"]:
            report.not_applied["vectorization"] = "torch has no vector instructions for this CPU"
        else:
            report.not_applied["vectorization"] = "only ATEN_CPU_CAPABILITY=default before the start turns it off"


def _apply_accelerator(encoder: Encoder, options: dict[str, Any], report: OptimizationReport) -> None:
    mode = options.get("compile_mode")
    if mode is not None:
        if encoder.device.type == "cuda":
            for child in encoder.children():
                child.compile(mode=mode)
            report.applied["compile_mode"] = f"torch.compile, {mode}, at the first input of each shape"
        else:
            report.not_applied["compile_mode"] = f"{mode!r} is for encoders on a GPU; this one is on the CPU"
    for option in ("xla_optimization", "mesh_parallelism"):
        if options.get(option):
            report.not_applied[option] = _missing_device("tpu")["tpu"]


def _apply_memory(encoder: Encoder, options: dict[str, Any], report: OptimizationReport) -> None:
    """The options that `apply_memory_optimizations` knows under another name."""
    config: dict[str, Any] = {}
    named = options.get("mixed_precision")
    if named and encoder.device.type == "cuda":
        config["mixed_precision"] = {"dtype": "float16" if named is True else named}
    elif named == "float16":
        report.not_applied["mixed_precision"] = precision_obstacle("cpu", named) or ""
    elif named is False:
        config["mixed_precision"] = {"enable": False}
    if "use_flash_attention" in options:
        config["batch_processing"] = {"memory_efficient_attention": options["use_flash_attention"]}
    if "gradient_checkpointing" in options:
        config["gradient_checkpointing"] = options["gradient_checkpointing"]
    came = encoder.apply_memory_optimizations(config)
    names = {"memory_efficient_attention": "use_flash_attention"}
    for ours, theirs in ((report.applied, came.applied), (report.not_applied, came.not_applied)):
        ours.update({names.get(option, option): said for option, said in theirs.items()})


def _apply_measured(
    encoder: AnyEncoder, options: dict[str, Any], report: OptimizationReport, budget_s: float
) -> AnyEncoder:
    """Try channels_last, and bfloat16 on a CPU, one upon the other, then kernels, and keep what helps."""
    changes: dict[str, Callable[[nn.Module], int]] = {}
    if options.get("memory_format") == "channels_last":
        changes["memory_format"] = to_channels_last
    elif options.get("memory_format") == "contiguous":
        report.applied["memory_format"] = f"{make_contiguous(encoder)} tensors were not contiguous and are now"
    if encoder.device.type == "cpu" and options.get("mixed_precision") in (True, "bfloat16"):
        changes["mixed_precision"] = _to_bfloat16
    for option, change in changes.items():
        base = report.fidelity
        encoder = _keep_if_faster(encoder, option, change, report, budget_s=budget_s, base=base) or encoder
    return _apply_kernels(encoder, options, report, budget_s)


def _apply_kernels(
    plain: AnyEncoder, options: dict[str, Any], report: OptimizationReport, budget_s: float
) -> AnyEncoder:
    """Try each way to compute the layers, all of them from the same encoder, and keep the fastest."""
    best, chosen, base = plain, "", report.fidelity
    for option, obstacle, change in _kernels(plain, options):
        if obstacle is not None:
            report.not_applied[option] = obstacle
            continue
        better = _keep_if_faster(best, option, change, report, budget_s=budget_s, start=plain, base=base)
        if better is not None and chosen not in ("", option):
            report.not_applied[chosen] = f"{report.applied.pop(chosen)}: {option} is faster still"
            report.measured_out.add(chosen)
        if better is not None:
            best, chosen = better, option
        if chosen == option:  # of two ways under one name the other is not worth telling
            report.not_applied.pop(option, None)
            report.measured_out.discard(option)
    return best


def _kernels(plain: Encoder, options: dict[str, Any]) -> Iterator[tuple[str, str | None, Callable[[Any], int]]]:
    """Each way that was asked for: its option, why it cannot be, and the change in place that counts layers."""
    packing, int8 = options.get("packing"), options.get("quantization") == "int8"
    elsewhere = None if plain.device.type == "cpu" else "is for encoders on the CPU"
    if packing is not None:
        compute = torch.bfloat16 if packing == "bfloat16" else torch.float32
        yield (
            "packing",
            f"packing {elsewhere}" if elsewhere else packing_obstacle(compute),
            partial(pack, compute=compute),
        )
    if int8:
        yield "quantization", elsewhere and f"int8 {elsewhere}", to_int8
    if options.get("backend") == "openvino":
        if int8:
            yield "backend", openvino_obstacle(plain), partial(to_openvino, int8=True)
        yield "backend", openvino_obstacle(plain), to_openvino


def _keep_if_faster(
    best: AnyEncoder,
    option: str,
    change: Callable[[Any], int],
    report: OptimizationReport,
    *,
    budget_s: float,
    start: AnyEncoder | None = None,
    base: float | None = None,
) -> AnyEncoder | None:
    """A copy of `start` (or `best`) changed, if it is faster than `best` and close to `start`; the report says what was seen.

    `base` is the fidelity of `start` itself.
    """
    start = start or best
    candidate = shared_copy(start)
    candidate.optimization = report
    count = change(candidate)
    if not count:
        report.not_applied[option] = "there is no layer that it concerns"
        return None
    try:
        found = compare(best, candidate, budget_s, start)
    except (AttributeError, RuntimeError) as exc:  # a build of torch without these kernels
        report.not_applied[option] = f"this torch cannot: {exc}"
        return None
    told = f"{_named(change)}{count} layers, measured {found.speedup:.2f} times as fast, cosine at least {found.fidelity:.4f}"
    if not (found.speedup >= _WORTH_IT and found.fidelity >= _LEAST_COSINE):
        report.not_applied[option] = f"{told}: not worth it here"
        report.measured_out.add(option)
        return None
    report.applied[option] = told
    report.speedup = (report.speedup or 1.0) * found.speedup
    report.fidelity = min(1.0 if base is None else base, found.fidelity)
    return candidate


def _named(change: Callable[[Any], int]) -> str:
    return "in int8: " if isinstance(change, partial) and change.keywords.get("int8") else ""


def _to_bfloat16(encoder: Any) -> int:
    encoder.apply_memory_optimizations({"mixed_precision": {"dtype": "bfloat16"}})
    return sum(isinstance(one, nn.Linear | nn.Conv2d) for one in encoder.modules())


def _missing_device(device_type: str) -> dict[str, str]:
    if device_type == "gpu" and not torch.cuda.is_available():
        return {"gpu": "this torch finds no CUDA device here"}
    if device_type == "tpu" and importlib.util.find_spec("torch_xla") is None:
        return {"tpu": "torch_xla is not installed: on a machine with a TPU, pip install 'torch_xla[tpu]'"}
    if device_type == "tpu":
        return {
            "tpu": "torch_xla is here, but encoders have never been run on it: move it with encoder.to(...) yourself"
        }
    return {}
