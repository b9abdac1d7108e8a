"""Which log lines say the same again: a dead camera must not fill the disk (R6)."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Event = dict[str, Any]
WINDOW_S: Final = 10.0
MAX_KINDS: Final = 512
_VARYING: Final = frozenset({"error", "detail", "exception", "stack", "timestamp"})


def kind_of(event: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What makes two lines the same: all of it but numbers, also the numbers within error texts, and tracebacks."""
    return tuple(
        (key, re.sub(r"\d+", "#", str(value)) if key in _VARYING else str(value))
        for key, value in sorted(event.items())
        if key not in {"exception", "stack", "timestamp"}
        and (isinstance(value, bool) or not isinstance(value, int | float))
    )


@dataclass
class _Seen:
    since_s: float
    repeated: int = 0
    last: Event | None = None


class Repeats:
    """Lets the first of equal lines through and counts the others; their count comes after `window_s`, once."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: OrderedDict[tuple[tuple[str, str], ...], _Seen] = OrderedDict()

    def admit(self, event: Event, now_s: float, template: str = "") -> Event | None:
        """The event to write, with `repeated` if others like it were kept back; None if it is kept back itself.

        `template` tells events apart in place of their text, for a text that was put together with numbers in it.
        """
        kind = kind_of(event | {"event": template} if template else event)
        seen = self._seen.get(kind)
        if seen is not None and now_s - seen.since_s < self._window_s:
            seen.repeated += 1
            seen.last = event
            return None
        self._seen[kind] = _Seen(now_s)
        self._seen.move_to_end(kind)
        return event | {"repeated": seen.repeated} if seen is not None and seen.repeated else event

    def due(self, now_s: float, *, everything: bool = False) -> list[Event]:
        """The newest of each kind of line that was kept back and whose time is over, with its count."""
        over = [
            kind
            for index, (kind, seen) in enumerate(self._seen.items())
            if everything or now_s - seen.since_s >= self._window_s or index < len(self._seen) - MAX_KINDS
        ]
        done = [self._seen.pop(kind) for kind in over]
        return [seen.last | {"repeated": seen.repeated} for seen in done if seen.last is not None]

    @property
    def holds_back(self) -> bool:
        """Whether a count is waiting to be written."""
        return any(seen.repeated for seen in self._seen.values())
