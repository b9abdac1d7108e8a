"""What all encoders share: where they run, inference without side effects, and the outputs people know."""

import dataclasses
import sys
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  the field's own name for it
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from encoders_core.errors import InputError, OptionError
from encoders_core.results import Result, join

if TYPE_CHECKING:
    from encoders_core.memory import MemorySettings
    from encoders_core.optimization import OptimizationReport

Module = TypeVar("Module", bound=nn.Module)
Vectors = NDArray[np.float32] | Tensor | list[Tensor]


class Encoder(nn.Module):
    """A module that turns inputs into vectors. `trained` says whether its weights came from anywhere but chance."""

    modalities: ClassVar[tuple[str, ...]]
    trained: bool
    memory: "MemorySettings | None" = None
    """What `apply_memory_optimizations` put in force."""
    optimization: "OptimizationReport | None" = None
    """What `optimize_for_device` did to make this encoder."""

    @property
    @abstractmethod
    def output_dim(self) -> int:
        """Width of the features."""

    @property
    def manners(self) -> tuple[Any, ...]:
        """What features depend on besides weights, `config` and `transform`."""
        return ()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return next(self.parameters()).dtype

    def get_embedding_dimension(self) -> int:
        """Width of the features, under the name of sentence-transformers."""
        return self.output_dim

    @staticmethod
    def similarity(a: Vectors, b: Vectors) -> Tensor:
        """(N, D) and (M, D) -> (N, M) cosine similarity, -1 to 1."""
        left, right = (F.normalize(_matrix(side), dim=-1) for side in (a, b))
        if left.shape[-1] != right.shape[-1]:
            raise InputError(f"expected vectors of one width, got {left.shape[-1]} and {right.shape[-1]}")
        return left @ right.T

    def apply_memory_optimizations(self, config: Mapping[str, Any], *, strict: bool = False) -> "OptimizationReport":
        """Trade time for memory, in place; see `encoders_core.memory.apply_memory_optimizations`."""
        from encoders_core.memory import apply_memory_optimizations  # noqa: PLC0415  it imports results, which few want

        return apply_memory_optimizations(self, config, strict=strict)

    def optimize_for_device(self, config: Mapping[str, Any], *, strict: bool = False) -> Self:
        """A copy made ready for the hardware, with a report; see `encoders_core.hardware.optimize_for_device`."""
        from encoders_core.hardware import optimize_for_device  # noqa: PLC0415  it imports this module

        return optimize_for_device(self, config, strict=strict)

    @contextmanager
    def inference(self) -> Generator[None]:
        """Evaluation mode and no gradients inside; afterwards every module is in the mode it was in.

        `no_grad` rather than `inference_mode`: the features may enter training of what comes behind.
        """
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.no_grad(), nullcontext() if self.memory is None else self.memory.computing(self.device):
                yield
        finally:
            for module in training:
                module.training = True

    def encode_all(self, count: int, encode: Callable[[slice], Result], *, batch_size: int, normalize: bool) -> Result:
        """What `encode` gives for every `batch_size` of `count` items, joined; with `normalize` features of unit length.

        An empty batch is a batch too: `encode` is called at least once. Raises OptionError for a size below one.
        """
        with self.inference():
            result = join([encode(rows) for rows in batch_slices(max(1, count), batch_size)])
        if not normalize:
            return result
        return dataclasses.replace(result, features=F.normalize(result.features, dim=-1))

    def embed_all(
        self,
        items: Sequence[Any],
        embed: Callable[[list[Any]], Tensor],
        *,
        batch_size: int,
        show_progress_bar: bool | None,
        order: Callable[[Any], int] | None = None,
    ) -> Tensor:
        """All items in batches through `embed`: (N, D) float32 in the order of the items; N may be 0.

        `order` sorts items inside, so that those of one length share a batch.
        """
        if self.memory is not None and self.memory.chunk_size is not None:
            batch_size = min(batch_size, self.memory.chunk_size)
        indices = sorted(range(len(items)), key=(lambda i: order(items[i])) if order else None)
        batches = [indices[rows] for rows in batch_slices(len(indices), batch_size)]
        if show_progress_bar is None:
            show_progress_bar = len(batches) > 1 and sys.stderr.isatty()
        vectors = torch.empty(len(items), self.output_dim, device=self.device)
        with self.inference():
            for batch in track(batches, "Encoding", disable=not show_progress_bar, console=_stderr()):
                vectors[batch] = embed([items[index] for index in batch]).float()
        return vectors


def batch_slices(count: int, batch_size: int) -> list[slice]:
    """Slices of `batch_size` that cover `count` items. Raises OptionError for a size below one."""
    if batch_size < 1:
        raise OptionError(f"batch_size: expected a positive number, got {batch_size}")
    return [slice(start, start + batch_size) for start in range(0, count, batch_size)]


@contextmanager
def random_from(seed: int | None) -> Generator[None]:
    """Inside, random weights are those of `seed`, and the global generator is left as it was; None changes nothing."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def seeded(build: Callable[[], Module], seed: int | None) -> Module:
    """What `build` makes, with random weights that `seed` repeats; the global generator stays untouched by a seed."""
    with random_from(seed):
        return build()


def as_output(
    vectors: Tensor,
    *,
    single: bool,
    convert_to_numpy: bool,
    convert_to_tensor: bool,
    normalize_embeddings: bool,
    truncate_dim: int | None,
) -> Vectors:
    """(N, D) as sentence-transformers gives it: numpy, or one tensor, or a list of tensors; one item gives (D,).

    The order is theirs: cut to `truncate_dim` (Matryoshka models), then normalise.
    """
    if truncate_dim is not None:
        if not 1 <= truncate_dim <= vectors.shape[1]:
            raise OptionError(f"truncate_dim: expected 1 to {vectors.shape[1]}, got {truncate_dim}")
        vectors = vectors[:, :truncate_dim]
    if normalize_embeddings:
        vectors = F.normalize(vectors, dim=-1)
    out = vectors[0] if single else vectors
    if convert_to_tensor:
        return out
    if convert_to_numpy:
        array: NDArray[np.float32] = out.cpu().numpy()
        return array
    return out if single else list(out)


def _matrix(vectors: Vectors) -> Tensor:
    if isinstance(vectors, list):
        vectors = torch.stack([torch.as_tensor(vector) for vector in vectors])
    matrix = torch.as_tensor(vectors).float()
    return matrix[None] if matrix.ndim == 1 else matrix


def _stderr() -> Any:
    from rich.console import Console  # noqa: PLC0415  made anew, so that it writes to today's stderr

    return Console(stderr=True)
