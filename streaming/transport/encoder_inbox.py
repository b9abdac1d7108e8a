"""EncoderInbox: the encoder's end, for a plain loop that polls between the blocks of its work."""

import secrets
import select
from collections import Counter
from types import TracebackType
from typing import Final, Self

import numpy as np
import zmq

from streaming.clock import SYSTEM_CLOCK, Clock
from streaming.curve import ServerKeys
from streaming.errors import WireError
from streaming.frames import DropCause, FrameSpec, Since
from streaming.transport.bound import Bound
from streaming.transport.events import Event, FrameArrived, Readable
from streaming.transport.host import host_identity
from streaming.transport.peers import Intake, Peer, Peers
from streaming.transport.sockets import has_message, receive_part, send_now
from streaming.wire import NO_FRAME, Ack, Bye, FrameHeader, Hello, Tail, Welcome, decode_to_encoder, encode, frame_of

ACK_REPEAT_NS: Final = 250_000_000
MESSAGES_PER_POLL: Final = 256
PEER_HWM: Final = 512
"""Messages that may wait to or from one worker: two frames a camera and a few words."""


class EncoderInbox(Bound):
    """`with EncoderInbox(endpoint, spec, model_id) as inbox: events = inbox.poll(timeout_ms)`; one thread, no asyncio.

    Every `FrameArrived` must be acknowledged once, sooner or later, by `ack` with its `frame_seq` or a later one. What
    peers send cannot raise here: what is not ours is counted in `bad_messages`. Raises TransportError if it cannot bind.
    """

    def __init__(
        self,
        endpoint: str,
        spec: FrameSpec,
        model_id: str,
        *,
        keys: ServerKeys | None = None,
        context: zmq.SyncContext | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(zmq.ROUTER, endpoint, keys=keys, context=context, hwm=PEER_HWM)
        self.epoch = 1 + secrets.randbits(62)
        self._spec, self._model_id, self._clock = spec, model_id, clock
        self._peers = Peers(host_identity())
        self._waiter = select.poll()
        self._watched: set[int] = set()
        self._next_repeat_ns = self._next_check_ns = 0
        self._drained = self._called = False
        """Nothing is there: the descriptor tells of what comes, unless something is sent, which can consume its signal. It has just told."""
        self._part: zmq.Frame
        """The last part of the message in hand."""
        self.stale_frames = 0
        """Frames meant for the encoder before this one; each became a Tail."""
        self.unsent = 0
        """Words to a worker that could not take them; they are absolute and repeated, so nothing is lost."""

    def __enter__(self) -> Self:
        self._end.open({zmq.ROUTER_MANDATORY: 1, zmq.ROUTER_HANDOVER: 1})
        self._waiter.register(self._end.socket.fileno(), select.POLLIN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.close()

    @property
    def denied_keys(self) -> Counter[str]:
        """Handshakes with public keys that are not in the clients' folder, by key."""
        return self._end.gatekeeper.denied if self._end.gatekeeper else Counter()

    def watch(self, descriptor: int) -> None:
        """Also wake up for this file descriptor: `Readable` among the events, for as long as it is readable."""
        self._watched.add(descriptor)
        self._waiter.register(descriptor, select.POLLIN)

    def unwatch(self, descriptor: int) -> None:
        """Undo `watch`."""
        self._watched.discard(descriptor)
        self._waiter.unregister(descriptor)

    def poll(self, timeout_ms: float = 0) -> list[Event]:
        """What has happened, in order; waits up to `timeout_ms` for the first of it. At most 256 messages a call."""
        now_ns = self._clock.monotonic_ns()
        deadline_ns = now_ns + int(timeout_ms * 1e6)
        events: list[Event] = []
        if not self._drained:
            self._drain(events, now_ns)
        while True:
            self._repeat_acks(now_ns)
            until_ns = now_ns if events else min(deadline_ns, self._next_repeat_ns, self._next_check_ns)
            self._wait(events, max(0, until_ns - now_ns))
            now_ns = self._clock.monotonic_ns()
            self._drain(events, now_ns)
            if events or now_ns >= deadline_ns:
                return events

    def _wait(self, events: list[Event], wait_ns: int) -> None:
        """Up to `wait_ns` for the socket or a watched descriptor: one system call, zmq's poller asks each socket twice."""
        for descriptor, _ in self._waiter.poll(-(-wait_ns // 1_000_000)):
            if descriptor in self._watched:
                events.append(Readable(descriptor))
            else:
                self._drained, self._called = False, True

    def ack(self, camera: str, up_to_seq: int, pace_us: int = 0) -> None:
        """Frames of `camera` up to `up_to_seq` are done with: their credits go back, with the pace from now on.

        `up_to_seq` -1 changes the pace alone. A camera whose worker is gone is ignored. A worker on this host that still
        has a credit and no pace is told with the next frame, or after 250 ms: each word wakes two threads there.
        """
        peer = self._peers.owner(camera)
        if peer is not None:
            intake = peer.intakes[camera]
            if intake.acknowledge(up_to_seq, pace_us) or not peer.same_host or up_to_seq == NO_FRAME:
                self._send_ack(peer, intake)

    def outstanding(self, camera: str) -> int:
        """Frames of `camera` that were handed out and not acknowledged: at most 2."""
        peer = self._peers.owner(camera)
        return len(peer.intakes[camera].outstanding) if peer else 0

    def _repeat_acks(self, now_ns: int) -> None:
        if now_ns < self._next_repeat_ns:
            return
        told_ns = [now_ns]
        for peer in self._peers:
            self._send_acks(peer, told_before_ns=now_ns - ACK_REPEAT_NS)
            told_ns += [intake.told_ns for intake in peer.intakes.values()]
        self._next_repeat_ns = min(told_ns) + ACK_REPEAT_NS

    def _drain(self, events: list[Event], now_ns: int) -> None:
        """Take what has come. Nothing is asked where nothing can have come: each question is a system call."""
        for _ in range(MESSAGES_PER_POLL):
            if self._drained or not (self._called or has_message(self._end.socket)):
                self._drained = True
                break
            called, self._called = self._called, False
            try:
                identity = receive_part(self._end.socket).bytes
            except zmq.Again:  # dearer than asking, and rare: what called was no message
                if not called:
                    raise
                continue
            self._take(identity, events)
        if self._drained and now_ns >= self._next_check_ns:
            self._next_check_ns = now_ns + ACK_REPEAT_NS
            # Only now: a Hello may have waited while this process was busy or stopped.
            events += self._peers.silent(now_ns)
            self._end.read_monitor()

    def _take(self, identity: bytes, events: list[Event]) -> None:
        self._part = receive_part(self._end.socket)
        try:
            message = decode_to_encoder(self._part.buffer)
            if isinstance(message, FrameHeader):
                events.append(self._on_frame(identity, message))
            else:
                self._on_word(identity, message, events)
        except WireError as exc:
            self._bad.count(identity, exc)
        finally:
            while self._part.more:
                self._part = receive_part(self._end.socket)

    def _on_word(self, identity: bytes, message: Event | Hello | Bye, events: list[Event]) -> None:
        if self._part.more:
            raise WireError(f"expected {type(message).__name__} in one part, got more")
        peer = self._peers.get(identity)
        now_ns = self._clock.monotonic_ns()
        if isinstance(message, Hello):
            events += self._peers.hello(identity, message, now_ns)
            self._on_hello(self._peers.get(identity), message, now_ns)
            return
        if peer is not None:
            peer.heard_ns = now_ns
        if isinstance(message, Bye):
            events += [self._peers.bye(peer)] if peer else []
            return
        if isinstance(message, Tail) and peer is not None:
            self._on_tail(peer, message)
        events.append(message)

    def _on_hello(self, peer: Peer | None, hello: Hello, now_ns: int) -> None:
        if peer is None:
            return
        if hello.echo_ns and not peer.same_host:
            trip_ns = max(0, now_ns - hello.echo_ns - 1000 * hello.echo_age_us)
            peer.shortest_trip_ns = min(trip_ns, peer.shortest_trip_ns or trip_ns)
        self._send(peer, Welcome(self.epoch, self._spec, self._model_id, now_ns))
        self._send_acks(peer)

    def _on_tail(self, peer: Peer, tail: Tail) -> None:
        intake = self._intake(peer, tail.camera)
        if tail.up_to_seq < intake.seen_seq:
            raise WireError(f"expected a tail of {tail.camera!r} from {intake.seen_seq}, got {tail.up_to_seq}")
        intake.pass_over(tail.up_to_seq)
        self._send_ack(peer, intake)

    def _on_frame(self, identity: bytes, header: FrameHeader) -> FrameArrived | Tail:
        peer = self._peers.get(identity)
        if header.epoch != self.epoch:
            return self._on_stale_frame(peer, header)
        if peer is None:
            raise WireError(f"expected a Hello before a frame of {header.camera!r}")
        peer.heard_ns = now_ns = self._clock.monotonic_ns()
        intake = self._intake(peer, header.camera)
        intake.admit(header)
        try:
            pixels = self._receive_pixels(header)
        except WireError as exc:
            self._bad.count(identity, exc)
            intake.withdraw()
            self._send_ack(peer, intake)
            return _given_up(header, "bad_message")
        transfer_ns = _transfer_ns(peer, header, now_ns)
        arrived_ns = header.arrived_ns if peer.same_host else max(0, now_ns - 1000 * header.age_us - transfer_ns)
        return FrameArrived(frame_of(header, pixels, arrived_ns=arrived_ns), peer.hello.worker, transfer_ns // 1000)

    def _on_stale_frame(self, peer: Peer | None, header: FrameHeader) -> Tail:
        # Sent to the encoder before us, perhaps in another size; its sender has voided it and its account goes on.
        self.stale_frames += 1
        intake = peer.intakes.get(header.camera) if peer else None
        if intake is not None:
            intake.pass_over(header.frame_seq)
        return _given_up(header, "worker_lost")

    def _receive_pixels(self, header: FrameHeader) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        if (header.height, header.width) != self._spec.size_hw:
            raise WireError(f"expected a picture of {self._spec.size_hw}, got {(header.height, header.width)}")
        if not self._part.more:
            raise WireError("expected pixels after the header of a frame, got none")
        self._part = receive_part(self._end.socket)
        expected = header.height * header.width * 3
        if len(self._part) != expected or self._part.more:
            raise WireError(f"expected {expected} bytes of pixels in one part, got {len(self._part)}")
        # A view of the message itself: the array is its only user from here on.
        return np.frombuffer(self._part.buffer, np.uint8).reshape(header.height, header.width, 3)

    def _intake(self, peer: Peer, camera: str) -> Intake:
        intake = peer.intakes.get(camera)
        if intake is None:
            raise WireError(f"expected a camera that {peer.hello.worker!r} declared, got {camera!r}")
        return intake

    def _send_acks(self, peer: Peer, told_before_ns: int | None = None) -> None:
        for intake in peer.intakes.values():
            if told_before_ns is None or intake.told_ns <= told_before_ns:
                self._send_ack(peer, intake)

    def _send_ack(self, peer: Peer, intake: Intake) -> None:
        now_ns = self._clock.monotonic_ns()
        intake.told(now_ns)
        ack = Ack(
            epoch=self.epoch,
            incarnation=peer.hello.incarnation,
            camera=intake.camera,
            up_to_seq=intake.acked_seq,
            pace_us=intake.pace_us,
            sent_ns=now_ns,
        )
        self._send(peer, ack)

    def _send(self, peer: Peer, message: Welcome | Ack) -> None:
        self._drained = False
        try:
            send_now(self._end.socket, peer.identity, encode(message))
        except zmq.ZMQError:
            # Gone (EHOSTUNREACH) or full (EAGAIN): absolute and repeated, so the next one says it all.
            self.unsent += 1


def _given_up(header: FrameHeader, cause: DropCause) -> Tail:
    since = Since().add(header.since)
    since.drop(cause)
    return Tail(header.camera, header.frame_seq, since)


def _transfer_ns(peer: Peer, header: FrameHeader, now_ns: int) -> int:
    """On one host the difference of one clock. Between hosts: this frame's own round trip, less the way of the echo.

    The way there is taken as half of the shortest round trip seen, so that waiting and a long message count in full.
    """
    if peer.same_host:
        return max(0, now_ns - header.sent_ns)
    if not header.echo_ns:
        return 0
    trip_ns = now_ns - header.echo_ns - 1000 * header.echo_age_us
    return max(0, trip_ns - (peer.shortest_trip_ns or 0) // 2)
