"""What waits to be published of one camera: newest wins, in order, nothing lost uncounted. Pure."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from streaming.accounting import CameraAccount
from streaming.frames import DropCause, Since
from streaming.records import FeatureRecord, FidelityRecord, HeldRecord, StateRecord

MAX_LOSSLESS: Final = 1024
"""Features of a file that wait while the broker is slow or away; about 5 kB each."""


@dataclass(frozen=True, slots=True)
class TailMark:
    """Nothing more is coming; frames up to here are accounted for."""

    frame_seq: int
    captured_at_us: int = 0


@dataclass(slots=True)
class Waiting:
    """One record and what became of the frames before it."""

    record: FeatureRecord | HeldRecord | TailMark
    since: Since
    received_ns: int


@dataclass(frozen=True, slots=True)
class Place:
    """A message in the chain of its topic."""

    seq: int
    frame_seq: int


@dataclass(slots=True)
class Lane:
    """The queue and the account of one camera. One feature waits, of a file up to `MAX_LOSSLESS`."""

    camera: str
    account: CameraAccount = field(default_factory=CameraAccount)
    waiting: deque[Waiting] = field(default_factory=deque)
    state: StateRecord | None = None
    fidelity: FidelityRecord | None = None
    model_id: str = ""
    model: str = ""
    seqs: dict[str, int] = field(default_factory=dict)
    """model id -> the next `seq` of its topic."""
    temporal_since: Since = field(default_factory=Since)
    """What only the frame topic has been told: for the next message on the temporal topic."""
    heartbeat_ns: int = 0
    publish_us: int = 0
    """The publish stage of the last message."""
    lag_ms: float = 0.0
    sent: Place | None = None
    """The last embedding that was handed to the socket, and the last of which the broker is known to have it."""
    confirmed: Place | None = None
    rejected: int = 0
    """Records that could not become a message."""

    def offer(self, record: FeatureRecord, now_ns: int, cause: DropCause) -> list[Waiting]:
        """Let a feature wait; those that it pushed out come back, booked as dropped by `cause`."""
        since = self.account.feature(record.frame_seq, record.since, reset=record.reset)
        if since is None:
            return []
        self.model_id, self.model = record.model_id, record.model
        limit = MAX_LOSSLESS if record.lossless else 1
        pushed_out = []
        while self._features >= limit:
            pushed_out += self._drop_oldest(cause)
        self.waiting.append(Waiting(record, since, now_ns))
        return pushed_out

    def offer_held(self, record: HeldRecord | TailMark, since: Since, now_ns: int) -> None:
        """Let a heartbeat (or the tail) wait behind what waits; it takes the place of a heartbeat at the end."""
        explained = self.account.span(record.frame_seq, since)
        if explained is None:
            return
        if self.waiting and not isinstance(self.waiting[-1].record, FeatureRecord):
            explained = self.waiting.pop().since.add(explained)
        self.waiting.append(Waiting(record, explained, now_ns))

    def expire(self, now_ns: int, expiry_ns: int, cause: DropCause = "expired") -> list[Waiting]:
        """Drop what has become too old to be sent; the features come back. What comes from a file does not age."""
        old = []
        while self.waiting and now_ns - self.waiting[0].received_ns > expiry_ns and not _is_lossless(self.waiting[0]):
            old += self._drop_oldest(cause)
        return old

    def take(self) -> Waiting:
        """The oldest that waits, with everything that its message has to say of the frames before it."""
        waiting = self.waiting.popleft()
        waiting.since = self.account.take(waiting.since)
        return waiting

    def put_back(self, waiting: Waiting) -> None:
        """It could not be handed over after all."""
        self.waiting.appendleft(waiting)

    def seq_of(self, model_id: str) -> int:
        """The `seq` of the next message on the topic of this model."""
        return self.seqs.get(model_id, 0)

    def advance(self, model_id: str) -> None:
        """A message was handed over on that topic."""
        self.seqs[model_id] = self.seq_of(model_id) + 1

    @property
    def _features(self) -> int:
        return sum(isinstance(waiting.record, FeatureRecord) for waiting in self.waiting)

    def _drop_oldest(self, cause: DropCause) -> list[Waiting]:
        waiting = self.waiting.popleft()
        if not isinstance(waiting.record, FeatureRecord):
            self.account.carry(waiting.since)
            return []
        self.account.drop(waiting.since, cause)
        # A heartbeat says that the vector before it still stands: nobody will have that one.
        while self.waiting and isinstance(self.waiting[0].record, HeldRecord):
            self.account.carry(self.waiting.popleft().since)
        return [waiting]


def _is_lossless(waiting: Waiting) -> bool:
    return isinstance(waiting.record, FeatureRecord) and waiting.record.lossless
