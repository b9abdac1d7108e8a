"""`camvec fit`: how many cameras like this one the machine bears, found by running them.

Each trial is the whole pipeline (capture, decode, encoder, broker, subscriber) with so many copies of the source: it starts in
a few seconds, and nothing of what a camera costs is left out. The number doubles until a trial fails, then the gap is halved.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from streaming.client import FeatureSubscriber
from streaming.config import Config, load_config, load_text
from streaming.frames import DROP_CAUSES
from streaming.logs import configure_logs
from workers.encoding import target_fvu_of
from workers.fit_report import as_yaml, trial_table
from workers.health import percentiles_ms
from workers.measure import Measurement, measuring

SETTLE_S: Final = 4.0
"""Before the figures of a trial count: cold passes, and gates that know nothing of their camera."""
AUDIT_SHARE: Final = 0.1
ENOUGH_AUDITS: Final = 20
MAX_LOST: Final = 0.02
"""Share of the frames that may be dropped: a camera that drops more is not one that the machine bears."""
_REFRESH_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Trial:
    """So many cameras for a while. `fvu` is None when too few frames were audited."""

    cameras: int
    fps: float
    """Frames a second of all cameras."""
    p50_ms: float | None
    p99_ms: float | None
    lost: float
    """Share of the frames that were dropped, and how many for which cause."""
    dropped: dict[str, int]
    encoded: float
    """Share of the frames that were encoded; the others were held or dropped."""
    fvu: float | None
    audited: int
    cpu_percent: float
    fault: str | None
    """Why this is too many; None: it holds."""

    @property
    def holds(self) -> bool:
        """Whether the machine bears this many."""
        return self.fault is None


@dataclass(slots=True)
class Bench:
    """The configuration to try, with copies of these sources; `told` hears how far a trial is, 0 to 1."""

    base: Config
    sources: list[str]
    seconds: float

    def config(self, count: int) -> Config:
        """The configuration with `count` cameras and the built-in broker."""
        cameras = {f"cam{n + 1}": _camera(self.sources[n % len(self.sources)]) for n in range(count)}
        kept = self.base.model_dump(mode="json", include={"model", "temporal", "encoder", "capture", "defaults"})
        kept["encoder"]["fidelity"]["audit"] = AUDIT_SHARE
        raw = {"node": "fit", "mqtt": {"embedded": True}, "logging": {"level": "error"}, "cameras": cameras, **kept}
        return load_text(json.dumps(raw), file="")

    async def run(self, count: int, told: Callable[[float], None]) -> Trial:
        """One trial."""
        config = self.config(count)
        audits: dict[str, dict[str, Any]] = {}
        async with measuring(config) as measured:
            listening = asyncio.create_task(_listen(measured.subscriber, audits), name="fidelity")
            try:
                await _wait(SETTLE_S, lambda share: told(share * SETTLE_S / (SETTLE_S + self.seconds)))
                measured.tallies.clear()
                before = measured.supervisor.totals()
                await _wait(
                    self.seconds, lambda share: told((SETTLE_S + share * self.seconds) / (SETTLE_S + self.seconds))
                )
                after = measured.supervisor.totals()
            finally:
                listening.cancel()
        return self._judged(measured, before, after, audits)

    def _judged(
        self,
        measured: Measurement,
        before: dict[str, dict[str, int]],
        after: dict[str, dict[str, int]],
        audits: dict[str, dict[str, Any]],
    ) -> Trial:
        def grown(*counters: str) -> int:
            return sum(row[name] - before[camera][name] for camera, row in after.items() for name in counters)

        frames = max(1, grown("captured"))
        spans = [span for tally in measured.tallies.values() for span in tally.spans_us]
        p50, _, p99 = percentiles_ms(spans) if spans else (None, None, None)
        causes: dict[str, int] = {
            cause: grown(cause) for cause in DROP_CAUSES if cause not in {"worker_lost", "stopped"}
        }
        lost = sum(causes.values()) / frames
        audited = sum(found["audited"] for found in audits.values())
        fvu = sum(found["audited"] * (found["fvu"] or 0.0) for found in audits.values()) / max(1, audited)
        known = fvu if audited >= ENOUGH_AUDITS else None
        return Trial(
            cameras=len(after),
            fps=round(frames / self.seconds, 1),
            p50_ms=p50,
            p99_ms=p99,
            lost=round(lost, 4),
            dropped={cause: count for cause, count in causes.items() if count},
            encoded=round(grown("encoded") / frames, 4),
            fvu=None if known is None else round(known, 5),
            audited=audited,
            cpu_percent=round(measured.cpu_percent, 1),
            fault=self._fault(p99, causes, known, frames),
        )

    def _fault(self, p99_ms: float | None, causes: dict[str, int], fvu: float | None, frames: int) -> str | None:
        budget_ms, target = self.base.encoder.budget_ms, target_fvu_of(self.base)
        if frames == 1 or p99_ms is None:
            return "no vectors came: look at the source with `camvec probe`"
        if p99_ms > budget_ms:
            return f"p99 {p99_ms:.0f} ms is over the budget of {budget_ms:g} ms"
        lost = sum(causes.values()) / frames
        if lost > MAX_LOST:
            return (
                f"{100 * lost:.0f} % of the frames were dropped, most of them as {max(causes, key=lambda c: causes[c])}"
            )
        if fvu is not None and fvu > target:
            return f"FVU {fvu:.3f} is over the target of {target:g}"
        return None


async def find_most(run: Callable[[int], Awaitable[Trial]], most: int) -> list[Trial]:
    """Trials, in order: doubling from one camera up to `most` until one fails, then halving the gap."""
    trials: list[Trial] = []
    holds, fails, count = 0, most + 1, 1
    while holds + 1 < fails:
        trials.append(await run(count))
        if trials[-1].holds:
            holds = count
        else:
            fails = count
        count = min(2 * holds, most) if fails > most else (holds + fails) // 2
    return trials


def run_fit(sources: list[str], *, config: str | None, seconds: float, most: int, as_json: bool) -> None:
    """Try, with a progress bar, and print the trials and the configuration to use."""
    base = (
        load_config(config)
        if config
        else load_text(json.dumps({"mqtt": {"embedded": True}, "cameras": {"x": sources[0]}}))
    )
    bench = Bench(base, sources, seconds)
    configure_logs(bench.config(1), worker="fit")
    trials = asyncio.run(_search(bench, most))
    best = max((trial for trial in trials if trial.holds), key=lambda trial: trial.cameras, default=None)
    text = as_yaml(base, sources, best.cameras if best else 0, target_fvu_of(base))
    if as_json:
        found = {"cameras": best.cameras if best else 0, "trials": [asdict(trial) for trial in trials], "config": text}
        sys.stdout.write(json.dumps(found) + "\n")
        return
    Console().print(trial_table([asdict(trial) for trial in trials]))
    sys.stdout.write(text)


async def _search(bench: Bench, most: int) -> list[Trial]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        async def run(count: int) -> Trial:
            task = progress.add_task(f"{count} camera{'s' if count > 1 else ''}", total=1.0)
            trial = await bench.run(count, lambda share: _show(progress, task, share))
            verdict = "holds" if trial.holds else trial.fault
            progress.update(task, completed=1.0, description=f"{count}: {verdict}")
            return trial

        return await find_most(run, most)


def _show(progress: Progress, task: TaskID, share: float) -> None:
    progress.update(task, completed=share)


async def _wait(seconds: float, told: Callable[[float], None]) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    while (elapsed := loop.time() - started) < seconds:
        told(elapsed / seconds)
        await asyncio.sleep(min(_REFRESH_S, seconds - elapsed))


async def _listen(subscriber: FeatureSubscriber, audits: dict[str, dict[str, Any]]) -> None:
    async for state in subscriber.states():
        if state.fidelity is not None:
            audits[state.camera] = state.fidelity


def _camera(source: str) -> dict[str, Any]:
    return (
        {"url": source}
        if "://" in source or source.startswith("scene:")
        else {"url": source, "realtime": True, "loop": True}
    )
