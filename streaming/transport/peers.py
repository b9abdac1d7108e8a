"""What the encoder knows of its capture workers and their cameras: pure bookkeeping, with no socket and no clock."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from streaming.errors import WireError
from streaming.transport.credits import MAX_IN_FLIGHT
from streaming.transport.events import CamerasChanged, WhyVanished, WorkerStarted, WorkerVanished
from streaming.wire import NO_FRAME, FrameHeader, Hello

SILENCE_NS: Final = 3_000_000_000
"""A worker says Hello every second."""
SOON_NS: Final = 8_000_000
PRESSED_NS: Final = 100_000_000
"""A sender that waited for a credit gets each one back at once for this long: in pairs, it and the encoder would go in
lock-step, two frames for each round of being woken up, which takes milliseconds where processors are short."""
MAX_PEERS: Final = 256


@dataclass(slots=True)
class Intake:
    """One camera of one incarnation of a worker."""

    camera: str
    seen_seq: int = NO_FRAME
    """The highest frame that was received, passed over, or sent and lost."""
    outstanding: deque[int] = field(default_factory=deque)
    """Frames handed to the encoder that it has not acknowledged: at most `MAX_IN_FLIGHT`."""
    pace_us: int = 0
    lossless: bool = False
    told_ns: int = 0
    """When its worker was told last."""
    untold: int = 0
    """Frames that came since then: their sender still counts them as in flight."""
    pressed: bool = False
    pressed_ns: int = -PRESSED_NS
    """When a frame last left so soon after a word of ours that it must have waited for it."""

    @property
    def acked_seq(self) -> int:
        """What the absolute acknowledgement says: all before the oldest outstanding frame."""
        return self.outstanding[0] - 1 if self.outstanding else self.seen_seq

    def admit(self, header: FrameHeader) -> None:
        """Book an arriving frame. Raises WireError when it is out of order or one more than the credit allows."""
        if header.frame_seq <= self.seen_seq:
            raise WireError(f"expected a frame of {self.camera!r} after {self.seen_seq}, got {header.frame_seq}")
        if len(self.outstanding) >= MAX_IN_FLIGHT:
            raise WireError(f"expected at most {MAX_IN_FLIGHT} frames of {self.camera!r} in flight, got one more")
        self.seen_seq, self.lossless = header.frame_seq, header.lossless
        if self.told_ns and not self.untold and 0 <= header.sent_ns - self.told_ns < SOON_NS:
            self.pressed_ns = header.sent_ns
        self.pressed = header.sent_ns - self.pressed_ns < PRESSED_NS
        self.untold += 1
        self.outstanding.append(header.frame_seq)

    def pass_over(self, up_to_seq: int) -> None:
        """Nothing up to `up_to_seq` will arrive any more."""
        self.seen_seq = max(self.seen_seq, up_to_seq)

    def withdraw(self) -> None:
        """The frame just admitted turned out to be unusable."""
        self.outstanding.pop()

    def acknowledge(self, up_to_seq: int, pace_us: int) -> bool:
        """The encoder has done with all frames up to `up_to_seq`; a number never seen belongs to a past incarnation.

        False when the worker need not be told at once: it has a credit left, none is waited for, and the pace is still none.
        """
        urgent = self.untold >= MAX_IN_FLIGHT or self.lossless or self.pressed or bool(pace_us or self.pace_us)
        self.pace_us = pace_us
        while up_to_seq <= self.seen_seq and self.outstanding and self.outstanding[0] <= up_to_seq:
            self.outstanding.popleft()
        return urgent

    def told(self, now_ns: int) -> None:
        """An acknowledgement is on its way."""
        self.told_ns = now_ns
        self.untold = len(self.outstanding)


@dataclass(slots=True)
class Peer:
    """One incarnation of a capture worker."""

    identity: bytes
    hello: Hello
    same_host: bool
    heard_ns: int
    alive: bool = True
    intakes: dict[str, Intake] = field(default_factory=dict)
    shortest_trip_ns: int | None = None

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that it sends."""
        return tuple(self.intakes)

    def vanished(self, why: WhyVanished) -> WorkerVanished:
        """The event of its going."""
        return WorkerVanished(self.hello.worker, self.hello.incarnation, self.cameras, why)


class Peers:
    """All capture workers by routing id. A camera belongs to the worker that declared it last."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._peers: dict[bytes, Peer] = {}
        self._owners: dict[str, Peer] = {}

    def __iter__(self) -> Iterator[Peer]:
        return (peer for peer in self._peers.values() if peer.alive)

    def get(self, identity: bytes) -> Peer | None:
        """The worker of this routing id, if it has said Hello."""
        return self._peers.get(identity)

    def owner(self, camera: str) -> Peer | None:
        """The worker that sends `camera`."""
        return self._owners.get(camera)

    def hello(
        self, identity: bytes, hello: Hello, now_ns: int
    ) -> list[WorkerStarted | WorkerVanished | CamerasChanged]:
        """Book a Hello; returns what is new in it. Raises WireError for a false name or one worker too many."""
        if hello.worker.encode() != identity:
            raise WireError(f"expected a Hello of {identity[:64]!r}, got one of {hello.worker!r}")
        events: list[WorkerStarted | WorkerVanished | CamerasChanged] = []
        peer = self._peers.get(identity)
        if peer is not None and peer.hello.incarnation != hello.incarnation:
            events += [peer.vanished("replaced")] if peer.alive else []
            self._forget(peer)
            peer = None
        returns = peer is None or not peer.alive
        if peer is None:
            self._make_room()
            peer = Peer(identity, hello, hello.host == self._host, now_ns)
            self._peers[identity] = peer
        peer.hello, peer.heard_ns, peer.alive = hello, now_ns, True
        changes = self._declare(peer, hello)
        if returns:
            events.append(
                WorkerStarted(hello.worker, hello.incarnation, tuple(hello.cameras), hello.version, peer.same_host)
            )
        else:
            events += changes
        return events

    def _make_room(self) -> None:
        if len(self._peers) < MAX_PEERS:
            return
        gone = next((peer for peer in self._peers.values() if not peer.alive), None)
        if gone is None:
            raise WireError(f"expected at most {MAX_PEERS} capture workers, got one more")
        self._forget(gone)

    def _declare(self, peer: Peer, hello: Hello) -> list[CamerasChanged]:
        added = tuple(camera for camera in hello.cameras if camera not in peer.intakes)
        removed = tuple(camera for camera in peer.intakes if camera not in hello.cameras)
        changes = []
        for camera in removed:
            del peer.intakes[camera]
            if self._owners.get(camera) is peer:
                del self._owners[camera]
        for camera in added:
            former = self._owners.get(camera)
            if former is not None and former is not peer:
                former.intakes.pop(camera, None)
                changes.append(CamerasChanged(former.hello.worker, (), (camera,)))
            peer.intakes[camera] = Intake(camera)
            self._owners[camera] = peer
        for camera, last_seq in hello.cameras.items():
            # On one connection everything before the Hello has arrived: what has not was lost with an older connection.
            peer.intakes[camera].pass_over(last_seq)
        if added or removed:
            changes.append(CamerasChanged(hello.worker, added, removed))
        return changes

    def bye(self, peer: Peer) -> WorkerVanished:
        """A worker went of its own will."""
        self._forget(peer)
        return peer.vanished("bye")

    def silent(self, now_ns: int) -> list[WorkerVanished]:
        """The workers that were heard of last too long ago; their accounts stay, should they come back."""
        gone = [peer for peer in self if now_ns - peer.heard_ns > SILENCE_NS]
        for peer in gone:
            peer.alive = False
        return [peer.vanished("silent") for peer in gone]

    def _forget(self, peer: Peer) -> None:
        self._peers.pop(peer.identity, None)
        for camera in peer.intakes:
            if self._owners.get(camera) is peer:
                del self._owners[camera]
