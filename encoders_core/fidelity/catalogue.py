"""The policies by name: how each is made for a model, what its knob means, where it stands by default and in a sweep."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from encoders_core.config import QUALITY_TARGETS
from encoders_core.errors import OptionError
from encoders_core.fidelity.camvec_policy import Camvec
from encoders_core.fidelity.engine_policies import EngineRandom, EngineStaleKV, EngineThreshold
from encoders_core.fidelity.frame_policies import GatedFrames, Hold, LowResolution, Plain, sizes
from encoders_core.fidelity.policy import Policy
from encoders_core.fidelity.reference_policies import TokenPolicy, over_threshold
from encoders_core.fidelity.subject import DenseVitEncoder, Subject

TAUS: Final = (0.01, 0.02, 0.035, 0.05, 0.08, 0.12, 0.2)
TARGETS: Final = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.08, 0.16)
TARGET_FVU: Final = QUALITY_TARGETS["balanced"]


@dataclass(frozen=True)
class Entry:
    """One policy of the table: `make` from the knob, its default, and the knobs of a sweep."""

    name: str
    make: Callable[[float], Policy]
    knob: float
    sweep: tuple[float, ...]
    knob_word: str
    kernel: str
    """Whose arithmetic is timed: that of the plain encoder, the engine that ships, or the plain reference."""
    budget_of: str | None = None
    """The policy whose share of tokens on a clip becomes this one's knob there."""


def catalogue(subject: Subject) -> dict[str, Entry]:
    """The policies that `subject` can run, by name, plain first."""
    encoder = subject.encoder
    entries = [
        Entry("plain", lambda _: Plain(encoder), 0, (), "none", "plain"),
        *(_hold(subject, every) for every in (2, 3, 5)),
        Entry(
            "frame_gate",
            lambda target: GatedFrames(encoder, target),
            TARGET_FVU,
            TARGETS,
            "target FVU",
            "plain",
        ),
        *(_tokens(subject.vit) if subject.vit is not None else ()),
        *_lower(subject),
        Entry("camvec", lambda target: Camvec(subject, target), TARGET_FVU, TARGETS, "target FVU", "ships"),
    ]
    return {entry.name: entry for entry in entries}


def _hold(subject: Subject, every: int) -> Entry:
    return Entry(f"hold{every}", lambda n: Hold(subject.encoder, int(n)), every, (every,), "frames", "plain")


def _tokens(vit: DenseVitEncoder) -> tuple[Entry, ...]:
    """All on the engine's kernels but STGT: a lane cannot overwrite the reference of a row that it does not compute."""

    def forgetful(tau: float) -> Policy:
        return TokenPolicy("stgt", vit, lambda: over_threshold(tau), forget=True)

    word, levels, shares = "threshold, share of an input's length", (0.25, 0.5, 1, 2, 4), (0.1, 0.2, 0.4, 0.6, 0.8)
    return (
        Entry("stale_kv", lambda level: EngineStaleKV(vit, level), 1.0, levels, "grey levels", "engine"),
        Entry("tokenwise", lambda tau: EngineThreshold(vit, tau), 0.05, TAUS, word, "engine"),
        Entry("stgt", forgetful, 0.05, TAUS, word, "reference"),
        Entry(
            "random",
            lambda share: EngineRandom(vit, share),
            0.3,
            shares,
            "share of tokens",
            "engine",
            budget_of="camvec",
        ),
    )


def _lower(subject: Subject) -> tuple[Entry, ...]:
    known = sizes(subject)
    if not known:
        return ()
    sweep = tuple(float(size) for size in known)
    knob = sweep[min(1, len(sweep) - 1)]
    return (Entry("lowres", lambda size: LowResolution(subject, int(size)), knob, sweep, "pixels", "plain"),)


def choose(entries: dict[str, Entry], names: list[str]) -> list[Entry]:
    """The entries called so, `plain` always first; all of them for no names. Raises OptionError for an unknown one."""
    if unknown := [name for name in names if name not in entries]:
        raise OptionError(f"unknown policy {', '.join(unknown)} for this model; there are: {', '.join(entries)}")
    wanted = names or list(entries)
    return [entry for name, entry in entries.items() if name == "plain" or name in wanted]
