"""`camvec watch`: what arrives from a broker, with age and loss. Needs the base install alone."""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streaming.client import FeatureSubscriber
from streaming.events import Event
from streaming.feature import CameraState, Feature
from streaming.stream import Stream

_REFRESH_S = 0.25
_RECENT = 50


def run_watch(broker: str, *, camera: str | None, root: str, seconds: float, as_json: bool) -> None:
    """Show what arrives until `seconds` are over (0: never) or Ctrl-C."""
    shown = _print_lines if as_json else _show_table
    asyncio.run(_watch(broker, camera, root, seconds, shown))


@dataclass
class Seen:
    """What one camera has sent lately."""

    features: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """Time of arrival and age, seconds."""
    last: Feature | None = None
    state: CameraState | None = None


Show = Callable[[FeatureSubscriber, str | None], Awaitable[None]]


async def _watch(broker: str, camera: str | None, root: str, seconds: float, show: Show) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds or None), FeatureSubscriber(broker, root=root) as subscriber:
            await show(subscriber, camera)


async def _print_lines(subscriber: FeatureSubscriber, camera: str | None) -> None:
    async with asyncio.TaskGroup() as group:
        for stream, to_line in (
            (subscriber.features(camera, include_held=True, allow_model_change=True), _feature_line),
            (subscriber.events(camera), _event_line),
            (subscriber.states(camera), _state_line),
        ):
            group.create_task(_print_stream(stream, to_line))


async def _print_stream(stream: "Stream[Any]", to_line: Callable[[Any], dict[str, Any]]) -> None:
    async for item in stream:
        print(json.dumps(to_line(item)), flush=True)


def _feature_line(feature: Feature) -> dict[str, Any]:
    return {
        "kind": "feature" if feature.held_since is None else "held",
        "node": feature.node,
        "camera": feature.camera,
        "model": feature.model,
        "frame_seq": feature.frame_seq,
        "held": feature.since.held,
        "dropped": feature.since.dropped,
        "captured_at": feature.captured_at.isoformat(),
        "clock": feature.clock,
        "age_ms": round(feature.age_s * 1000, 1),
        "late": feature.late,
        "gap": feature.gap,
        "dim": len(feature.vector),
        "norm": round(feature.norm, 4),
    }


def _event_line(event: Event) -> dict[str, Any]:
    return {"kind": "event", "camera": event.camera, "type": event.type, "phase": event.phase, "id": event.event}


def _state_line(state: CameraState) -> dict[str, Any]:
    return {
        "kind": "state",
        "node": state.node,
        "camera": state.camera,
        "state": state.state,
        "reason": state.reason,
        "detail": state.detail,
        "fps_in": state.fps_in,
        "next_retry_at": state.next_retry_at,
    }


async def _show_table(subscriber: FeatureSubscriber, camera: str | None) -> None:
    seen: dict[str, Seen] = {}
    events: deque[str] = deque(maxlen=6)
    async with asyncio.TaskGroup() as group:
        group.create_task(_follow_features(subscriber, camera, seen))
        group.create_task(_follow_states(subscriber, camera, seen))
        group.create_task(_follow_events(subscriber, camera, events))
        with Live(console=Console(), auto_refresh=False) as view:
            while True:
                view.update(_table(subscriber, seen, events), refresh=True)
                await asyncio.sleep(_REFRESH_S)


async def _follow_features(subscriber: FeatureSubscriber, camera: str | None, seen: dict[str, Seen]) -> None:
    async for feature in subscriber.features(camera, include_held=True, allow_model_change=True):
        one = seen.setdefault(feature.camera, Seen())
        one.last = feature
        if feature.held_since is None:
            one.features.append((time.monotonic(), feature.age_s))


async def _follow_states(subscriber: FeatureSubscriber, camera: str | None, seen: dict[str, Seen]) -> None:
    async for state in subscriber.states(camera):
        seen.setdefault(state.camera, Seen()).state = state


async def _follow_events(subscriber: FeatureSubscriber, camera: str | None, events: deque[str]) -> None:
    async for event in subscriber.events(camera):
        events.append(f"{event.camera}: {event.type} {event.phase}")


def _table(subscriber: FeatureSubscriber, seen: dict[str, Seen], events: deque[str]) -> Group:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("camera", "state", "vectors/s", "age", "held", "dropped", "missing", "model"):
        table.add_column(column, justify="left" if column in {"camera", "state", "model"} else "right")
    for camera, one in sorted(seen.items()):
        table.add_row(camera, _state(one.state), *_rates(one), *_counts(subscriber, camera), _model(one.last))
    connection = subscriber.connection
    status = connection.state if not connection.problem else f"{connection.state}: {connection.problem}"
    waiting = [] if seen else [Text("nothing yet: is a daemon publishing below this root?", style="dim")]
    return Group(table, *waiting, Text("\n".join(events), style="cyan"), Text(status, style="dim"))


def _state(state: CameraState | None) -> str:
    if state is None:
        return "-"
    return state.state if state.reason is None else f"{state.state} ({state.reason})"


def _rates(one: Seen) -> tuple[str, str]:
    now = time.monotonic()
    recent = [(at, age) for at, age in one.features if now - at < 5.0]
    if not recent:
        return "0.0", "-"
    span_s = max(1.0, now - recent[0][0])
    return f"{len(recent) / span_s:.1f}", f"{1000 * recent[-1][1]:.0f} ms"


def _counts(subscriber: FeatureSubscriber, camera: str) -> tuple[str, str, str]:
    found = subscriber.statistics(camera)
    return str(found.held), str(found.dropped.total()), str(found.missing_messages)


def _model(feature: Feature | None) -> str:
    return "-" if feature is None else f"{feature.model_id} {feature.model[:8]}"
