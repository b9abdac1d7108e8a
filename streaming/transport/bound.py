"""What both bound ends, the encoder's and the publisher's, say of themselves."""

from collections import Counter

import zmq

from streaming.curve import ServerKeys
from streaming.transport.sockets import BadMessages, End


class Bound:
    """An end that others connect to: its address, and what came that was not ours."""

    def __init__(
        self, kind: int, endpoint: str, *, keys: ServerKeys | None, context: zmq.SyncContext | None, hwm: int
    ) -> None:
        self._end = End(kind, endpoint, bind=True, keys=keys, context=context, hwm=hwm)
        self._bad = BadMessages()

    @property
    def endpoint(self) -> str:
        """Where it is bound; with the port that the system chose for tcp://...:*."""
        return self._end.endpoint

    @property
    def bad_messages(self) -> int:
        """Messages that were not ours or broke the rules."""
        return self._bad.total

    @property
    def bad_by_peer(self) -> Counter[str]:
        """The same by worker."""
        return self._bad.by_peer

    @property
    def refused_handshakes(self) -> int:
        """Connections that were not admitted: unknown key, wrong server key, no CURVE."""
        return self._end.refused_handshakes
