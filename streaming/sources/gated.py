"""Decoding behind the decode gate: packets of a quiet camera wait, are decoded in one go, or never (see decode_gate)."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from streaming.logs import get_logger
from streaming.sources.access_unit import GATED_CODECS, AccessUnit, access_unit, nal_length_bytes
from streaming.sources.arrivals import Arrival
from streaming.sources.base import Picture, StreamInfo
from streaming.sources.decode_gate import DecodeGate, DecodeGateSettings, PacketFacts, Verdict
from streaming.sources.decoding import Decoder, Run, microseconds
from streaming.sources.glance import Glance

_log = get_logger("capture")
REORDERED: Final = "its packets do not give one picture each at once: B-frames or interlaced video"


@dataclass
class Gating:
    """What lasts over the runs of one source: the gate, what it compares with, and whether it had to give up."""

    gate: DecodeGate
    name: str
    glance: Glance = field(default_factory=Glance)
    aside: bool = False

    def run(self, decoder: Decoder, container: Any, stream: Any) -> Run:
        """A run through a container, as `Decoder.run` wants it."""
        return GatedRun(decoder, container, stream, gating=self)

    def stand_aside(self, why: str) -> None:
        """From here on every packet is decoded as it comes."""
        self.aside = True
        _log.info("decode gate stands aside", source=self.name, why=why)


def gating_for(settings: DecodeGateSettings | None, info: StreamInfo, name: str, *, strip_px: int = 0) -> Gating | None:
    """The gating of a source that is open, or None if there is none to be; the log says why."""
    if settings is None:
        return None
    gating = Gating(DecodeGate(settings), name, Glance(strip_px))
    if info.lossless:
        gating.stand_aside("every frame of a file counts; with `realtime` it is read as a camera is")
    elif info.codec not in GATED_CODECS:
        gating.stand_aside(f"expected H.264 or HEVC, got {info.codec}")
    return None if gating.aside else gating


@dataclass(kw_only=True)
class GatedRun(Run):
    """A `Run` in which packets may wait. A frame whose packet waits is told of at once, as `blind`: none is ever sent."""

    gating: Gating
    _waiting: list[tuple[Any, Arrival]] = field(default_factory=list)
    _last_pts: int | None = None
    _length_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        context = self.stream.codec_context
        self._length_bytes = nal_length_bytes(context.name, context.extradata)

    def pictures(self) -> Iterator[Picture]:
        """Every access unit in order: a picture, damaged, or blind."""
        for packet, arrival in self._packets():
            if arrival is None or self.gating.aside:
                yield from self._decode(packet, arrival)
                continue
            unit = access_unit(bytes(packet), self.stream.codec_context.name, self._length_bytes)
            verdict = self._verdict(packet, arrival, unit)
            if verdict == "wait":
                if not unit.disposable:
                    self._waiting.append((packet, replace(arrival, told=True)))
                yield self._blind(packet, arrival)
                continue
            if verdict == "restart":
                self._waiting.clear()
            yield from self._look(packet, arrival)

    def _verdict(self, packet: Any, arrival: Arrival, unit: AccessUnit) -> Verdict:
        facts = PacketFacts(
            size=packet.size,
            arrived_ns=arrival.arrived_ns,
            keyframe=arrival.keyframe,
            restart=arrival.keyframe and unit.restart,
            disposable=unit.disposable,
            parameters=unit.parameters,
        )
        in_order = None in (packet.pts, self._last_pts) or packet.pts > self._last_pts
        self._last_pts = packet.pts
        if not in_order or not self.damage.trusting:
            self.gating.gate.wake()
        return self.gating.gate.decide(facts)

    def _blind(self, packet: Any, arrival: Arrival) -> Picture:
        raw_us = microseconds(packet.pts, packet.time_base)
        return Picture(
            image=None,
            pts_us=self.decoder.repair.feed(raw_us, arrival.arrived_ns),
            captured=self._capture_time(raw_us, arrival),
            arrived_ns=arrival.arrived_ns,
            decode_us=0,
            keyframe=arrival.keyframe,
            blind=True,
        )

    def _look(self, packet: Any, arrival: Arrival) -> Iterator[Picture]:
        """Decode what waits, whose pictures nobody needs any more, and this packet; compare its picture."""
        started_ns = time.perf_counter_ns()
        waiting, self._waiting = self._waiting, []
        for earlier, told in waiting:
            yield from self._decode(earlier, told)
        pictures = list(self._decode(packet, arrival))
        took_us = (time.perf_counter_ns() - started_ns) // 1000
        self.gating.gate.decoded(len(waiting) + 1, took_us)
        if waiting and pictures:
            pictures[-1].decode_us = took_us
        self._compare(pictures, arrival)
        yield from pictures

    def _compare(self, pictures: list[Picture], arrival: Arrival) -> None:
        gating, gate = self.gating, self.gating.gate
        if not self.damage.trusting:
            gate.wake()
            return
        image = pictures[0].image if len(pictures) == 1 and not self.arrivals.waiting else None
        if image is None:
            gating.stand_aside(REORDERED)
        elif image.format.components[0].bits != 8:
            gating.stand_aside(f"expected 8-bit pictures, got {image.format.name}")
        elif gate.wants_look(arrival.arrived_ns):
            gate.looked(arrival.arrived_ns, changed=gating.glance.changed(image))
