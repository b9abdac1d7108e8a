"""Encoding under a bound on the process's memory: chunks as large as what was measured allows, and no larger."""

import ctypes
import gc
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import psutil

from encoders_core.encoder import Encoder
from encoders_core.errors import EncoderError, OptionError
from encoders_core.feature_cache import result_nbytes
from encoders_core.memory import mapping_rows
from encoders_core.results import EncodingResult, join
from encoders_core.video.clips import as_clips

_LARGEST: Final = 256
_CAUTION: Final = 0.4
"""Share of the room that a chunk may be predicted to fill. Measured: of two equal chunks the second took up to half as
much again, because the C library had meanwhile moved large blocks from the system to its own, fragmented heap."""
_SAMPLE_S: Final = 0.001


class MemoryBoundError(EncoderError, MemoryError):
    """Raised when a bound on memory cannot be kept: says what took how much."""


def memory_efficient_encoding(
    encoder: Encoder, inputs: Any, max_memory_gb: float = 4, **options: Any
) -> EncodingResult:
    """`encoder.encode(inputs, **options)`, with this process's resident memory kept below `max_memory_gb` (1e9 bytes).

    Everything counts: torch, the weights, the inputs, the results. One item is encoded first; what it took says how many
    come next, and so on, at most twice as many each time and at most 256. `inputs` as `encode` takes them. Memory of a
    GPU is not counted. Raises MemoryBoundError when the process is above the bound already, when one item or the results
    do not fit; a chunk that went above it all the same is an error too, not a result.
    """
    if max_memory_gb <= 0:
        raise OptionError(f"max_memory_gb: expected a positive number, got {max_memory_gb}")
    limit = int(max_memory_gb * 1e9)
    if "text" in encoder.modalities:
        return _encode_texts(encoder, inputs, limit, options)
    count, encode = _slicer(encoder, inputs, options)
    parts: list[EncodingResult] = []
    done, kept, planner = 0, 0, _Planner(limit)
    while done < count or not parts:
        size = planner.size
        part = planner.run(partial(encode, slice(done, done + size)), size)
        parts.append(part)
        done += size
        kept += result_nbytes(part)
        if done < count:  # joining takes all results once more
            planner.plan(results=2 * kept + 2 * result_nbytes(part) * (count - done) // size, kept=kept)
    result = join(parts)
    planner.check("joining the results")
    return result


def _slicer(encoder: Any, inputs: Any, options: dict[str, Any]) -> tuple[int, Callable[[slice], EncodingResult]]:
    """How many items there are, and a function that encodes some of them."""
    if isinstance(inputs, Mapping):
        masks, rest = options.get("masks"), {key: value for key, value in options.items() if key != "masks"}

        def encode_rows(rows: slice) -> EncodingResult:
            more = rest if masks is None else rest | {"masks": mapping_rows(masks, rows)}
            part: EncodingResult = encoder.encode(mapping_rows(inputs, rows), **more)
            return part

        return max((len(value) for value in inputs.values() if value is not None), default=0), encode_rows
    items = as_clips(inputs) if "video" in encoder.modalities else encoder.items(inputs)

    def encode_items(rows: slice) -> EncodingResult:
        mask = options.get("frame_mask")
        more = options if mask is None else options | {"frame_mask": mask[rows]}
        part: EncodingResult = encoder.encode(items[rows], **more)
        return part

    return len(items), encode_items


def _encode_texts(encoder: Any, texts: Any, limit: int, options: dict[str, Any]) -> EncodingResult:
    """Texts are small, batches of them are not: the longest one is tried, alone and then several times."""
    planner, largest = _Planner(limit), options.get("batch_size", 32)
    rest = {key: value for key, value in options.items() if key != "batch_size"}
    size = 1
    if not isinstance(texts, str) and len(texts):
        probe = texts[:1] if hasattr(texts, "shape") else [max(texts, key=len)]
        tried = 0
        while tried < size:
            repeated = probe * size if isinstance(probe, list) else probe.expand(size, -1)
            part = planner.run(partial(encoder.encode, repeated, **rest), size)
            planner.plan(results=2 * result_nbytes(part) * len(texts) // size, kept=0)
            tried, size = size, min(max(size, planner.size), largest)
    return planner.run(partial(encoder.encode, texts, **rest, batch_size=size), size)


class _Planner:
    """How many items may be encoded at once, from what the largest chunk so far took.

    What a chunk takes is counted from the lowest that the process was at: memory once taken is not always given back.
    """

    def __init__(self, limit: int) -> None:
        self.size = 1
        self._limit, self._floor, self._largest, self._growth = limit, _resident(), 0, 0

    def run(self, encode: Callable[[], EncodingResult], size: int) -> EncodingResult:
        """What `encode` gives for `size` items. Raises MemoryBoundError when the process is or gets above the limit."""
        self.check("this process without any further chunk")
        self._floor = min(self._floor, _resident())
        with PeakMemory() as peak:
            part = encode()
        if peak.bytes > self._limit:
            raise MemoryBoundError(_told("encoding a chunk", peak.bytes, self._limit))
        growth = max(1, peak.at_most - self._floor)
        if size > self._largest or (size == self._largest and growth > self._growth):
            self._largest, self._growth = size, growth
        return part

    def plan(self, *, results: int, kept: int) -> None:
        """Set `size` for the next chunk. `results`: bytes of all results and of joining them, `kept`: of those there."""
        _trim()
        if self._floor + results > self._limit:
            raise MemoryBoundError(_told("keeping and joining all results", self._floor + results, self._limit))
        room = self._limit - self._floor - kept
        fitting = int(_CAUTION * room * self._largest / self._growth)
        self.size = max(1, min(2 * self._largest, fitting, _LARGEST))

    def check(self, what: str) -> None:
        """Raise MemoryBoundError when the process is above the limit now."""
        if _resident() > self._limit:
            gc.collect()
            _trim()
        if _resident() > self._limit:
            raise MemoryBoundError(_told(what, _resident(), self._limit))


def _resident() -> int:
    resident: int = psutil.Process().memory_info().rss
    return resident


def _trim() -> None:
    """Give free memory back to the system, so that chunk after chunk starts with a heap in one piece (glibc alone)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _told(what: str, took: int, limit: int) -> str:
    return f"{what} took {took / 1e9:.3f} GB, more than max_memory_gb={limit / 1e9:.3f}"


class PeakMemory:
    """The highest resident memory inside: the kernel's own mark where it rose, else what a thread saw every millisecond.

    On a busy machine the thread sees too little: `at_most` allows for that, but not beyond the mark that did not rise.
    """

    bytes: int
    at_most: int

    def __enter__(self) -> Self:
        self._before = self.bytes = _resident()
        self._mark, self._done = _high_water(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-peak", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        mark, seen = _high_water(), max(self.bytes, _resident())
        if mark > self._mark:
            self.bytes = self.at_most = mark
        else:
            doubled = self._before + 2 * (seen - self._before)
            self.bytes, self.at_most = seen, min(doubled, mark) if mark else doubled

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self.bytes = max(self.bytes, _resident())


def _high_water() -> int:
    """VmHWM of Linux in bytes; 0 elsewhere."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
