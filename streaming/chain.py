"""Is anything missing? One topic's messages, held against each other by `seq`, `frame_seq` and `since`. Pure."""

from collections import Counter
from dataclasses import dataclass, field

from streaming.message import FeatureMessage, Message


@dataclass(slots=True)
class ChainStatistics:
    """What a subscriber knows of the frames of a camera, since its first message.

    Frames = vectors + held + sum(dropped) + missing_frames.
    """

    vectors: int = 0
    heartbeats: int = 0
    held: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """By cause, as the publisher says."""
    missing_messages: int = 0
    """Sent by the publisher, never seen here."""
    missing_frames: int = 0
    """What the missing messages would have told of."""
    duplicates: int = 0
    restarts: int = 0
    late: int = 0
    """Received after their deadline, by the clocks of both hosts."""
    recovered: int = 0
    """Delivered later from the publisher's spool; they are counted in `dropped` too."""

    @property
    def frames(self) -> int:
        """Frames of which something is known."""
        return self.vectors + self.held + self.dropped.total() + self.missing_frames

    def add(self, other: "ChainStatistics") -> None:
        """Sum up two topics."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the place of one message in its chain says."""

    gap: int = 0
    """Messages missing right before it."""
    missing_frames: int = 0
    duplicate: bool = False
    restart: bool = False
    """The publisher, or the numbering of the camera, began anew."""


@dataclass(slots=True)
class Chain:
    """The messages of one topic."""

    statistics: ChainStatistics = field(default_factory=ChainStatistics)
    _session: str = ""
    _seq: int = -1
    _frame_seq: int = -1

    def see(self, message: Message, received_us: int) -> Verdict:
        """Book one message and say what is wrong with its place."""
        count = self.statistics
        if isinstance(message, FeatureMessage) and message.spooled:
            count.recovered += 1
            return Verdict()
        verdict = self._judge(message)
        if verdict.duplicate:
            count.duplicates += 1
            return verdict
        self._session, self._seq, self._frame_seq = message.session, message.seq, message.frame_seq
        count.restarts += verdict.restart
        count.missing_messages += verdict.gap
        count.missing_frames += verdict.missing_frames
        count.held += message.since.held
        count.dropped.update(message.since.dropped)
        if isinstance(message, FeatureMessage):
            count.vectors += 1
            count.late += received_us > message.deadline
        else:
            count.heartbeats += 1
        return verdict

    def _judge(self, message: Message) -> Verdict:
        if message.session != self._session:
            return Verdict(restart=bool(self._session))
        if message.seq <= self._seq:
            return Verdict(duplicate=True)
        gap = message.seq - self._seq - 1
        itself = isinstance(message, FeatureMessage)
        missing = message.frame_seq - self._frame_seq - itself - message.since.frames
        if missing < 0:
            return Verdict(gap=gap, restart=True)
        return Verdict(gap=gap, missing_frames=missing)
