"""What became of a camera's frames between two records, although frames are settled out of order.

While frame 7 is being encoded, frame 8 may be held and frame 9 dropped: the record of 7 must not tell of 8 and 9.
"""

from streaming.frames import DropCause, Since


class Chain:
    """Counts of settled frames of one camera, handed out in order of `frame_seq`.

    `open` a frame that waits or is being encoded; `settle` it when it is held or dropped; `encoded` when its record goes
    out. Bounded by the frames that are open at once: settled neighbours are merged.
    """

    def __init__(self) -> None:
        self._open: dict[int, Since] = {}
        self._settled: list[tuple[int, Since]] = []

    def open(self, frame_seq: int, since: Since) -> None:
        """Frame `frame_seq` arrived and brought the count of those missing before it."""
        self._open[frame_seq] = since

    def settle(self, frame_seq: int, outcome: Since) -> None:
        """The open frame became `outcome`, a count of one frame; or frames never opened did, up to `frame_seq`."""
        since = self._open.pop(frame_seq, Since()).add(outcome)
        at = len(self._settled)
        while at and self._settled[at - 1][0] > frame_seq:
            at -= 1
        self._settled.insert(at, (frame_seq, since))
        self._merge()

    def encoded(self, frame_seq: int) -> Since:
        """The record of the open frame goes out: everything before it that no record has told of yet."""
        since = self._open.pop(frame_seq, Since())
        return self._take(frame_seq).add(since)

    def give_up(self, cause: DropCause) -> None:
        """Nothing more will become of the frames that are still open."""
        for frame_seq in sorted(self._open):
            self.settle(frame_seq, Since(dropped={cause: 1}))

    def unsent(self, frame_seq: int, since: Since) -> None:
        """The record that should have carried `since` did not go out: its successor will."""
        self._settled.insert(0, (frame_seq, since))
        self._merge()

    def settled_up_to(self) -> int | None:
        """The highest frame up to which everything is settled and untold, or None when there is nothing to tell."""
        first_open = min(self._open, default=None)
        ends = [seq for seq, _ in self._settled if first_open is None or seq < first_open]
        return max(ends, default=None)

    def take_settled(self, up_to_seq: int) -> Since:
        """Everything up to and including `up_to_seq`, for a record that tells of a held frame or of the end."""
        return self._take(up_to_seq + 1)

    def _take(self, before_seq: int) -> Since:
        taken = Since()
        while self._settled and self._settled[0][0] < before_seq:
            taken.add(self._settled.pop(0)[1])
        return taken

    def _merge(self) -> None:
        first_open = min(self._open, default=None)
        merged: list[tuple[int, Since]] = []
        for seq, since in self._settled:
            if merged and (first_open is None or seq < first_open):
                merged[-1] = (seq, merged[-1][1].add(since))
            else:
                merged.append((seq, since))
        self._settled = merged
