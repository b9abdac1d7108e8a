"""The temporal heads frame by frame: exact, in constant time and memory, from rings of keys and values, or hidden states.

Each ring keeps every entry twice, `window` places apart, so that the last entries always lie in one contiguous slice in
time order: the sums run in the order of the batch computation, and nothing is copied or rolled.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from encoders_core.config import TemporalConfig
from encoders_core.errors import InputError
from encoders_core.models.temporal import TemporalHead, attend
from encoders_core.models.temporal_heads import SequenceConfig, SequenceHead, SequenceState


@dataclass(slots=True)
class TemporalState:
    """What the head remembers of B streams in step. Its size does not depend on how long they have run."""

    rings: list[Tensor]
    """Keys and values of each layer, (B, H, 2 * window, d), then the features, (B, 2 * window, D)."""
    steps: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the rings take."""
        return sum(ring.nbytes for ring in self.rings)

    def reset(self) -> None:
        """Forget everything: as a state just made."""
        for ring in self.rings:
            ring.zero_()
        self.steps = 0


class TemporalStepper:
    """Runs a head one frame at a time; equal to `head(features)` on everything seen since the state was new."""

    def __init__(self, head: TemporalHead) -> None:
        self.head, self.config = head.eval(), head.config
        self._window = head.config.window

    def new_state(self, streams: int = 1) -> TemporalState:
        """A state for `streams` streams that advance together."""
        config = self.head.config
        places = 2 * config.window
        per_layer = (streams, config.num_heads, places, config.width // config.num_heads)
        rings = [torch.zeros(per_layer) for _ in range(2 * config.depth)]
        return TemporalState([*rings, torch.zeros(streams, places, self.head.dim)])

    @torch.inference_mode()
    def step(self, state: TemporalState, features: Tensor, *, update: bool = True) -> Tensor:
        """(B, D) float32, the next frame of each stream -> (B, D) float32.

        With `update=False` the output is the same and the state stays as it was, to the bit.
        """
        expected = (state.rings[-1].shape[0], self.head.dim)
        if tuple(features.shape) != expected:
            raise InputError(f"expected features of shape {expected}, got {tuple(features.shape)}")
        before = [] if update else self._entries(state)
        output = self._run(state, features)
        if update:
            state.steps += 1
        else:
            self._restore(state, before)
        return output

    def _run(self, state: TemporalState, features: Tensor) -> Tensor:
        head = self.head
        seen = min(state.steps + 1, self._window)
        bias = head.bias(torch.arange(seen - 1, -1, -1)[None, :])
        x = head.embed(head.norm_in(features))[:, None]
        for index, layer in enumerate(head.causal_layers()):
            query, key, value = layer.project(x)
            keys = self._push(state, 2 * index, key[:, :, 0])
            values = self._push(state, 2 * index + 1, value[:, :, 0])
            x = layer.finish(x, attend(query, keys, values, bias))
        mean = self._push(state, -1, features).mean(1)
        output: Tensor = mean + head.correct(head.norm_out(x[:, 0]))
        return output

    def _push(self, state: TemporalState, ring_index: int, entry: Tensor) -> Tensor:
        """Write an entry at the ring's present place, both halves; the last entries in time order, this one included."""
        ring = state.rings[ring_index]
        place = state.steps % self._window
        ring[..., place, :] = entry
        ring[..., place + self._window, :] = entry
        seen = min(state.steps + 1, self._window)
        return ring[..., place + self._window + 1 - seen : place + self._window + 1, :]

    def _entries(self, state: TemporalState) -> list[Tensor]:
        place = state.steps % self._window
        return [ring[..., place, :].clone() for ring in state.rings]

    def _restore(self, state: TemporalState, entries: list[Tensor]) -> None:
        place = state.steps % self._window
        for ring, entry in zip(state.rings, entries, strict=True):
            ring[..., place, :] = entry
            ring[..., place + self._window, :] = entry


class SequenceStepper:
    """The same for a recurrence, convolutions, or a transformer with positions that know of gaps."""

    def __init__(self, dim: int, config: TemporalConfig) -> None:
        self.config = config
        sequence = SequenceConfig(
            kind=config.kind,
            depth=config.depth,
            width=config.width,
            num_heads=config.num_heads,
            max_distance=config.window - 1,
            attention=config.kind == "transformer",
            causal=True,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.head = SequenceHead(dim, sequence).eval()

    def new_state(self) -> SequenceState:
        """A state for streams that advance together."""
        return self.head.new_state()

    @torch.inference_mode()
    def step(self, state: SequenceState, features: Tensor, *, gap: int = 1) -> Tensor:
        """(B, D) float32, the next frame of each stream, `gap` frames after the last -> (B, D) float32."""
        return self.head.step(state, features, gap=gap)


def temporal_stepper(dim: int, config: TemporalConfig) -> TemporalStepper | SequenceStepper:
    """The head that `config` asks for, untrained, ready for frames of `dim` features."""
    if config.kind == "transformer" and config.skipped != "dt":
        return TemporalStepper(TemporalHead(dim, config))
    return SequenceStepper(dim, config)
