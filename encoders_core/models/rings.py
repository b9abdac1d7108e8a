"""The last entries of a stream, in constant time and memory."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Ring:
    """The last `places` entries, each written twice, so that they always lie in one slice in time order."""

    buffer: Tensor
    """(..., 2 * places, D)"""
    seen: int = 0

    @classmethod
    def like(cls, entry: Tensor, places: int) -> "Ring":
        """An empty ring for entries (..., D)."""
        return cls(entry.new_zeros(*entry.shape[:-1], 2 * places, entry.shape[-1]))

    def push(self, entry: Tensor) -> Tensor:
        """Take in (..., D); the last entries (..., n, D) in time order, this one included: a view, valid until the next."""
        places = self.buffer.shape[-2] // 2
        place = self.seen % places
        self.buffer[..., place, :] = entry
        self.buffer[..., place + places, :] = entry
        self.seen += 1
        return self.buffer[..., place + places + 1 - min(self.seen, places) : place + places + 1, :]
