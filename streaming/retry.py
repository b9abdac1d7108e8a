"""When to try again: exponential back-off with full jitter, and the long cool-down after a refused password."""

import random
from dataclasses import dataclass, field

MAX_DOUBLINGS = 32


@dataclass
class Backoff:
    """Delays drawn uniformly from 0 to min(cap_s, base_s x 2^n): dead peers cost little, and many clients do not come at once.

    Full jitter after "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base_s: float = 1.0
    cap_s: float = 60.0
    rng: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def next_s(self) -> float:
        """Seconds to wait before the next try; each call counts one failure more."""
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(self.failures, MAX_DOUBLINGS))
        self.failures += 1
        return self.rng.uniform(0.0, ceiling)

    def reset(self) -> None:
        """It worked: the next failure starts from `base_s` again."""
        self.failures = 0


@dataclass
class Cooldown:
    """Delays after a refused password: first_s, then doubled up to cap_s, so that no camera locks the account.

    A little jitter upwards keeps the cameras of one site apart; never earlier than promised.
    """

    first_s: float = 300.0
    cap_s: float = 3600.0
    rng: random.Random = field(default_factory=random.Random)
    refusals: int = 0

    def next_s(self) -> float:
        """Seconds to wait before the password is tried again."""
        delay = min(self.cap_s, self.first_s * 2.0 ** min(self.refusals, MAX_DOUBLINGS))
        self.refusals += 1
        return delay * self.rng.uniform(1.0, 1.1)

    def reset(self) -> None:
        """The password was accepted."""
        self.refusals = 0
