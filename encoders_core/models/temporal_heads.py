"""Temporal models over the frames of a clip: (B, T, D) frame features -> (B, T, D), of four kinds.

Output = input + a correction whose last projection starts at zero: an untrained head is the identity, so what pools its
output sees the frame features as they were trained. `causal` heads let a frame look back only; they also run frame by
frame (`step`), equal to the batch computation. Distances are counted in frames of the clip as it was sampled.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from encoders_core.config import TemporalKind
from encoders_core.errors import InputError, OptionError
from encoders_core.models.layers import init_weights
from encoders_core.models.positions import sincos_1d
from encoders_core.models.rings import Ring
from encoders_core.models.temporal_layers import AttentionLayers, ConvLayers, RecurrentLayers

TemporalPosition = Literal["sinusoidal", "learnable", "none"]


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """One temporal model.

    `max_distance`: no frame takes from one further away, in any attention layer, over the whole recurrence, over all
    convolutions (which reach 2^depth - 1 frames at most); None is without limit. `attention`: a layer of temporal
    attention behind a recurrence or convolutions; a transformer consists of it.
    """

    kind: TemporalKind = "transformer"
    depth: int = 4
    width: int = 768
    num_heads: int = 12
    position: TemporalPosition = "sinusoidal"
    max_distance: int | None = 64
    attention: bool = True
    causal: bool = False
    max_frames: int = 64
    """Rows of a learnable table of positions."""

    def __post_init__(self) -> None:
        for name, known in (("kind", TemporalKind), ("position", TemporalPosition)):
            if getattr(self, name) not in get_args(known):
                raise OptionError(f"{name}: expected one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if min(self.depth, self.width, self.num_heads, self.max_frames) < 1:
            raise OptionError(f"depth, width, num_heads, max_frames: expected positive numbers, got {self}")
        if self.width % self.num_heads:
            raise OptionError(f"expected a width that {self.num_heads} heads divide, got {self.width}")
        if self.max_distance is not None and self.max_distance < 1:
            raise OptionError(f"max_temporal_distance: expected a positive number of frames, got {self.max_distance}")
        if self.kind == "transformer" and not self.attention:
            raise OptionError(
                "temporal_attention: a transformer consists of it and cannot be without; choose lstm, gru or conv3d"
            )


@dataclass(slots=True)
class SequenceState:
    """What a causal head remembers of B streams in step. After the first step its size stays."""

    index: int = 0
    """Position of the next frame."""
    steps: int = 0
    """Frames seen."""
    body: list[Any] = field(default_factory=list)
    attention: list[Any] = field(default_factory=list)

    def reset(self) -> None:
        """Forget everything: as a state just made."""
        self.index, self.steps, self.body, self.attention = 0, 0, [], []

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors in it take."""
        return sum(tensor.untyped_storage().nbytes() for tensor in _tensors([self.body, self.attention]))


class SequenceHead(nn.Module):
    """The head's weights, its batch computation, and, when causal, its steps.

    `dim` is the width of the frame features; `map_dim` that of the feature maps, which conv3d works on when it is given.
    """

    def __init__(self, dim: int, config: SequenceConfig, map_dim: int | None = None) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        self.map_dim = map_dim if config.kind == "conv3d" else None
        source, width, reach = self.map_dim or dim, config.width, config.max_distance
        self.norm_in, self.embed = nn.LayerNorm(source), nn.Linear(source, width)
        rows = torch.empty(1, config.max_frames, width)
        self.pos_embed = nn.Parameter(rows) if config.position == "learnable" else None
        self.body: AttentionLayers | RecurrentLayers | ConvLayers
        if config.kind == "transformer":
            self.body = AttentionLayers(width, config.num_heads, config.depth, reach, causal=config.causal)
        elif config.kind == "conv3d":
            self.body = ConvLayers(width, config.depth, reach, causal=config.causal)
        else:
            self.body = RecurrentLayers(config.kind, width, config.depth, reach, causal=config.causal)
        has_attention = config.attention and config.kind != "transformer"
        self.attention = (
            AttentionLayers(width, config.num_heads, 1, reach, causal=config.causal) if has_attention else None
        )
        self.norm_out, self.correct = nn.LayerNorm(width), nn.Linear(width, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights inside, zero in the projection that adds the correction."""
        self.apply(init_weights)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.zeros_(self.correct.weight)

    def forward(
        self,
        features: Tensor,
        mask: Tensor | None = None,
        maps: Tensor | None = None,
        attention: list[Tensor] | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) features, (B, T) True where a frame is one, maps (B, T, h, w, C) for conv3d -> (B, T, D).

        A list in `attention` receives the weights of each attention layer, (B, heads, T, T). `index`: (T,) the position of
        each frame, where some between them were skipped.
        """
        if index is None:
            index = torch.arange(features.shape[1], device=features.device)
        x = self.body(self._start(features, maps, index), mask, attention)
        if self.attention is not None:
            x = self.attention(x, mask, attention)
        corrected: Tensor = features + self.correct(self.norm_out(x))
        return corrected

    def new_state(self) -> SequenceState:
        """A state for streams that advance together. Raises OptionError when this head cannot run frame by frame."""
        if not self.config.causal:
            raise OptionError("this temporal head looks ahead, so it cannot run frame by frame: configure causal=True")
        layers = (self.body, self.attention)
        if self.config.max_distance is None and any(isinstance(part, AttentionLayers) for part in layers):
            raise OptionError("attention frame by frame needs a max_temporal_distance, or its memory would never end")
        return SequenceState()

    @property
    def receptive_field(self) -> int | None:
        """How many frames, the present one included, can change an output of a causal head; None: all before it."""
        reach, layers = self.config.max_distance, self.config.depth if self.config.kind == "transformer" else 1
        if reach is None and not (isinstance(self.body, ConvLayers) and self.attention is None):
            return None
        body = sum(self.body.gaps) if isinstance(self.body, ConvLayers) else layers * (reach or 0)
        return body + 1 + (reach or 0) * (self.attention is not None)

    def is_warm(self, state: SequenceState) -> bool:
        """Whether the next output sees as many frames as it can; before that it goes by fewer. Never without a limit."""
        return self.receptive_field is not None and state.steps + 1 >= self.receptive_field

    @torch.no_grad()
    def step(
        self,
        state: SequenceState,
        features: Tensor,
        maps: Tensor | None = None,
        *,
        update: bool = True,
        gap: int = 1,
    ) -> Tensor:
        """(B, D), the next frame of each stream, and its maps (B, h, w, C) for conv3d -> (B, D); advances `state`.

        With `update=False` the output is the same and the state stays as it was, to the bit (it is copied for this).
        `gap`: how many frames after the last this one is, where some were skipped; positions tell the model, as `index`
        of `forward` does. Raises InputError for a gap below 1, or one above in a head without positions.
        """
        if gap < 1 or (gap > 1 and self.config.position == "none"):
            raise InputError(f"gap: expected 1, or more in a head with positions, got {gap}")
        if not update:
            state = copy.deepcopy(state)
        if state.steps:
            state.index += gap - 1
        x = self._start(features[:, None], None if maps is None else maps[:, None], torch.tensor([state.index]))
        x = self.body.step(state.body, x)
        if self.attention is not None:
            x = self.attention.step(state.attention, x)
        state.index += 1
        state.steps += 1
        corrected: Tensor = features + self.correct(self.norm_out(x[:, 0]))
        return corrected

    def _start(self, features: Tensor, maps: Tensor | None, index: Tensor) -> Tensor:
        """What the body works on, positions added: (B, T, width), or for conv3d (B, T, h, w, width)."""
        if features.ndim != 3 or features.shape[-1] != self.dim:
            raise InputError(f"expected frame features (B, T, {self.dim}), got {tuple(features.shape)}")
        source = features
        if self.map_dim is not None:
            if maps is None or maps.ndim != 5 or maps.shape[-1] != self.map_dim:
                got = "none" if maps is None else tuple(maps.shape)
                raise InputError(f"conv3d: expected feature maps (B, T, h, w, {self.map_dim}), got {got}")
            source = maps
        elif self.config.kind == "conv3d":
            source = features[:, :, None, None]
        x: Tensor = self.embed(self.norm_in(source))
        positions = self._positions(index, x)
        if positions is None:
            return x
        return x + positions.view(1, -1, *(1,) * (x.ndim - 3), positions.shape[-1])

    def _positions(self, index: Tensor, like: Tensor) -> Tensor | None:
        """(T,) -> (T, width)."""
        if self.config.position == "none":
            return None
        if self.pos_embed is None:
            return sincos_1d(index.to(like.device), self.config.width).to(like)
        frames = int(index[-1]) + 1
        if frames > self.config.max_frames:
            raise InputError(
                f"positional_encoding 'learnable' holds {self.config.max_frames} frames, got {frames}; 'sinusoidal' has no end"
            )
        return self.pos_embed[0, index]


def _tensors(memory: Any) -> Iterator[Tensor]:
    if isinstance(memory, Tensor):
        yield memory
    elif isinstance(memory, Ring):
        yield memory.buffer
    elif isinstance(memory, list | tuple):
        for part in memory:
            yield from _tensors(part)
