"""RecordSender (encoder, sync) and RecordReceiver (publisher, asyncio): records on their way to the publisher."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Final, Never, Self

import zmq

from streaming.curve import ClientKeys, ServerKeys
from streaming.errors import TransportError, WireError
from streaming.transport.bound import Bound
from streaming.transport.sockets import DRAIN_AT_ONCE, End, LoopReader, has_message, receive_now, send_now
from streaming.wire import WORKER_ID, ToPublisher, decode_record, encode

SEND_HWM: Final = 128
RECEIVE_HWM: Final = 512
"""Records that may wait at each end: a publisher that is this far behind gets no more, and the sender keeps the count.

The receiver takes more than the sender holds, because libzmq forgets what is still in the kernel when a sender closes
while the receiver is full: so the last records of an encoder survive unless the publisher is 512 of them behind.
"""
STOP_LINGER_MS: Final = 1000


class RecordSender:
    """`with RecordSender(endpoint, worker) as sender: sender.send(record)`; never blocks, one thread.

    Leaving the block waits up to 1 s for the last records to be taken over by a living publisher.
    """

    def __init__(
        self, endpoint: str, worker: str, *, keys: ClientKeys | None = None, context: zmq.SyncContext | None = None
    ) -> None:
        if not re.match(WORKER_ID, worker):
            raise TransportError(
                f"expected a worker name of letters, digits, dot, - and _ up to 64 long, got {worker!r}"
            )
        self._name = worker.encode()
        self._end = End(zmq.PUSH, endpoint, bind=False, keys=keys, context=context, hwm=SEND_HWM)

    def __enter__(self) -> Self:
        self._end.open({zmq.IMMEDIATE: 1})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.close(STOP_LINGER_MS)

    def send(self, record: ToPublisher) -> bool:
        """True when it is on its way; False when there is no publisher or it is behind, and the account stays here."""
        try:
            send_now(self._end.socket, self._name, encode(record))
        except zmq.Again:
            self._end.reconnect_if_refused()
            return False
        return True


class RecordReceiver(Bound):
    """`async with RecordReceiver(endpoint) as receiver: async for record in receiver`. Bad bytes are counted, not raised."""

    def __init__(
        self, endpoint: str, *, keys: ServerKeys | None = None, context: zmq.SyncContext | None = None
    ) -> None:
        super().__init__(zmq.PULL, endpoint, keys=keys, context=context, hwm=RECEIVE_HWM)
        self._readable = asyncio.Event()
        self._monitor: LoopReader
        self._taken = 0

    async def __aenter__(self) -> Self:
        self._end.open({})
        asyncio.get_running_loop().add_reader(self._end.socket.fileno(), self._look)
        self._monitor = LoopReader(self._end.monitor, lambda _: self._end.count_refusal())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._end.socket.fileno())
        self._monitor.close()
        self._end.close()

    async def __aiter__(self) -> AsyncIterator[ToPublisher]:
        while True:
            yield await self.receive()

    async def deliver(self, take: Callable[[ToPublisher], None]) -> Never:
        """Call `take` with each record in the turn of the loop in which it comes; raises what `take` raises."""
        failed: asyncio.Future[Never] = asyncio.get_running_loop().create_future()

        def on_message(parts: list[bytes]) -> None:
            try:
                record = self._record_of(parts)
                if record is not None and not failed.done():
                    take(record)
            except Exception as exc:  # noqa: BLE001 - whoever waits is told of whatever it is
                failed.set_exception(exc)

        asyncio.get_running_loop().remove_reader(self._end.socket.fileno())
        reader = LoopReader(self._end.socket, on_message)
        try:
            await failed
        finally:
            reader.close()
            asyncio.get_running_loop().add_reader(self._end.socket.fileno(), self._look)
        raise AssertionError("the future has no result")

    async def receive(self) -> ToPublisher:
        """The next record; waits for it, and lets other tasks run now and then when there are always more."""
        while (record := self.receive_nowait()) is None:
            self._readable.clear()
            await self._readable.wait()
        self._taken += 1
        if self._taken % DRAIN_AT_ONCE == 0:
            await asyncio.sleep(0)
        return record

    def receive_nowait(self) -> ToPublisher | None:
        """The next record that is here already; for the last ones at a stop."""
        while has_message(self._end.socket):  # asking is cheaper than zmq.Again
            record = self._record_of(receive_now(self._end.socket))
            if record is not None:
                return record
        return None

    def _record_of(self, parts: list[bytes]) -> ToPublisher | None:
        try:
            return _record_of(parts)
        except WireError as exc:
            self._bad.count(parts[0], exc)
            return None

    def _look(self) -> None:
        if has_message(self._end.socket):
            self._readable.set()


def _record_of(parts: list[bytes]) -> ToPublisher:
    if len(parts) != 2:
        raise WireError(f"expected a sender and a record, got {len(parts)} parts")
    return decode_record(parts[1])
