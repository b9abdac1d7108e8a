"""What happens on one connection besides sending: commands, liveness, and the retained leftovers of earlier runs."""

import asyncio
import inspect
import json
import logging
from typing import TYPE_CHECKING, Any, Final, Never

from streaming.errors import BrokerError, ConfigError, WireError
from streaming.mqtt.link import Link
from streaming.mqtt.reconnect import until_lost
from streaming.mqtt.sender import Sender
from streaming.topics import Address, parse

if TYPE_CHECKING:
    from streaming.mqtt.publisher import Publisher

log = logging.getLogger("camvec.mqtt")

TICK_S: Final = 0.5
MAX_COMMANDS: Final = 100
MAX_COMMAND_BYTES: Final = 4096
SWEEP_AFTER_S: Final = 2.0
"""Time for the models to be announced before what was not is taken for left over."""
SWEEP_S: Final = 1.0
"""How long the broker may take to hand out its retained messages."""


class Session:
    """What a publisher does on its connections, one after the other."""

    def __init__(self, publisher: "Publisher", sender: Sender) -> None:
        self._publisher = publisher
        self._sender = sender
        self._settings = sender.settings
        self._commands: asyncio.Queue[tuple[Address, bytes]] = asyncio.Queue(MAX_COMMANDS)
        self._found: set[str] | None = None
        """Retained topics of our own tree, while we look for leftovers."""

    async def run(self, link: Link) -> Never:
        """Serve a connection until it ends: always a BrokerError."""
        self._found = None
        await until_lost(link, self._tick(), self._commands_of(link), self._sweep(link))

    def received(self, topic: str, payload: bytes, retained: bool) -> None:
        """A message came: a command, or while sweeping a retained one of ours."""
        address = parse(self._settings.root, topic)
        if address is None or address.node != self._publisher.node:
            return
        if address.kind == "set":
            try:
                self._commands.put_nowait((address, payload))
            except asyncio.QueueFull:
                log.warning("more than %d commands wait: %s was not taken", MAX_COMMANDS, topic)
        elif self._found is not None and retained and payload:
            self._found.add(topic)

    async def _tick(self) -> None:
        """Twice a second: end events, publish states when it is time, and notice a broker that answers no more."""
        clock, settings = self._sender.clock, self._settings
        states_ns = clock.monotonic_ns()
        while True:
            await asyncio.sleep(TICK_S)
            now_ns = clock.monotonic_ns()
            self._check_alive(now_ns)
            self._publisher.tick()
            if now_ns - states_ns >= settings.state_s * 1e9:
                states_ns = now_ns
                self._publisher.announcer.states()

    def _check_alive(self, now_ns: int) -> None:
        waiting = [ns for ns in (self._sender.outbox.oldest_ns(), self._sender.stuck_ns) if ns is not None]
        limit_s = self._settings.ack_timeout_s
        if waiting and now_ns - min(waiting) > limit_s * 1e9:
            said = f"the MQTT broker at {self._settings.address} has acknowledged nothing for {limit_s:g} s"
            raise BrokerError("timeout", said)

    async def _commands_of(self, link: Link) -> None:
        """Commands, one after the other."""
        if self._publisher.on_command is None:
            return
        if await link.subscribe([self._sender.topics.commands], qos=1):
            said = f"the broker denies the subscription to {self._sender.topics.commands}: commands do not arrive"
            self._sender.problems.add("commands", said)
            return
        self._sender.problems.over("commands")
        while True:
            address, payload = await self._commands.get()
            await self._obey(address, payload)

    async def _obey(self, address: Address, payload: bytes) -> None:
        camera, name = address.camera or "", address.name or ""
        if self._publisher.cameras is not None and camera not in self._publisher.cameras:
            log.warning("expected a command to one of the cameras, got one to %r", camera)
            return
        assert self._publisher.on_command is not None  # noqa: S101 - `_commands_of` has looked
        try:
            value = self._publisher.on_command(camera, name, _value(payload))
            if inspect.isawaitable(value):
                value = await value
            self._publisher.publish_value(camera, name, value)
        except (ValueError, WireError, ConfigError) as exc:
            log.warning("the command %s to camera %s was not carried out: %s", name, camera, exc)
        except Exception:  # a faulty callback must not end the publishing
            log.exception("the command %s to camera %s failed", name, camera)

    async def _sweep(self, link: Link) -> None:
        """Clear what an earlier run left retained of cameras and models that are gone.

        Our own tree is read once per connection, for retained messages alone and for about a second: a file with the
        names of earlier runs would be lost with every new container or disk, and the broker knows better.
        """
        await asyncio.sleep(SWEEP_AFTER_S)
        topics = self._sender.topics
        filters = [topics.state("+"), topics.value("+", "+"), topics.model("+")]
        self._found = set()
        denied = await link.subscribe(filters)
        if denied:
            log.info("the broker denies reading %s: leftovers of cameras that are gone stay there", ", ".join(denied))
        await asyncio.sleep(SWEEP_S)
        await link.unsubscribe(filters)
        found, self._found = self._found, None
        stale = sorted(topic for topic in found if self._is_stale(topic))
        if stale:
            log.info("clearing %d retained topics of an earlier run", len(stale))
            self._publisher.announcer.clear(stale)

    def _is_stale(self, topic: str) -> bool:
        address = parse(self._settings.root, topic)
        if address is None:
            return False
        if address.kind == "model":
            return bool(self._publisher.models) and address.name not in self._publisher.models
        return self._publisher.cameras is not None and address.camera not in self._publisher.cameras


def _value(payload: bytes) -> Any:
    """JSON, else text: `true`, `0.5`, `ON`. Raises ValueError on what is neither."""
    if len(payload) > MAX_COMMAND_BYTES:
        raise ValueError(f"expected a value of at most {MAX_COMMAND_BYTES} bytes, got {len(payload)}")
    text = payload.decode()
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
