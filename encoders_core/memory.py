"""Less memory for encoders: checkpointing, mixed precision, chunks, fused attention, a cache of features."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from encoders_core.errors import OptionError
from encoders_core.feature_cache import FeatureCache, content_key, result_rows
from encoders_core.models.layers import Attention, Block
from encoders_core.optimization import OptimizationReport, precision_obstacle
from encoders_core.options import Schema, check_options
from encoders_core.results import EncodingResult, join

if TYPE_CHECKING:
    from encoders_core.encoder import Encoder

MEMORY_OPTIONS: Final[Schema] = {
    "mixed_precision": {"enable": bool, "dtype": ("float16", "bfloat16"), "loss_scaling": ("dynamic", "none")},
    "batch_processing": {"chunk_size": int, "overlap_chunks": bool, "memory_efficient_attention": bool},
    "caching": {"enable_feature_caching": bool, "cache_size_mb": float, "cache_policy": ("lru",)},
}
"""What `apply_memory_optimizations` knows, beside `gradient_checkpointing`, True or False."""

_FUSED: Final = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


@dataclass
class MemorySettings:
    """What is in force on an encoder."""

    gradient_checkpointing: bool = False
    autocast: torch.dtype | None = None
    loss_scaler: torch.amp.GradScaler | None = None
    """For the training loop, where float16 needs one."""
    chunk_size: int | None = None
    overlap_chunks: bool = False
    fused_attention: bool | None = None
    """None leaves the choice of kernel to torch, False forces the plain one, which writes all weights out."""
    cache: FeatureCache | None = None

    @contextmanager
    def computing(self, device: torch.device) -> Generator[None]:
        """Inside, arithmetic is as these settings say."""
        with ExitStack() as stack:
            if self.autocast is not None:
                stack.enter_context(torch.autocast(device.type, dtype=self.autocast))
            if self.fused_attention is not None:
                kernels = [*_FUSED, SDPBackend.MATH] if self.fused_attention else [SDPBackend.MATH]
                stack.enter_context(sdpa_kernel(kernels, set_priority=self.fused_attention))
            yield


def apply_memory_optimizations(
    encoder: "Encoder", config: Mapping[str, Any], *, strict: bool = False
) -> OptimizationReport:
    """Set what `config` names on the encoder, in place; sections that are not named stay. Returns what came of it.

    `gradient_checkpointing`: transformer blocks are computed again on the way back rather than kept
    (https://arxiv.org/abs/1604.06174), in training. `mixed_precision`: enable, dtype, loss_scaling (the encoder's
    `memory.loss_scaler` is for the training loop). `batch_processing`: chunk_size bounds what `encode` computes at once;
    overlap_chunks prepares the next chunk of pictures while one is computed; memory_efficient_attention prefers kernels
    that never write all attention weights out, False forbids them. `caching`: results of `encode` by content, of pictures
    one by one, of anything else by whole call; cache_size_mb bounds their bytes. Raises OptionError that names the valid
    options, and NotAppliedError when `strict`, before anything is changed.
    """
    options = _checked(config)
    settings, report = dataclasses.replace(encoder.memory or MemorySettings()), OptimizationReport()
    _plan_checkpointing(encoder, options, settings, report)
    _plan_precision(encoder, options.get("mixed_precision"), settings, report)
    _plan_batches(encoder, options.get("batch_processing", {}), settings, report)
    _plan_cache(options.get("caching"), settings, report)
    report.refuse(strict=strict)
    encoder.memory = settings
    _install(encoder, settings)
    return report


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise OptionError(f"memory: expected a dictionary of options, got {type(config).__name__}")
    schema = {**MEMORY_OPTIONS, "gradient_checkpointing": {"enable": bool}}
    given = dict(config)
    if "gradient_checkpointing" in given:  # the one option without a section
        given["gradient_checkpointing"] = {"enable": given["gradient_checkpointing"]}
    checked = check_options(given, schema, "memory")
    for section, key, least in (("batch_processing", "chunk_size", 1), ("caching", "cache_size_mb", 0)):
        value = checked.get(section, {}).get(key, least)
        if value < least:
            raise OptionError(f"memory.{section}.{key}: expected at least {least}, got {value}")
    return checked


def _plan_checkpointing(
    encoder: "Encoder", options: dict[str, Any], settings: MemorySettings, report: OptimizationReport
) -> None:
    if "gradient_checkpointing" not in options:
        return
    wanted, count = options["gradient_checkpointing"]["enable"], len(_blocks(encoder))
    if wanted and not count:
        report.not_applied["gradient_checkpointing"] = "there are no transformer blocks to compute again"
        return
    settings.gradient_checkpointing = wanted
    how = f"{count} blocks are computed again on the way back, in training" if wanted else "off"
    report.applied["gradient_checkpointing"] = how


def _plan_precision(
    encoder: "Encoder", options: dict[str, Any] | None, settings: MemorySettings, report: OptimizationReport
) -> None:
    if options is None:
        return
    settings.autocast = settings.loss_scaler = None
    if not options.get("enable", True):
        report.applied["mixed_precision"] = "off"
        return
    name, device = options.get("dtype", "bfloat16"), encoder.device.type
    obstacle = precision_obstacle(device, name)
    if obstacle:
        report.not_applied["mixed_precision"] = obstacle
    else:
        slow = (
            "; it was measured 8 times slower than float32 on a CPU without bfloat16 instructions"
            if device == "cpu"
            else ""
        )
        report.applied["mixed_precision"] = f"{name} under autocast{slow}"
        settings.autocast = getattr(torch, name)
    if options.get("loss_scaling", "none") == "none":
        return
    if name == "float16" and not obstacle:
        settings.loss_scaler = torch.amp.GradScaler(device)
        report.applied["loss_scaling"] = "encoder.memory.loss_scaler, dynamic, is for the training loop"
    else:
        why = "mixed precision is not applied" if obstacle else "bfloat16 has the range of float32 and needs none"
        report.not_applied["loss_scaling"] = why


def _plan_batches(
    encoder: "Encoder", options: dict[str, Any], settings: MemorySettings, report: OptimizationReport
) -> None:
    if "chunk_size" in options:
        settings.chunk_size = options["chunk_size"]
        report.applied["chunk_size"] = f"encode computes at most {settings.chunk_size} at once"
    if "overlap_chunks" in options:
        possible = "image" in encoder.modalities
        settings.overlap_chunks = options["overlap_chunks"] and possible
        if possible or not options["overlap_chunks"]:
            how = "the next chunk is prepared while one is computed" if settings.overlap_chunks else "off"
            report.applied["overlap_chunks"] = how
        else:
            report.not_applied["overlap_chunks"] = "only pictures are prepared apart from being computed"
    if "memory_efficient_attention" in options:
        wanted = options["memory_efficient_attention"]
        if wanted and not any(isinstance(module, Attention) for module in encoder.modules()):
            report.not_applied["memory_efficient_attention"] = "there is no attention in it"
            return
        settings.fused_attention = wanted
        how = "kernels that never write all weights out come first" if wanted else "the plain kernel alone"
        report.applied["memory_efficient_attention"] = how


def _plan_cache(options: dict[str, Any] | None, settings: MemorySettings, report: OptimizationReport) -> None:
    if options is None:
        return
    if not options.get("enable_feature_caching", True):
        settings.cache = None
        report.applied["caching"] = "off"
        return
    megabytes = options.get("cache_size_mb", 512.0)
    settings.cache = FeatureCache(int(megabytes * 1e6))
    report.applied["caching"] = f"up to {megabytes:g} MB of results by content, least recently used goes first"


def _blocks(encoder: nn.Module) -> list[Block]:
    return [module for module in encoder.modules() if isinstance(module, Block)]


def _install(encoder: "Encoder", settings: MemorySettings) -> None:
    """Put the settings where the computation passes. Partials rather than closures: copies of an encoder stay whole."""
    for block in _blocks(encoder):
        _replace(block, "forward", _checkpointed if settings.gradient_checkpointing else None)
    around = settings.autocast is not None or settings.fused_attention is not None
    for child in encoder.children():
        if any(True for _ in child.parameters()):
            _replace(child, "forward", functools.partial(_computed, encoder) if around else None)
    managed = settings.chunk_size is not None or settings.cache is not None
    _replace(encoder, "encode", _managed_encode if managed else None)


def _replace(module: Any, method: str, function: Callable[..., Any] | None) -> None:
    module.__dict__.pop(method, None)
    if function is not None:
        bound = functools.partial(function, module)
        functools.update_wrapper(bound, getattr(type(module), method))
        module.__dict__[method] = bound


def _checkpointed(block: Block, *args: Any, **kwargs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return type(block).forward(block, *args, **kwargs)
    return checkpoint(type(block).forward, block, *args, use_reentrant=False, **kwargs)


def _computed(encoder: "Encoder", module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    settings = encoder.memory or MemorySettings()
    with settings.computing(encoder.device):
        out = type(module).forward(module, *args, **kwargs)
    return out.to(encoder.dtype) if isinstance(out, Tensor) and out.is_floating_point() else out


@dataclass(frozen=True)
class _Call:
    """What `encode` was called with, besides the inputs."""

    args: tuple[Any, ...]
    options: dict[str, Any]

    def __call__(self, encoder: Any, inputs: Any, **changes: Any) -> EncodingResult:
        """The encoder's own `encode`."""
        result: EncodingResult = type(encoder).encode(encoder, inputs, *self.args, **self.options | changes)
        return result

    @property
    def plain(self) -> bool:
        """Whether equal text means equal options: that of a long tensor leaves most of it out."""
        values = [*self.args, *self.options.values()]
        return all(value is None or isinstance(value, str | bool | int | float) for value in values)

    def __str__(self) -> str:
        return f"{self.args!r} {sorted(self.options.items(), key=lambda item: item[0])!r}"


def _managed_encode(encoder: "Encoder", inputs: Any, *args: Any, **options: Any) -> EncodingResult:
    """`encode` through the cache and in chunks."""
    call, cache = _Call(args, options), encoder.memory.cache if encoder.memory else None
    if cache is None or not call.plain:
        return _chunked(encoder, inputs, call)
    salt = f"{_state(encoder)} {call}"
    if "image" in encoder.modalities:
        return _encode_pictures(encoder, cache, salt, inputs, call)
    key = content_key(inputs, salt, text="text" in encoder.modalities)
    known = cache.get(key) if key else None
    if known is None:
        known = _chunked(encoder, inputs, call)
        if key:
            cache.put(key, known)
    return known


def _encode_pictures(encoder: Any, cache: FeatureCache, salt: str, inputs: Any, call: _Call) -> EncodingResult:
    """Picture by picture from the cache; those that are not there in one go, equal ones once. In the pictures' order."""
    items = encoder.items(inputs)
    keys = [content_key(item, salt) for item in items]
    found = [cache.get(key) if key else None for key in keys]
    missing: dict[str | int, int] = {}
    for index, (key, one) in enumerate(zip(keys, found, strict=True)):
        if one is None:
            missing.setdefault(key or index, index)
    if missing or not items:
        computed = _chunked(encoder, [items[index] for index in missing.values()] if items else inputs, call)
        rows = {name: result_rows(computed, slice(row, row + 1)) for row, name in enumerate(missing)}
        for name, row in rows.items():
            if isinstance(name, str):
                cache.put(name, row)
        if len(missing) == len(items):
            return computed
        found = [rows[keys[index] or index] if one is None else one for index, one in enumerate(found)]
    return join([one for one in found if one is not None])


def _chunked(encoder: Any, inputs: Any, call: _Call) -> EncodingResult:
    size = encoder.memory.chunk_size if encoder.memory else None
    if size is None:
        return call(encoder, inputs)
    if isinstance(inputs, Mapping):
        chunks = _mapping_chunks(inputs, call.options, size)
        return join([call(encoder, part, **changes) for part, changes in chunks])
    if "image" in encoder.modalities:
        return _encode_prepared(encoder, encoder.items(inputs), call, size)
    default = type(encoder).encode.__kwdefaults__["batch_size"]
    return call(encoder, inputs, batch_size=min(size, call.options.get("batch_size", default)))


def _encode_prepared(encoder: Any, items: Any, call: _Call, size: int) -> EncodingResult:
    """Pictures in chunks; with `overlap_chunks` a thread prepares the next one meanwhile."""
    size = max(1, min(size, call.options.get("batch_size", size)))
    chunks = [items[start : start + size] for start in range(0, len(items), size)] or [items]
    reading = {key: call.options[key] for key in encoder.READING if key in call.options}
    if not encoder.memory.overlap_chunks:
        return join([call(encoder, encoder.prepare(chunk, **reading)) for chunk in chunks])
    results = []
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
        ahead = pool.submit(encoder.prepare, chunks[0], **reading)
        for chunk in [*chunks[1:], None]:
            prepared = ahead.result()
            if chunk is not None:
                ahead = pool.submit(encoder.prepare, chunk, **reading)
            results.append(call(encoder, prepared))
    return join(results)


def _mapping_chunks(
    inputs: Mapping[str, Any], options: dict[str, Any], size: int
) -> Generator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of features by modality, with those of the masks as a changed option."""
    present = [value for value in inputs.values() if value is not None]
    count = max((len(value) for value in present), default=0)
    if any(len(value) != count for value in present):  # the encoder says what is wrong with it
        yield dict(inputs), {}
        return
    for start in range(0, max(count, 1), size):
        rows = slice(start, start + size)
        masks = options.get("masks")
        yield mapping_rows(inputs, rows), {} if masks is None else {"masks": mapping_rows(masks, rows)}


def mapping_rows(values: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """Those rows of every value, be it a tensor, an array, a result, or None."""
    return {
        name: result_rows(value, rows) if isinstance(value, EncodingResult) else None if value is None else value[rows]
        for name, value in values.items()
    }


def _state(encoder: "Encoder") -> str:
    """Changes when the weights, the network's manners or the preprocessing do."""
    versions = [(tensor.data_ptr(), tensor._version) for tensor in encoder.state_dict(keep_vars=True).values()]  # noqa: SLF001  torch's counter of changes in place has no other name
    settings = (encoder.manners, encoder.memory.autocast if encoder.memory else None)
    return f"{versions} {encoder.config!r} {getattr(encoder, 'transform', None)!r} {settings}"
