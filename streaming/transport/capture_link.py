"""CaptureLink: the capture worker's end. Frames go out on credit, acknowledgements and the wanted picture come in."""

import asyncio
import contextlib
import re
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib import metadata
from types import TracebackType
from typing import Final, Never, Self

import zmq

from streaming.clock import SYSTEM_CLOCK, Clock
from streaming.curve import ClientKeys
from streaming.errors import TransportError, WireError
from streaming.frames import DropCause, Frame, FrameSpec
from streaming.records import StateRecord, WorkerStats
from streaming.transport.credits import Credits
from streaming.transport.host import host_identity
from streaming.transport.sockets import DRAIN_AT_ONCE, BadMessages, End, has_message, receive_now, send_now
from streaming.wire import (
    CAMERA_ID,
    MAX_CAMERAS,
    WORKER_ID,
    Ack,
    Bye,
    Hello,
    Tail,
    Welcome,
    decode_to_capture,
    encode,
    header_of,
)

HELLO_S: Final = 1.0
HELLO_RETRY_S: Final = 0.1
"""Between Hellos while no encoder has answered."""
SILENCE_S: Final = 3.0
"""An encoder repeats its acknowledgements every 250 ms: after this long without a word it is away."""
SEND_HWM: Final = 2 * MAX_CAMERAS
BYE_LINGER_MS: Final = 100


class CaptureLink:
    """`async with CaptureLink(endpoint, worker, cameras) as link`, on one event loop; `lossless` names file cameras.

    Either end may restart: frames in flight to an encoder that died are void and their credits come back with the next
    encoder's Welcome, which `on_welcome` is told of (send states again there). Nothing here raises for bad bytes: they
    are counted in `bad_messages`.

    Whoever reads a camera may call `blocked`, `spec`, `send_frame` and `add_camera` from its own thread: a lock keeps the
    socket to one thread at a time. On one host acknowledgements are read by whoever needs them; the loop wakes up for them
    only while somebody waits there, for a credit, for an encoder, or for the last of them.
    """

    def __init__(
        self,
        endpoint: str,
        worker: str,
        cameras: Iterable[str] = (),
        *,
        lossless: Collection[str] = (),
        keys: ClientKeys | None = None,
        context: zmq.SyncContext | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_welcome: Callable[[Welcome], None] | None = None,
    ) -> None:
        if not re.match(WORKER_ID, worker):
            raise TransportError(
                f"expected a worker name of letters, digits, dot, - and _ up to 64 long, got {worker!r}"
            )
        self.worker = worker
        self.incarnation = 1 + secrets.randbits(62)
        self._end = End(zmq.DEALER, endpoint, bind=False, keys=keys, context=context, hwm=SEND_HWM)
        self._clock, self._on_welcome = clock, on_welcome
        self._host, self._version = host_identity(), _version()
        self._credits = Credits()
        self._changed: dict[str, asyncio.Event] = {}
        self._welcomed, self._progress = asyncio.Event(), asyncio.Event()
        self._welcome: Welcome | None = None
        self._heard_ns = self._echo_ns = 0
        self._bad = BadMessages()
        self._lock = threading.RLock()
        self._listeners, self._watching, self._closed = 0, False, True
        self._stack = contextlib.ExitStack()
        self._loop: asyncio.AbstractEventLoop
        self._loop_thread = 0
        self._heartbeat: asyncio.Task[None] | None = None
        for camera in cameras:
            self._add(camera, lossless=camera in lossless)

    async def __aenter__(self) -> Self:
        self._end.open({zmq.IDENTITY: self.worker.encode(), zmq.IMMEDIATE: 1})
        self._loop, self._loop_thread = asyncio.get_running_loop(), threading.get_ident()
        self._closed = False
        if self._end.endpoint.startswith("tcp://"):
            # Between hosts the encoder learns how long a message takes from how soon its own was read here.
            self._stack.enter_context(self._listening())
        self._heartbeat = asyncio.create_task(self._beat(), name=f"hello:{self.worker}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._heartbeat is not None:
                self._heartbeat.cancel()
                await asyncio.wait([self._heartbeat])
                if not self._heartbeat.cancelled():
                    self._heartbeat.result()  # it ends by cancellation alone: this raises what went wrong
            self._send([encode(Bye(self.worker))])
        finally:
            self._stack.close()
            with self._lock:
                self._closed = True
                self._watch(on=False)
            # Closing waits for the last words to leave: not on the loop. Nobody else touches the socket any more.
            await asyncio.to_thread(self._end.close, BYE_LINGER_MS)

    @property
    def connected(self) -> bool:
        """Whether an encoder has welcomed us and was heard of in the last 3 s."""
        silent_ns = self._clock.monotonic_ns() - self._heard_ns
        return self._welcome is not None and silent_ns < SILENCE_S * 1e9

    @property
    def epoch(self) -> int:
        """The encoder's start that we know, 0 before the first."""
        return self._welcome.epoch if self._welcome else 0

    @property
    def spec(self) -> FrameSpec | None:
        """The picture that the last encoder wanted; None before the first. From any thread."""
        welcome = self._welcome
        return welcome.spec if welcome else None

    @property
    def bad_messages(self) -> int:
        """Messages that were not ours."""
        return self._bad.total

    @property
    def refused_handshakes(self) -> int:
        """How often the encoder did not let us in, or was not the one whose key we have."""
        return self._end.refused_handshakes

    def add_camera(self, camera: str, *, lossless: bool = False) -> None:
        """Declare one more camera, or say what a camera turned out to be."""
        with self._lock:
            self._add(camera, lossless=lossless)
            self._say_hello()

    def remove_camera(self, camera: str) -> None:
        """Stop sending for a camera; call it after its Tail."""
        with self._lock:
            self._credits.remove(camera)
            self._changed.pop(camera, asyncio.Event()).set()
            self._progress.set()
            self._say_hello()

    def _add(self, camera: str, *, lossless: bool) -> None:
        if not re.match(CAMERA_ID, camera):
            raise TransportError(f"expected a camera id of a-z, 0-9, _ and -, up to 64 long, got {camera!r}")
        if camera not in self._credits and len(self._changed) >= MAX_CAMERAS:
            raise TransportError(f"expected at most {MAX_CAMERAS} cameras of one worker: start another worker")
        self._credits.add(camera, lossless=lossless)
        self._changed.setdefault(camera, asyncio.Event())

    async def ready(self) -> FrameSpec:
        """The picture that the encoder wants; waits until there is an encoder."""
        with self._listening():
            while self._welcome is None or not self.connected:
                self._welcomed.clear()
                await self._welcomed.wait()
        return self._welcome.spec

    def blocked(self, camera: str) -> DropCause | None:
        """Why no frame of `camera` may go now, as the cause to book when a newer one takes its place; None: it may go."""
        with self._lock:
            if self._blocked(camera) is None:
                return None
            self._take_in()
            return self._blocked(camera)

    def _blocked(self, camera: str) -> DropCause | None:
        """The same as far as it has been read."""
        if camera not in self._credits:
            raise KeyError(f"camera {camera!r} is not declared on this link")
        if self._closed or not self.connected:
            return "encoder_away"
        wait_ns = self._credits.wait_ns(camera, self._clock.monotonic_ns())
        if wait_ns is None:
            return "superseded"
        return "paced" if wait_ns else None

    async def credit(self, camera: str) -> None:
        """Wait until a frame of `camera` may go. May be cancelled at any time: the credit is used by `send_frame` alone.

        For newest wins, wait for this and for a newer frame at once; when the newer one comes first, book the older as
        `blocked(camera)`. Raises KeyError when the camera is removed.
        """
        if self.blocked(camera) is None:
            return
        with self._listening():
            while self.blocked(camera) is not None:
                changed = self._changed[camera]
                wait_ns = self._credits.wait_ns(camera, self._clock.monotonic_ns()) if self.connected else None
                changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if wait_ns is None else wait_ns / 1e9):
                        await changed.wait()

    def send_frame(self, frame: Frame) -> DropCause | None:
        """Hand a frame over; None when it went, else why not (the caller keeps the account). The pixels are copied.

        Raises WireError for pixels that no encoder could take, ValueError when `frame_seq` does not increase.
        """
        with self._lock:
            cause = self.blocked(frame.camera)
            if cause is not None or self._welcome is None:
                return cause
            if frame.pixels.shape[:2] != self._welcome.spec.size_hw:
                return "encoder_away"  # converted for an encoder that another one has replaced meanwhile
            last_seq = self._credits.last_seq(frame.camera)
            if frame.frame_seq <= last_seq:
                raise ValueError(f"expected frame_seq above {last_seq}, got {frame.frame_seq}")
            now_ns = self._clock.monotonic_ns()
            echo_age_us = (now_ns - self._heard_ns) // 1000
            header = header_of(frame, epoch=self.epoch, now_ns=now_ns, echo_ns=self._echo_ns, echo_age_us=echo_age_us)
            if not self._send([encode(header), frame.pixels.data]):
                return "encoder_away"
            self._credits.sent(frame.camera, frame.frame_seq, now_ns)
        return None

    def send_record(self, record: StateRecord | WorkerStats | Tail) -> bool:
        """Hand a record over; False when no encoder can take it now (send it again from `on_welcome`)."""
        with self._lock:
            if not self.connected or not self._send([encode(record)]):
                return False
            if isinstance(record, Tail):
                self._credits.passed_over(record.camera, record.up_to_seq)
        return True

    async def settled(self) -> None:
        """Wait until the encoder has acknowledged all frames and tails: nothing is in flight. Give it a time-out."""
        with self._listening():
            if not self._credits.settled(self._credits.cameras()):
                self._say_hello()  # the answer holds what would be said later
            while not self._credits.settled(self._credits.cameras()):
                self._progress.clear()
                await self._progress.wait()

    async def _beat(self) -> None:
        while True:
            with self._lock:
                self._watch(on=self._listeners > 0)
                self._take_in()
                if not self.connected:
                    self._end.reconnect_if_refused()
                self._say_hello()
            if self.connected:
                await asyncio.sleep(HELLO_S)
            else:
                with self._listening():
                    await asyncio.sleep(HELLO_RETRY_S)

    def _say_hello(self) -> None:
        now_ns = self._clock.monotonic_ns()
        hello = Hello(
            worker=self.worker,
            incarnation=self.incarnation,
            version=self._version,
            host=self._host,
            cameras=self._credits.last_seqs(),
            echo_ns=self._echo_ns,
            echo_age_us=(now_ns - self._heard_ns) // 1000 if self._echo_ns else 0,
        )
        self._send([encode(hello)])

    def _send(self, parts: list[bytes | memoryview]) -> bool:
        with self._lock:
            if self._closed:
                return False
            try:
                send_now(self._end.socket, *parts)
            except zmq.Again:
                return False
            if self._watching:
                self._take_in()  # sending can consume the wake-up of a message that came
        return True

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """On the loop: wake up for what comes. For up to a second longer: whoever waits once often waits again."""
        with self._lock:
            self._listeners += 1
            self._watch(on=not self._closed)
            self._take_in()
        try:
            yield
        finally:
            self._listeners -= 1

    def _watch(self, *, on: bool) -> None:
        if on is not self._watching:
            self._watching = on
            if on:
                self._loop.add_reader(self._end.socket.fileno(), self._take_in)
            else:
                self._loop.remove_reader(self._end.socket.fileno())

    def _take_in(self) -> None:
        """Read what has come, in the thread that asks."""
        with self._lock:
            epoch = self.epoch
            for taken in range(DRAIN_AT_ONCE):
                if self._closed:
                    return
                if not has_message(self._end.socket):  # asking is cheaper than zmq.Again
                    if not taken:
                        self._look_whether_lost(epoch)
                    return
                self._on_message(receive_now(self._end.socket))
            self._post(self._take_in)

    def _look_whether_lost(self, epoch: int) -> None:
        """The encoder has gone, and no new one has said anything since `epoch`: do not wait until it has been silent."""
        if has_message(self._end.monitor):
            before = self._end.lost_connections
            self._end.read_monitor()
            if self._end.lost_connections != before and self.epoch == epoch:
                self._heard_ns, self._echo_ns = self._clock.monotonic_ns() - int(SILENCE_S * 1e9), 0

    def _post(self, call: Callable[..., object], *args: object) -> None:
        """Call it on the loop, soon."""
        if threading.get_ident() == self._loop_thread:
            self._loop.call_soon(call, *args)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
                self._loop.call_soon_threadsafe(call, *args)

    def _wake(self, *events: asyncio.Event) -> None:
        """Those who wait on the loop, if there are any: whoever begins to wait looks for itself first."""
        if self._listeners:
            for event in events:
                self._post(event.set)

    def _on_message(self, parts: list[bytes]) -> None:
        try:
            message = decode_to_capture(*parts) if len(parts) == 1 else _refuse_parts(parts)
        except WireError as exc:
            self._bad.count(b"encoder", exc)
            return
        if isinstance(message, Welcome):
            self._on_welcome_message(message)
        elif message.epoch == self.epoch and message.incarnation == self.incarnation:
            self._on_ack(message)

    def _on_welcome_message(self, welcome: Welcome) -> None:
        is_new = welcome.epoch != self.epoch
        self._hear(welcome)
        self._welcome = welcome
        self._wake(self._welcomed)
        if is_new:
            self._credits.void()
            self._wake_all()
            if self._on_welcome is not None:
                self._post(self._on_welcome, welcome)

    def _on_ack(self, ack: Ack) -> None:
        self._hear(ack)
        if ack.camera in self._credits:
            self._credits.acknowledged(ack.camera, ack.up_to_seq, ack.pace_us)
            self._wake(self._changed[ack.camera], self._progress)

    def _hear(self, message: Welcome | Ack) -> None:
        was_away = not self.connected
        self._heard_ns, self._echo_ns = self._clock.monotonic_ns(), message.sent_ns
        if was_away:
            self._wake_all()

    def _wake_all(self) -> None:
        self._wake(self._welcomed, *self._changed.values())


def _refuse_parts(parts: list[bytes]) -> Never:
    raise WireError(f"expected a message of one part, got {len(parts)}")


def _version() -> str:
    try:
        return metadata.version("camvec")
    except metadata.PackageNotFoundError:
        return "not installed"
