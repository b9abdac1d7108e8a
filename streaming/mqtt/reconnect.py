"""Connect, serve, and after the end of a connection try again, for ever: for publishers and subscribers alike."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Never

from streaming.clock import SYSTEM_CLOCK, Clock
from streaming.errors import BrokerError
from streaming.mqtt.link import Handlers, Link, ProtocolMemory, Will, connect
from streaming.mqtt.settings import BrokerSettings
from streaming.retry import Backoff

LONG_LIVED_NS: Final = 30 * 10**9
"""Only a connection that has lived this long resets the back-off: else a broker that kicks us is stormed."""
SLOW_RETRY_S: Final = {"taken_over": 30.0, "auth": 10.0, "tls": 10.0, "client_id": 10.0}
"""What another try in a second does not heal, or makes worse."""


class Reconnector:
    """Owns the reconnections to one broker: jittered exponential back-off up to 60 s, and what was learned of it."""

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        will: Will | None = None,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        self._settings, self._will, self._clock = settings, will, clock
        self.memory = ProtocolMemory()
        self.backoff = Backoff(rng=rng or random.Random())  # noqa: S311 - jitter, no secret
        self.connections = 0
        self._closed_early = 0

    async def run(
        self,
        handlers: Callable[[], Handlers],
        serve: Callable[[Link], Awaitable[Never]],
        failed: Callable[[BrokerError, float], None],
    ) -> Never:
        """Serve one connection after the other. `failed` hears why one ended, and in how many seconds the next begins."""
        while True:
            began_ns, connections = self._clock.monotonic_ns(), self.connections
            try:
                async with connect(self._settings, handlers(), will=self._will, memory=self.memory) as link:
                    self.connections += 1
                    await serve(link)
            except BrokerError as exc:
                long_lived = self._clock.monotonic_ns() - began_ns >= LONG_LIVED_NS
                if long_lived:
                    self.backoff.reset()
                early = self.connections > connections and not long_lived and exc.reason == "closed"
                self._closed_early = self._closed_early + 1 if early else 0
                delay_s = max(self.backoff.next_s(), SLOW_RETRY_S.get(exc.reason, 0.0))
                failed(self._with_hint(exc), delay_s)
            await asyncio.sleep(delay_s)

    def _with_hint(self, exc: BrokerError) -> BrokerError:
        """MQTT 3.1.1 and some brokers of MQTT 5 do not say that another client took our place."""
        if self._closed_early < 2:
            return exc
        hint = f"soon after it accepted it, again: does another client use the id {self._settings.client_id!r}?"
        return BrokerError(exc.reason, f"{exc} {hint}")


async def until_lost(link: Link, *jobs: Coroutine[Any, Any, None]) -> Never:
    """Run the jobs of a connection until it ends. Always raises a BrokerError: the link's end, or one of a job."""

    async def watch() -> Never:
        raise await link.lost()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(watch(), name="mqtt-watch")
            for job in jobs:
                group.create_task(job, name=f"mqtt-{getattr(job, '__name__', 'job').strip('_')}")
    except BaseExceptionGroup as several:  # `except*` would raise it in a group again, by Python 3.11.2
        ends, others = several.split(BrokerError)
        if ends is None or others is not None:
            raise
        raise ends.exceptions[0] from None
    raise AssertionError("unreachable: the watch ends with an error")
