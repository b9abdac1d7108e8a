"""How checkpoint families name their tensors: pure dict -> dict renames to the names used here.

A `Layout` knows a key that only its family has, the renames, and what the files leave unsaid (activation, epsilon,
how the positional table is resized).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from encoders_core.errors import WeightsError
from encoders_core.weights.files import Tensors

DROP: Final = None
Table = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Layout:
    """One family: its name for messages, its distinctive key, its renames in order, and its unsaid defaults."""

    name: str
    marker: str
    """A regular expression that some key of this family matches in full."""
    table: Table = ()
    finish: Callable[[Tensors], Tensors] = dict
    """What renaming alone cannot do: fusing, splitting, transposing."""
    defaults: dict[str, Any] = field(default_factory=dict)

    def convert(self, tensors: Tensors) -> Tensors:
        """The family's tensors under native names. The input is left as it is."""
        return self.finish(rename(tensors, self.table))


def rename(tensors: Tensors, table: Table) -> Tensors:
    """Apply every (pattern, replacement) of `table` in order to every key; replacement None drops the key."""
    patterns = [(re.compile(pattern), replacement) for pattern, replacement in table]
    renamed: Tensors = {}
    for key, value in tensors.items():
        new: str | None = key
        for pattern, replacement in patterns:
            if new is None or not pattern.search(new):
                continue
            new = None if replacement is None else pattern.sub(replacement, new)
        if new is not None:
            renamed[new] = value
    return renamed


def detect(tensors: Tensors, layouts: tuple[Layout, ...], source: str) -> Layout:
    """The first layout with a matching key. Raises WeightsError that shows some keys and the known families."""
    for layout in layouts:
        pattern = re.compile(layout.marker)
        if any(pattern.fullmatch(key) for key in tensors):
            return layout
    known = ", ".join(layout.name for layout in layouts)
    some = tuple(sorted(tensors)[:10])
    raise WeightsError(
        f"{source}: a foreign file: its keys ({', '.join(some)}, ...) are of none of the known families: {known}",
        unexpected=tuple(sorted(tensors)),
    )


def fuse(tensors: Tensors, parts: tuple[str, str, str], into: str) -> Tensors:
    """Stack `<block><part>.weight` and `.bias` of query, key and value into `<block><into>.*`.

    A part without the bias that its siblings have gets zeros (VideoMAE's keys).
    """
    fused: Tensors = {}
    pattern = re.compile(rf"(.*){re.escape(parts[0])}\.weight")
    taken: set[str] = set()
    for key in tensors:
        if not (match := pattern.fullmatch(key)):
            continue
        names = [match[1] + part for part in parts]
        weights = [tensors[f"{name}.weight"] for name in names if f"{name}.weight" in tensors]
        biases = [tensors.get(f"{name}.bias") for name in names]
        if len(weights) < 3:
            continue  # the strict load will name what is missing
        fused[f"{match[1]}{into}.weight"] = torch.cat(weights)
        if any(bias is not None for bias in biases):
            whole = [torch.zeros_like(w[:, 0]) if b is None else b for w, b in zip(weights, biases, strict=True)]
            fused[f"{match[1]}{into}.bias"] = torch.cat(whole)
        taken.update(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))
    return {key: value for key, value in tensors.items() if key not in taken} | fused


def transpose(tensors: Tensors, key: str) -> Tensors:
    """A copy with `key`, where present, transposed: projections stored as (width, dim) matrices."""
    return tensors | ({key: tensors[key].T.contiguous()} if key in tensors else {})


def unsqueeze_tokens(tensors: Tensors, keys: tuple[str, ...] = ("cls_token", "pos_embed")) -> Tensors:
    """A copy with the named tokens and tables as (1, rows, D)."""
    shaped = {key: tensors[key].reshape(1, -1, tensors[key].shape[-1]) for key in keys if key in tensors}
    return tensors | shaped


def fold_class_position(tensors: Tensors) -> Tensors:
    """Registers are inserted after positions: the class token's position joins the token, the table keeps patches."""
    if "reg_token" not in tensors:
        return tensors
    position = tensors["pos_embed"]
    return tensors | {"cls_token": tensors["cls_token"] + position[:, :1], "pos_embed": position[:, 1:].contiguous()}
