"""Time as the project uses it: monotonic nanoseconds for durations, Unix microseconds for what is published."""

import time
from typing import Protocol


class Clock(Protocol):
    """What a component needs of time; tests hand in a clock that they move by hand."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC, comparable between processes of one host. Durations come from here alone."""
        ...

    def unix_us(self) -> int:
        """Wall clock in integer Unix microseconds, for messages. It may step: never subtract two of these."""
        ...


class SystemClock:
    """The clock of the machine."""

    def monotonic_ns(self) -> int:
        """Nanoseconds of CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def unix_us(self) -> int:
        """Microseconds since 1970, UTC."""
        return time.time_ns() // 1000


SYSTEM_CLOCK = SystemClock()
