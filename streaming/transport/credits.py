"""Which camera may send a frame now: pure bookkeeping of what is in flight, with no socket and no clock of its own."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from streaming.wire import NO_FRAME

MAX_IN_FLIGHT: Final = 2
"""One frame is worked on while the next is on its way; more would only wait."""
MAX_IN_FLIGHT_LOSSLESS: Final = 1


@dataclass(slots=True)
class _Account:
    limit: int
    in_flight: deque[int] = field(default_factory=deque)
    last_seq: int = NO_FRAME
    acked_seq: int = NO_FRAME
    pace_ns: int = 0
    sent_ns: int | None = None


class Credits:
    """Per camera: at most `MAX_IN_FLIGHT` frames that the encoder has not acknowledged, and the pace that it asked for."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def __contains__(self, camera: str) -> bool:
        return camera in self._accounts

    def add(self, camera: str, *, lossless: bool = False) -> None:
        """A camera with nothing in flight, or one that is known now to be lossless: a single frame may be on its way."""
        limit = MAX_IN_FLIGHT_LOSSLESS if lossless else MAX_IN_FLIGHT
        self._accounts.setdefault(camera, _Account(limit)).limit = limit

    def remove(self, camera: str) -> None:
        """Forget a camera."""
        self._accounts.pop(camera, None)

    def wait_ns(self, camera: str, now_ns: int) -> int | None:
        """0: a frame may go now; more: after so long, for the pace; None: not before an acknowledgement."""
        account = self._accounts[camera]
        if len(account.in_flight) >= account.limit:
            return None
        if account.sent_ns is None:
            return 0
        return max(0, account.sent_ns + account.pace_ns - now_ns)

    def sent(self, camera: str, frame_seq: int, now_ns: int) -> None:
        """A frame is on its way."""
        account = self._accounts[camera]
        account.in_flight.append(frame_seq)
        account.last_seq, account.sent_ns = frame_seq, now_ns

    def passed_over(self, camera: str, up_to_seq: int) -> None:
        """Frames up to `up_to_seq` were accounted for without being sent; that too is acknowledged."""
        account = self._accounts[camera]
        account.last_seq = max(account.last_seq, up_to_seq)

    def acknowledged(self, camera: str, up_to_seq: int, pace_us: int) -> None:
        """Absolute: all up to `up_to_seq` is no longer in flight. Older or repeated ones change nothing but the pace."""
        account = self._accounts[camera]
        account.acked_seq = max(account.acked_seq, up_to_seq)
        account.pace_ns = pace_us * 1000
        while account.in_flight and account.in_flight[0] <= up_to_seq:
            account.in_flight.popleft()

    def void(self) -> None:
        """A new encoder: what was in flight to the old one will never be acknowledged, and its pace means nothing."""
        for account in self._accounts.values():
            account.in_flight.clear()
            account.pace_ns, account.acked_seq = 0, NO_FRAME

    def in_flight(self, camera: str) -> int:
        """Frames sent and not acknowledged."""
        return len(self._accounts[camera].in_flight)

    def last_seqs(self) -> dict[str, int]:
        """The last `frame_seq` sent or passed over by camera, -1 for none: what a Hello says."""
        return {camera: account.last_seq for camera, account in self._accounts.items()}

    def last_seq(self, camera: str) -> int:
        """The same for one camera."""
        return self._accounts[camera].last_seq

    def settled(self, cameras: Iterable[str]) -> bool:
        """Whether the encoder has acknowledged everything that these cameras sent or passed over."""
        accounts = (self._accounts[camera] for camera in cameras)
        return all(not account.in_flight and account.acked_seq >= account.last_seq for account in accounts)

    def cameras(self) -> list[str]:
        """All cameras."""
        return list(self._accounts)
