"""Which packets of a quiet camera may wait undecoded, and for how long. Pure: the caller brings packets, looks and times.

Awake, every packet is decoded and a picture is compared now and then with the one at the last change. When nothing has
changed for a while the gate dozes: packets wait, and one is decoded with those before it (a look) when its size speaks
of a change, when it is a keyframe, or when the wait is over. A keyframe makes those before it needless. Each look that
finds nothing doubles the wait up to `max_blind_s`; one that finds a change wakes the gate. A change that no size had
announced also makes it stay awake for longer: where sizes tell nothing, as at a constant bit rate, it stands aside.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from streaming.sources.packet_sizes import PacketSizes

Verdict = Literal["wait", "decode", "restart"]
"""`decode`: those that wait, then this one. `restart`: this one alone, those that wait are never needed."""
Cause = Literal["awake", "keyframe", "size", "parameters", "backlog", "catch_up", "blind", "waits"]

MAX_BYTES: Final = 4 << 20
FIRST_WAIT_S: Final = 0.2
GLANCE_S: Final = 0.2
MAX_GLANCE_S: Final = 1.0
"""Between two comparisons while awake; longer while each of them finds a change."""
PATIENCE_S: Final = 0.6
MAX_PATIENCE_S: Final = 60.0
"""Without change before the gate dozes: at first, and after changes that sizes did not tell of."""
_GAP_DECAY: Final = 0.9
_COST_RATES: Final = (0.5, 0.05)
"""Of the measured time a packet, up and down: the bound has to hold when decoding is slow."""


@dataclass(frozen=True, slots=True)
class DecodeGateSettings:
    """How long and how many packets of one camera may wait."""

    max_blind_s: float = 1.0
    max_backlog: int = 60
    max_catch_up_ms: float = 40.0
    """Longest time that decoding what waits may take, as measured so far: it comes out of the latency budget."""


@dataclass(frozen=True, slots=True)
class PacketFacts:
    """One packet, as far as one knows it before it is decoded."""

    size: int
    arrived_ns: int
    keyframe: bool = False
    restart: bool = False
    """A keyframe after which nothing needs anything before it."""
    disposable: bool = False
    parameters: bool = False


@dataclass
class DecodeGate:
    """The gate of one camera: `decide` for every packet, `decoded` and, if `wants_look`, `looked` after each decoding.

    Invariants: at most `max_backlog` packets and `MAX_BYTES` wait; no packet waits that arrives `max_blind_s` or more
    after the last look; the same calls give the same verdicts.
    """

    settings: DecodeGateSettings = field(default_factory=DecodeGateSettings)
    waiting: int = 0
    waiting_bytes: int = 0
    cause: Cause = "awake"
    """Why the last verdict was given."""
    patience_s: float = PATIENCE_S
    wait_s: float = 0.0
    """How long packets may wait now; 0: awake."""
    sizes: PacketSizes = field(default_factory=PacketSizes)
    _glance_s: float = GLANCE_S
    _quiet_since_ns: int | None = None
    _looked_ns: int = 0
    _last_ns: int | None = None
    _gap_ns: float = 0.0
    _cost_ms: float = 0.0
    _keyframe: bool = False

    @property
    def dozing(self) -> bool:
        """Whether packets may wait."""
        return self.wait_s > 0

    def decide(self, packet: PacketFacts) -> Verdict:
        """What to do with this packet."""
        self._note_gap(packet.arrived_ns)
        self._keyframe = packet.keyframe
        self.cause = self._cause(packet)
        if self.cause == "waits":
            self.waiting += 1
            self.waiting_bytes += packet.size
            return "wait"
        self.waiting = self.waiting_bytes = 0
        return "restart" if self.cause == "keyframe" and packet.restart else "decode"

    def decoded(self, packets: int, took_us: int) -> None:
        """Decoding so many packets took so long; keyframes, which never wait, are no measure of those that do."""
        if self._keyframe:
            return
        cost_ms = took_us / 1000 / max(1, packets)
        rate = _COST_RATES[cost_ms < self._cost_ms] if self._cost_ms else 1.0
        self._cost_ms += rate * (cost_ms - self._cost_ms)

    def wants_look(self, now_ns: int) -> bool:
        """Whether the picture that has just been decoded should be compared."""
        return self.dozing or now_ns - self._looked_ns >= self._glance_s * 1e9

    def looked(self, now_ns: int, *, changed: bool) -> None:
        """The picture of the packet that was decided last has been compared with the one at the last change."""
        self._looked_ns = now_ns
        self._glance_s = min(MAX_GLANCE_S, 2 * self._glance_s) if changed else GLANCE_S
        if changed:
            self._on_change(now_ns)
        elif self.dozing:
            self._on_quiet(now_ns)
        elif self._quiet_since_ns is None:
            self._quiet_since_ns = now_ns
        elif now_ns - self._quiet_since_ns >= self.patience_s * 1e9 and self.sizes.ready:
            self.wait_s = min(FIRST_WAIT_S, self.settings.max_blind_s)
            self._quiet_since_ns = now_ns

    def wake(self) -> None:
        """Pictures cannot be trusted, or cannot be compared: decode everything until it has been quiet again."""
        self.wait_s, self._quiet_since_ns = 0.0, None

    def _cause(self, packet: PacketFacts) -> Cause:
        counted = not packet.keyframe and not packet.disposable
        if counted:
            self.sizes.add(packet.size)
        if not self.dozing:
            return "awake"
        if packet.keyframe:
            return "keyframe"
        if counted and self.sizes.surprising():
            return "size"
        if packet.parameters:  # later pictures may need them, whatever a keyframe makes needless
            return "parameters"
        return self._bound(packet)

    def _bound(self, packet: PacketFacts) -> Cause:
        """Whether the wait would become too long with this packet and the one after it."""
        settings = self.settings
        if self.waiting + 1 > settings.max_backlog or self.waiting_bytes + packet.size > MAX_BYTES:
            return "backlog"
        if (self.waiting + 2) * self._cost_ms > settings.max_catch_up_ms:
            return "catch_up"
        blind_ns = packet.arrived_ns - self._looked_ns
        if blind_ns + self._gap_ns > self.wait_s * 1e9 or blind_ns >= settings.max_blind_s * 1e9:
            return "blind"
        return "waits"

    def _on_change(self, now_ns: int) -> None:
        if self.dozing:
            announced = self.cause == "size"
            self.sizes.told(truly=announced)
            self.patience_s = min(MAX_PATIENCE_S, max(PATIENCE_S, self.patience_s * (0.5 if announced else 2.0)))
        self.sizes.changed()
        self.wait_s, self._quiet_since_ns = 0.0, now_ns

    def _on_quiet(self, now_ns: int) -> None:
        self.wait_s = min(self.settings.max_blind_s, 2 * self.wait_s)
        if self.cause == "size":
            self.sizes.false_alarm()
        if now_ns - (self._quiet_since_ns or 0) >= 4 * self.patience_s * 1e9:
            self.patience_s, self._quiet_since_ns = max(PATIENCE_S, self.patience_s / 2), now_ns

    def _note_gap(self, arrived_ns: int) -> None:
        """The longest gap of the last dozen or so: cameras come in bursts."""
        if self._last_ns is not None:
            self._gap_ns = max(float(arrived_ns - self._last_ns), _GAP_DECAY * self._gap_ns)
        self._last_ns = arrived_ns
