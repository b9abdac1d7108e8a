"""From an open container to pictures: demux, decode, and say of each access unit when it came and whether to trust it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from streaming.clock import Clock
from streaming.errors import SourceError
from streaming.frames import CaptureTime
from streaming.sources.arrivals import Arrival, Arrivals
from streaming.sources.base import Picture
from streaming.sources.damage import DamageGate, broken_picture, lost_packets
from streaming.sources.ffmpeg_log import LogLine, captured_log
from streaming.sources.reasons import AV_ERRORS
from streaming.sources.timestamps import CaptureClock, TimestampRepair

ONE_PICTURE_PER_PACKET: Final = {"h264", "hevc"}
"""Codecs in which a packet without a picture has been swallowed. Not so in VP9 or packed MPEG-4, nor in interlaced video."""


class Pace(Protocol):
    """Who says when a file's packets and pictures are due: a `Pacer`, or a clock of a benchmark's own."""

    def due_ns(self, stream_us: int | None) -> int | None:
        """When `stream_us` is due by the decoder's clock; None as long as nobody knows."""
        ...

    def wait(self, stream_us: int | None) -> None:
        """Return when `stream_us` is due."""
        ...


@dataclass
class Decoder:
    """What lasts from the opening of a source to its close, also when a file starts again."""

    clock: Clock
    repair: TimestampRepair
    capture: CaptureClock
    pacer: Pace | None
    translate: Callable[[BaseException, list[LogLine]], SourceError]
    alive: Callable[[int], None]
    """Called with the arrival of each packet, CLOCK_MONOTONIC in ns."""
    run: "Callable[[Decoder, Any, Any], Run] | None" = None
    """Makes the run through a container; None: a plain `Run`."""
    size: tuple[int, int] | None = None

    def pictures(self, container: Any, stream: Any) -> Iterator[Picture]:
        """Every access unit of `stream` from here to its end. Raises SourceError."""
        yield from (self.run or Run)(self, container, stream).pictures()


@dataclass
class Run:
    """One run through a container: its packets are numbered, its decoder holds some of them back."""

    decoder: Decoder
    container: Any
    stream: Any
    arrivals: Arrivals = field(default_factory=Arrivals)
    damage: DamageGate = field(init=False)
    number: int = -1

    def __post_init__(self) -> None:
        self.damage = DamageGate(joined=not self.decoder.repair.live)

    def pictures(self) -> Iterator[Picture]:
        """Every access unit, decoded as it comes."""
        for packet, arrival in self._packets():
            yield from self._decode(packet, arrival)

    def _packets(self) -> Iterator[tuple[Any, Arrival | None]]:
        """Each packet with its arrival; the empty one at the end, for which the decoder is drained, has none."""
        demuxer = self.container.demux(self.stream)
        while True:
            with captured_log() as lines:
                try:
                    packet = next(demuxer, None)
                except AV_ERRORS as exc:
                    raise self.decoder.translate(exc, lines) from None  # it holds the URL with its password
            if packet is None:
                return
            yield packet, self._arrived(packet, lines) if packet.size else None

    def _arrived(self, packet: Any, lines: list[LogLine]) -> Arrival:
        if self.decoder.pacer is not None:
            self.decoder.pacer.wait(microseconds(packet.dts, packet.time_base))
        now_ns, now_us = self.decoder.clock.monotonic_ns(), self.decoder.clock.unix_us()
        self.decoder.alive(now_ns)
        self.number += 1
        if lost_packets(lines):
            self.damage.lost(self.number, now_ns)
        if packet.is_corrupt:
            self.damage.broken(self.number, now_ns)
        return Arrival(self.number, packet.pts, now_ns, now_us, packet.is_keyframe)

    def _decode(self, packet: Any, arrival: Arrival | None) -> Iterator[Picture]:
        """Feed one packet, or, if it is empty, drain what the decoder still holds."""
        if arrival is not None:
            self.arrivals.add(arrival)
        started_ns = time.perf_counter_ns()
        with captured_log() as lines:
            try:
                images = packet.decode()
            except AV_ERRORS:  # this access unit is lost, the stream goes on
                images = None
        now_ns = self.decoder.clock.monotonic_ns()
        if images is None or broken_picture(lines):
            self.damage.broken(self.number if arrival is None else arrival.number, now_ns)
        if images is None:
            failed = None if arrival is None else self.arrivals.fail()
            yield from self._damaged(failed, 0 if failed is not None and failed.told else 1)
            return
        decode_us = (time.perf_counter_ns() - started_ns) // 1000 // max(1, len(images))
        for image in images:
            yield from self._picture(image, decode_us)

    def _picture(self, image: Any, decode_us: int) -> Iterator[Picture]:
        arrival, swallowed = self.arrivals.match(image.pts)
        if arrival is None:  # a second picture from one packet
            now_ns, now_us = self.decoder.clock.monotonic_ns(), self.decoder.clock.unix_us()
            arrival = Arrival(self.number, image.pts, now_ns, now_us, keyframe=False)
        if self.stream.codec_context.name in ONE_PICTURE_PER_PACKET and not image.interlaced_frame:
            yield from self._damaged(arrival, swallowed)
        arrival = self._in_its_turn(arrival, image)
        if image.is_corrupt:
            self.damage.broken(arrival.number, arrival.arrived_ns)
        trusted = self.damage.passes(arrival.number, arrival.arrived_ns, keyframe=arrival.keyframe)
        if arrival.told or not self.damage.joined:
            return
        yield self._timed(image, arrival, decode_us, trusted=trusted)

    def _in_its_turn(self, arrival: Arrival, image: Any) -> Arrival:
        """Of a file that plays at its pace, a picture comes when its own time does: before that only its packet was there.

        With B-frames packets come early, so that others can be predicted from them. A camera would not have had it yet.
        """
        pacer = self.decoder.pacer
        due_ns = pacer.due_ns(microseconds(image.pts, image.time_base)) if pacer else None
        early_ns = 0 if due_ns is None else min(due_ns, self.decoder.clock.monotonic_ns()) - arrival.arrived_ns
        if early_ns <= 0:
            return arrival
        came_ns, came_us = arrival.arrived_ns + early_ns, arrival.arrived_us + early_ns // 1000
        return replace(arrival, arrived_ns=came_ns, arrived_us=came_us)

    def _timed(self, image: Any, arrival: Arrival, decode_us: int, *, trusted: bool) -> Picture:
        raw_us = microseconds(image.pts, image.time_base)
        size = (image.width, image.height)
        reset = trusted and size != self.decoder.size
        if trusted:
            self.decoder.size = size
        return Picture(
            image=image if trusted else None,
            pts_us=self.decoder.repair.feed(raw_us, arrival.arrived_ns),
            captured=self._capture_time(raw_us, arrival),
            arrived_ns=arrival.arrived_ns,
            decode_us=decode_us,
            reset=reset,
            damaged=not trusted,
            keyframe=arrival.keyframe,
        )

    def _capture_time(self, raw_us: int | None, arrival: Arrival) -> CaptureTime:
        start_us = getattr(self.container, "start_time_realtime", None)  # since PyAV 18
        return self.decoder.capture.capture_time(raw_us, arrival.arrived_us, start_us)

    def _damaged(self, arrival: Arrival | None, count: int) -> Iterator[Picture]:
        """`count` access units of which there is no picture at all; none before the stream has been joined."""
        for _ in range(count if self.damage.joined else 0):
            arrived_ns = arrival.arrived_ns if arrival else self.decoder.clock.monotonic_ns()
            arrived_us = arrival.arrived_us if arrival else self.decoder.clock.unix_us()
            captured = self.decoder.capture.capture_time(None, arrived_us, None)
            yield Picture(None, self.decoder.repair.damaged(), captured, arrived_ns, decode_us=0, damaged=True)


def microseconds(ticks: int | None, time_base: Any) -> int | None:
    """Stream time rounded to whole microseconds, by whole numbers: with fractions it takes ten times as long."""
    if ticks is None or not time_base:
        return None
    whole, rest = divmod(ticks * time_base.numerator * 1_000_000, time_base.denominator)
    return int(whole + (2 * rest > time_base.denominator))
