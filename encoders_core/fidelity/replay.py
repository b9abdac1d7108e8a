"""The speed of a model without trained weights at the row counts that a trained one needed: rows recorded, rows replayed.

Which tokens they are does not matter to the time, how many each layer computes does. Nothing here says anything of the
larger model's fidelity: with random weights it has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders_core.errors import OptionError
from encoders_core.fidelity.engine_policies import EngineTokens
from encoders_core.fidelity.frame_policies import Plain, held
from encoders_core.fidelity.policy import ATTENTION, Frame, Policy, Rows, Step
from encoders_core.fidelity.reference_policies import Selector, Site
from encoders_core.fidelity.run import Clip, Trace, run_clip, warm_times_ns
from encoders_core.fidelity.subject import DenseVitEncoder, Subject


@dataclass(frozen=True, slots=True)
class Recording:
    """What each frame of a clip cost: its rows by layer, or None for a frame that was held. `tokens` of a full layer."""

    rows: list[Rows | None]
    tokens: int

    @classmethod
    def of(cls, trace: Trace, tokens: int) -> "Recording":
        """From a policy's trace. Raises OptionError when it does not count its rows by layer."""
        rows = [detail if encoded else None for detail, encoded in zip(trace.detail, trace.encoded, strict=True)]
        if not trace.counts_layers:
            raise OptionError("this policy does not count its rows by layer; there is nothing to replay")
        return cls(rows, tokens)

    def for_model(self, depth: int, tokens: int) -> "Recording":
        """The same for a model of another depth and number of tokens: the nearest block, the same share of its rows."""
        scaled: list[Rows | None] = []
        for rows in self.rows:
            if rows is None:
                scaled.append(None)
                continue
            blocks = np.rint(np.linspace(0, len(rows) - 1, depth)).astype(int)
            shares = np.rint(rows[blocks] * (tokens / self.tokens)).astype(np.int64)
            scaled.append(np.clip(shares, 1, tokens))
        return Recording(scaled, tokens)


class Replay:
    """A policy that computes exactly the recorded number of rows in each layer of each frame, whatever it shows."""

    name = "replay"

    def __init__(self, vit: DenseVitEncoder, recording: Recording) -> None:
        self._vit = vit
        self._rows = recording.for_model(vit.network.config.depth, vit.cost.tokens).rows
        self._gated = EngineTokens(self.name, vit, self._selector, looks=self._looks)
        self.reset()

    def reset(self) -> None:
        """Back to the first frame."""
        self._next, self._features = 0, np.zeros(0, np.float32)
        self._gated.reset()

    def step(self, frame: Frame, at_ns: int) -> Step:
        """The next recorded frame's work on this one."""
        rows, self._next = self._rows[self._next], self._next + 1
        if rows is None:
            return held(self._vit, self._features)
        self._wanted = rows
        step = self._gated.step(frame, at_ns)
        self._features = step.features
        return step

    def _looks(self, block: int) -> int:
        return int(self._wanted[block, ATTENTION])

    def _selector(self) -> Selector:
        def select(site: Site, change: Tensor, _scale: float) -> Tensor:
            chosen = torch.zeros(change.shape[0], dtype=torch.bool)
            chosen[: int(self._wanted[site.block, site.layer])] = True
            return chosen

        return select


def replay(subject: Subject, clips: Sequence[Clip], recordings: Sequence[Recording]) -> dict[str, Any]:
    """Plain and replay taking turns over the clips -> CPU milliseconds a frame of both, by clip and over all.

    Raises OptionError for a model that is no ViT.
    """
    if subject.vit is None:
        raise OptionError(f"{subject.name}: expected a ViT to replay rows on")
    rows, every = [], ([], [])  # type: ignore[var-annotated]
    for clip, recording in zip(clips, recordings, strict=True):
        sized = _sized(clip, subject)
        policies: list[Policy] = [Plain(subject.encoder), Replay(subject.vit, recording)]
        traces = run_clip(policies, sized)
        times = [warm_times_ns(trace, clip.at_s) for trace in traces]
        for total, part in zip(every, times, strict=True):
            total.extend(part)
        rows.append({"name": clip.name, "macs": float(np.mean(traces[1].macs)), **_ratio(*times)})
    return {"weights": "random: speed only", "kernel": "engine", **_ratio(*every), "clips": rows}


def _ratio(plain_ns: list[int], replayed_ns: list[int]) -> dict[str, float]:
    plain_ms, replay_ms = float(np.mean(plain_ns)) / 1e6, float(np.mean(replayed_ns)) / 1e6
    return {"plain_ms": plain_ms, "replay_ms": replay_ms, "times_less": plain_ms / replay_ms}


def _sized(clip: Clip, subject: Subject) -> Clip:
    """The clip with frames of the model's size; what they show does not matter here."""
    size_hw = subject.spec.size_hw
    frames = [np.ascontiguousarray(np.resize(frame, (*size_hw, 3))) for frame in clip.frames]
    return Clip(clip.name, frames, clip.at_ns)
