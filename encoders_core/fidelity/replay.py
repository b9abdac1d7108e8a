"""The speed of a model without trained weights at the row counts that a trained one needed: rows recorded, rows replayed.

Which tokens they are does not matter to the time, how many each layer computes does. Nothing here says anything of the
larger model's fidelity: with random weights it has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from encoders_core.draining import drain
from encoders_core.errors import OptionError
from encoders_core.fidelity.frame_policies import Plain, held
from encoders_core.fidelity.policy import ATTENTION, Frame, Policy, Rows, Step
from encoders_core.fidelity.run import Clip, Trace, run_clip, warm_times_ns
from encoders_core.fidelity.subject import DenseVitEncoder, Subject
from encoders_core.realtime.tokens.cache import GATES, TokenCache
from encoders_core.realtime.tokens.embedding import PatchMemory
from encoders_core.realtime.tokens.lane import Counts, Lane
from encoders_core.realtime.tokens.passes import TokenPasses
from encoders_core.realtime.tokens.plain import Floats

_NEVER: Final = 1e30
"""A limit that nothing finite passes."""
CAMERAS: Final = (1, 4)
"""How many cameras share a pass in the replays: alone, and packed."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What each frame of a clip cost: its rows by layer, or None for a frame that was held. `tokens` of a full layer."""

    rows: list[Rows | None]
    tokens: int
    embedded: list[int | None]
    """Patches that each frame had embedded; None for all."""

    @classmethod
    def of(cls, trace: Trace, tokens: int) -> "Recording":
        """From a policy's trace. Raises OptionError when it does not count its rows by layer."""
        rows = [detail if encoded else None for detail, encoded in zip(trace.detail, trace.encoded, strict=True)]
        if not trace.counts_layers:
            raise OptionError("this policy does not count its rows by layer; there is nothing to replay")
        return cls(rows, tokens, trace.embedded)

    @classmethod
    def whole(cls, frames: int, tokens: int) -> "Recording":
        """Every row of every layer in each frame: full passes by the engine's own arithmetic."""
        return cls([np.full((1, len(Counts._fields)), tokens)] * frames, tokens, [None] * frames)

    def for_model(self, depth: int, tokens: int) -> "Recording":
        """The same for a model of another depth and number of tokens: the nearest block, the same share of rows and patches."""
        scaled: list[Rows | None] = []
        for rows in self.rows:
            if rows is None:
                scaled.append(None)
                continue
            blocks = np.rint(np.linspace(0, len(rows) - 1, depth)).astype(int)
            shares = np.rint(rows[blocks] * (tokens / self.tokens)).astype(np.int64)
            scaled.append(np.clip(shares, 1, tokens))
        patches = [None if one is None else round(one * tokens / self.tokens) for one in self.embedded]
        return Recording(scaled, tokens, patches)


class Replay:
    """A policy that computes exactly the recorded number of rows in each layer of each frame, whatever it shows.

    A held frame is looked at: embedded and measured against the first gate. With `cameras`, so many cameras show each
    frame, one of them the clip as recorded, the others the same further on, and their rows go through the layers together.
    """

    name = "replay"

    def __init__(self, vit: DenseVitEncoder, recording: Recording, cameras: int = 1) -> None:
        self._vit, self._passes, self._cameras = vit, TokenPasses(vit.network), cameras
        made = recording.for_model(vit.network.config.depth, vit.cost.tokens)
        self._limits = [None if one is None else _limits(one, vit.cost.tokens) for one in made.rows]
        self._looked = [None if one is None else one[:, ATTENTION] for one in made.rows]
        patches = vit.cost.tokens - vit.network.config.prefix
        self._patch_limits = [_first(patches if one is None else one, patches) for one in made.embedded]
        self.reset()

    def reset(self) -> None:
        """Back to the first frame."""
        self._next, self._features = 0, np.zeros(0, np.float32)
        self._caches = [TokenCache() for _ in range(self._cameras)]

    def step(self, frame: Frame, at_ns: int) -> Step:  # noqa: ARG002  it compares frames, not times
        """The next recorded frame's work on this one, for each camera."""
        lanes = [self._lane(camera, frame) for camera in range(self._cameras)]
        self._next += 1
        if any(lanes):
            features = drain(self._passes.gated([lane for lane in lanes if lane is not None]))
            if lanes[0] is not None:
                self._features = features[0]
        if lanes[0] is None:
            return held(self._vit, self._features)
        return self._vit.cost.step(self._features, np.asarray(lanes[0].counts))

    def _lane(self, camera: int, frame: Frame) -> Lane | None:
        """What a camera computes of its next frame; None if it holds."""
        cache, spec = self._caches[camera], self._vit.descriptor.input
        if not cache.warm:
            cache.patches = PatchMemory(frame.copy(), self._passes.embed(frame, spec))
            drain(self._passes.dense(cache, cache.patches.tokens))
        place = (self._next + camera * len(self._limits) // self._cameras) % len(self._limits)
        cache.patch_limits = self._patch_limits[place]
        tokens, _ = self._passes.embed_changed(cache, frame, spec)
        limits, looked = self._limits[place], self._looked[place]
        if limits is None or looked is None:
            self._passes.first_change(cache, tokens)
            return None
        cache.limits = limits
        for block, count in zip(cache.blocks, looked, strict=True):
            block.watch.drift[:], block.watch.slope[:] = 0.0, 0.0
            block.watch.drift[:count] = np.inf  # so that attention has to look, and finds that it need not compute
        return Lane(cache, tokens.copy())


def _limits(rows: Rows, tokens: int) -> Floats:
    """(depth, 5) rows of each layer -> (depth, gates, N) limits that let the first of them through, and no others."""
    counts = np.stack([rows[:, Counts._fields.index(gate)] for gate in GATES], axis=1)
    return _first(counts[..., None], tokens)


def _first(counts: Any, places: int) -> Floats:
    """(..., 1) counts, or one -> (..., N) limits that let the first so many of N places through, and no others."""
    return np.where(np.arange(places) < counts, np.float32(-1), np.float32(_NEVER))


def replay(
    subject: Subject, clips: Sequence[Clip], recordings: Sequence[Recording], cameras: Sequence[int] = (1,)
) -> dict[str, Any]:
    """Plain and replays taking turns over the clips -> CPU milliseconds a frame of each, by clip and over all.

    One replay for each of `cameras`: the first is reported as `replay_ms`, all by their number. `engine_full_ms` are full passes
    by the arithmetic of the replays, gates included, where `plain_ms` are the network's own: what of the ratio is arithmetic.
    Raises OptionError for a model that is no ViT.
    """
    if subject.vit is None:
        raise OptionError(f"{subject.name}: expected a ViT to replay rows on")
    rows: list[dict[str, Any]] = []
    every: list[list[int]] = [[] for _ in (0, 0, *cameras)]
    for clip, recording in zip(clips, recordings, strict=True):
        sized = _sized(clip, subject)
        policies: list[Policy] = [
            Plain(subject.encoder),
            Replay(subject.vit, Recording.whole(len(clip.frames), recording.tokens)),
            *(Replay(subject.vit, recording, count) for count in cameras),
        ]
        traces = run_clip(policies, sized)
        times = [warm_times_ns(trace, clip.at_s) for trace in traces]
        for total, part in zip(every, times, strict=True):
            total.extend(part)
        rows.append({"name": clip.name, "macs": float(np.mean(traces[2].macs)), **_ratios(times, cameras)})
    return {"weights": "random: speed only", "kernel": "engine", **_ratios(every, cameras), "clips": rows}


def _ratios(times_ns: Sequence[Sequence[int]], cameras: Sequence[int]) -> dict[str, Any]:
    """Of plain passes, the engine's full ones and the replays: milliseconds a frame of one camera."""
    plain_ms, full_ms, *replay_ms = (float(np.mean(one)) / 1e6 for one in times_ns)
    each_ms = [ms / count for ms, count in zip(replay_ms, cameras, strict=True)]
    packed = {str(count): plain_ms / ms for ms, count in zip(each_ms, cameras, strict=True)}
    return {
        "plain_ms": plain_ms,
        "engine_full_ms": full_ms,
        "replay_ms": each_ms[0],
        "times_less": plain_ms / each_ms[0],
        "times_less_by_cameras": packed,
    }


def _sized(clip: Clip, subject: Subject) -> Clip:
    """The clip with frames of the model's size; what they show does not matter here."""
    size_hw = subject.spec.size_hw
    frames = [np.ascontiguousarray(np.resize(frame, (*size_hw, 3))) for frame in clip.frames]
    return Clip(clip.name, frames, clip.at_ns)
