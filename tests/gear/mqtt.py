"""What MQTT tests share: records as the encoder would send them, and a plain listener on a broker."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streaming.frames import FrameSpec, Since
from streaming.mqtt import MqttSettings, Publisher
from streaming.mqtt.link import Handlers, connect
from streaming.mqtt.settings import BrokerSettings
from streaming.records import FeatureRecord, HeldRecord, ModelDescriptor, Quality, Stages, StateRecord

DIM = 64


def feature(camera: str = "front", seq: int = 0, *, since: Since | None = None, **changes: Any) -> FeatureRecord:
    """A fresh record, as it comes from the encoder now."""
    vector = np.random.default_rng(seq).standard_normal(DIM).astype("<f4")
    fields: dict[str, Any] = {
        "camera": camera,
        "frame_seq": seq,
        "since": since or Since(),
        "model_id": "lite0",
        "model": "f00dbabe",
        "dim": DIM,
        "vector": (vector / np.linalg.norm(vector)).tobytes(),
        "norm": 7.5,
        "pts_us": seq * 100_000,
        "captured_at_us": time.time_ns() // 1000 - 5000,
        "clock": "arrival",
        "captured_error_us": 1000,
        "arrived_ns": time.monotonic_ns() - 4_000_000,
        "deadline_ns": time.monotonic_ns() + 96_000_000,
        "stages": Stages(decode_us=1000, convert_us=500, wait_us=200, transfer_us=300, queue_us=0, encode_us=1500),
        "quality": Quality(rung=224, tokens_updated=1, tokens_total=1, cold=False, change=0.0),
    }
    return FeatureRecord(**{**fields, **changes})


def held(camera: str = "front", seq: int = 0, frames: int = 1) -> HeldRecord:
    now_us = time.time_ns() // 1000
    return HeldRecord(camera, seq, Since(held=frames), now_us - 1_000_000, now_us, 0.0)


def state(camera: str = "front", status: str = "streaming", reason: str | None = None, detail: str = "") -> StateRecord:
    return StateRecord(camera, status, reason, detail, time.time_ns() // 1000)  # type: ignore[arg-type]


def model(model_id: str = "lite0", **changes: Any) -> ModelDescriptor:
    fields: dict[str, Any] = {
        "model_id": model_id,
        "fingerprint": "f00dbabe",
        "name": "EfficientNet-Lite0",
        "dim": DIM,
        "trained": True,
        "frame_spec": FrameSpec((224, 224)),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "pooling": "mean",
    }
    return ModelDescriptor(**{**fields, **changes})


@dataclass
class Listener:
    """Everything that a subscription brought, in order."""

    messages: list[tuple[str, bytes, bool]] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def received(self, topic: str, payload: bytes, retained: bool) -> None:
        self.messages.append((topic, payload, retained))
        self._more.set()

    def on(self, topic_end: str) -> list[bytes]:
        return [payload for topic, payload, _ in self.messages if topic.endswith(topic_end)]

    async def until(self, true: Callable[[], Any], timeout_s: float = 15) -> None:
        """Wait until `true()`, looked at after each message."""
        async with asyncio.timeout(timeout_s):
            while not true():
                self._more.clear()
                await self._more.wait()


@contextlib.asynccontextmanager
async def listening(port: int, *filters: str, qos: int = 1, **settings: Any) -> AsyncIterator[Listener]:
    """A client of its own on the broker at `port`."""
    listener = Listener()
    broker = BrokerSettings(port=port, client_id=f"listener-{time.monotonic_ns()}", **settings)
    async with connect(broker, Handlers(listener.received)) as link:
        assert await link.subscribe(filters or ["camvec/#"], qos=qos) == []
        yield listener


@contextlib.asynccontextmanager
async def publishing(settings: MqttSettings, **options: Any) -> AsyncIterator[Publisher]:
    """A publisher that runs beside the test and is closed after it."""
    async with Publisher(settings, node="edge1", **options) as publisher:
        running = asyncio.create_task(publisher.run())
        try:
            yield publisher
        finally:
            publisher.close()
            await running


async def eventually(true: Callable[[], Any], timeout_s: float = 15) -> None:
    """Wait until `true()`."""
    async with asyncio.timeout(timeout_s):
        while not true():  # noqa: ASYNC110 - a test may look at anything, not only at what has an event
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def sending(port: int, **settings: Any) -> AsyncIterator[Callable[[str, bytes], None]]:
    """A client that only publishes, QoS 1, and leaves when the broker has everything."""
    broker = BrokerSettings(port=port, client_id=f"sender-{time.monotonic_ns()}", **settings)
    waiting: set[int] = set()
    async with connect(broker, Handlers(lambda *_: None, lambda mid, _code: waiting.discard(mid))) as link:

        def send(topic: str, payload: bytes) -> None:
            waiting.add(link.send(topic, payload, qos=1))

        yield send
        # A socket that is closed with unread acknowledgements is reset, and the broker may lose what it had not read.
        await eventually(lambda: not waiting)


@contextlib.asynccontextmanager
async def fake_broker(*answers: bytes, close: bool = True) -> AsyncIterator["FakeBroker"]:
    """A server that answers whatever comes first with these bytes, and then closes or falls silent."""
    broker, done = FakeBroker(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker.visits += 1
        broker.open += 1
        with contextlib.suppress(ConnectionError):
            await reader.read(1000)
            writer.writelines(answers)
            await writer.drain()
            if not close:
                await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        broker.open -= 1
        done.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    broker.port = server.sockets[0].getsockname()[1]
    async with server:
        yield broker
    while broker.open:
        done.clear()
        await done.wait()


@dataclass
class FakeBroker:
    """How often it was called."""

    port: int = 0
    visits: int = 0
    open: int = 0
