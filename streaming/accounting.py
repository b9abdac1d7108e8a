"""What became of every frame of a camera, as the publisher hands it on: holes found, losses merged. Pure.

Frames are numbered 0, 1, 2, ... by capture. Each record says with `since` what became of the frames before it; the
publisher does the same with its messages. So `frame_seq` of a message = that of the one before + 1 + since.frames.
"""

from dataclasses import dataclass, field
from typing import Final

from streaming.frames import DropCause, Since

HOLE: Final[DropCause] = "worker_lost"


@dataclass(slots=True)
class CameraAccount:
    """The chain of one camera. `next_seq` is the first frame that no record has accounted for; None: not known yet.

    Invariant: frames accounted = published + held + sum(dropped) + features accepted but neither sent nor dropped.
    """

    next_seq: int | None = None
    encoded: int = 0
    """Features accepted."""
    published: int = 0
    held: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    """Records of frames that had been accounted for already: refused."""
    surplus: int = 0
    """Frames that a record claimed beyond the gap before it: not counted."""
    restarts: int = 0
    """Times that the numbers began anew below the last one."""
    _carry: Since = field(default_factory=Since)
    _dropped_here: int = 0

    @property
    def accounted_upto(self) -> int:
        """The last `frame_seq` accounted for; -1 if none."""
        return -1 if self.next_seq is None else self.next_seq - 1

    @property
    def frames(self) -> int:
        """Frames accounted for, all told."""
        return self.encoded + self.held + sum(self.dropped.values()) - self._dropped_here

    def feature(self, frame_seq: int, since: Since, *, reset: bool = False) -> Since | None:
        """A record of frame `frame_seq` came: what became of the frames before it, or None if it must not be sent.

        A number that was accounted for already is a duplicate; with `reset` (the first frame after an open) it is a
        camera whose numbers begin anew.
        """
        if reset and self.next_seq is not None and frame_seq < self.next_seq:
            self.restarts += 1
            self.next_seq = None
        explained = self._advance(frame_seq, since, itself=1)
        if explained is not None:
            self.encoded += 1
        return explained

    def span(self, up_to_seq: int, since: Since) -> Since | None:
        """Frames up to and including `up_to_seq` are accounted for by `since` alone (a heartbeat, a tail)."""
        return self._advance(up_to_seq, since, itself=0)

    def drop(self, since: Since, cause: DropCause) -> None:
        """A feature that was accepted could not be sent: the next message says so."""
        self._carry.add(since).drop(cause)
        self.dropped[cause] = self.dropped.get(cause, 0) + 1
        self._dropped_here += 1

    def carry(self, since: Since) -> None:
        """A span needs no message of its own: the next message says it."""
        self._carry.add(since)

    def take(self, since: Since) -> Since:
        """What the message that is sent now says of the frames before it."""
        said, self._carry = self._carry.add(since), Since()
        return said

    @property
    def unsaid(self) -> int:
        """Frames that no message has accounted for yet, apart from features that wait."""
        return self._carry.frames

    def _advance(self, upto: int, since: Since, *, itself: int) -> Since | None:
        if self.next_seq is None:
            self.next_seq = max(0, upto + 1 - itself - since.frames)
        gap = upto + 1 - self.next_seq - itself
        if gap < 0:
            # A heartbeat may repeat the number of the feature before it: nothing new, nothing wrong.
            self.duplicates += itself or min(1, since.frames)
            return None
        explained = _trimmed(since, gap)
        self.surplus += since.frames - explained.frames
        explained.drop(HOLE, gap - explained.frames)
        self.next_seq = upto + 1
        self.held += explained.held
        for cause, count in explained.dropped.items():
            self.dropped[cause] = self.dropped.get(cause, 0) + count
        return explained


def _trimmed(since: Since, room: int) -> Since:
    """A copy of `since` with at most `room` frames: what dropped is kept before what was held."""
    left, dropped = room, {}
    for cause, count in since.dropped.items():
        dropped[cause] = min(count, left)
        left -= dropped[cause]
    return Since(min(since.held, left), {cause: count for cause, count in dropped.items() if count})
