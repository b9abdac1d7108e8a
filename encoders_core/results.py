"""What `encode` returns: features with what was asked for beside them; batches of results join with `torch.cat`."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders_core.errors import InputError

Result = TypeVar("Result", bound="EncodingResult")

_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


@dataclass(frozen=True, kw_only=True, repr=False)
class EncodingResult:
    """Features of a batch, (B, D) float32, and fields that are None where they were not asked for.

    `torch.cat([result, result])` joins results along the batch, every field with it; any other torch function sees
    `features`, and so does numpy.
    """

    features: Tensor

    def __len__(self) -> int:
        return self.features.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.features.detach().cpu().numpy(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        fields = (f"{field.name}={_show(getattr(self, field.name))}" for field in dataclasses.fields(self))
        return f"{type(self).__name__}({', '.join(fields)})"

    @classmethod
    def align(cls, results: "Sequence[Any]") -> "Sequence[Any]":
        """Results made ready to be joined: where sizes may differ beside the batch, a kind of result pads here."""
        return results

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch when a result stands where a tensor is expected."""
        kwargs = kwargs or {}
        if func in _CONCATENATIONS:
            results, dim = args[0] if args else kwargs["tensors"], kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if all(isinstance(result, EncodingResult) for result in results):
                return join(results, dim)
        return func(*_features(args), **{key: _features(value) for key, value in kwargs.items()})


def join(results: Sequence[Result], dim: int = 0) -> Result:
    """Results of one kind, one after the other along the batch. Raises InputError when they do not fit together."""
    if dim != 0:
        raise InputError(f"results join along the batch, dim=0, got dim={dim}; join their .features for anything else")
    kind = type(results[0])
    if any(type(result) is not kind for result in results):
        raise InputError(f"expected results of one kind, got {sorted({type(result).__name__ for result in results})}")
    results = kind.align(results)
    return kind(**{field.name: _join_field(field.name, results) for field in dataclasses.fields(kind)})


@dataclass(frozen=True, kw_only=True, repr=False)
class VisionResult(EncodingResult):
    """Features of pictures, (B, D) float32; without pooling (B, N, D)."""

    attention_weights: Tensor | None = None
    """(B, layers, heads, N, N): of each layer, who looks at whom; rows sum to 1."""
    patch_features: Tensor | None = None
    """(B, h, w, embed_dim): the patches' tokens after the final norm, where they lie in the picture."""
    confidence: Tensor | None = None
    """(B,) 0 to 1: how little the features depend on how the picture is looked at, see `VisionEncoder.encode`."""
    grid_hw: tuple[int, int]
    """Patches down and across."""
    prefix: int
    """Class and register tokens in front of the patches in `attention_weights`."""

    @property
    def attention_rollout(self) -> Tensor | None:
        """(B, h, w): how much each patch flows into the feature over all layers; each map sums to 1.

        The class token's row of the rollout, or the mean of all rows where there is no class token.
        """
        if self.attention_weights is None:
            return None
        return rollout_map(attention_rollout(self.attention_weights), self.grid_hw, self.prefix)


@dataclass(frozen=True, kw_only=True, repr=False)
class TextResult(EncodingResult):
    """Features of texts, (B, D) float32."""

    attention_weights: Tensor | None = None
    """(B, layers, heads, L, L): of each layer, which token looks at which; rows sum to 1."""
    mask: Tensor
    """(B, L) True where a token is no padding."""


def rollout_map(rollout: Tensor, grid_hw: tuple[int, int], prefix: int) -> Tensor:
    """(B, N, N) -> (B, h, w): the class token's row, or the mean of all rows where there is none; each sums to 1."""
    row = rollout[:, 0] if prefix else rollout.mean(dim=1)
    patches = row[:, prefix:]
    return (patches / patches.sum(dim=1, keepdim=True)).reshape(-1, *grid_hw)


def attention_rollout(weights: Tensor) -> Tensor:
    """(B, layers, heads, N, N) -> (B, N, N): attention through all layers, residuals counted as half of each.

    Abnar and Zuidema, https://arxiv.org/abs/2005.00928.
    """
    rollout = rollout_step(weights[:, 0])
    for layer in range(1, weights.shape[1]):
        rollout = rollout_step(weights[:, layer]) @ rollout
    return rollout


def rollout_step(weights: Tensor) -> Tensor:
    """One layer of it: (B, heads, N, N) -> (B, N, N), the mean over heads and the residual, half of each."""
    mixed = weights.mean(dim=1)
    return 0.5 * mixed + 0.5 * torch.eye(mixed.shape[-1], device=mixed.device, dtype=mixed.dtype)


def _join_field(name: str, results: Sequence[EncodingResult]) -> Any:
    return _join_values(name, [getattr(result, name) for result in results])


def _join_values(name: str, values: list[Any]) -> Any:
    if all(isinstance(value, Mapping) for value in values) and all(
        value.keys() == values[0].keys() for value in values
    ):
        return {key: _join_values(f"{name}[{key!r}]", [value[key] for value in values]) for key in values[0]}
    if all(isinstance(value, Tensor) for value in values):
        return torch.cat(values)
    if any(isinstance(value, Tensor | Mapping) for value in values):
        raise InputError(f"{name} is there in some of the results only: encode all with the same options")
    if any(value != values[0] for value in values):
        raise InputError(f"{name} differs between the results: {values[0]} and others")
    return values[0]


def _features(value: Any) -> Any:
    if isinstance(value, EncodingResult):
        return value.features
    if isinstance(value, tuple | list):
        return type(value)(_features(item) for item in value)
    return value


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return repr(value)
