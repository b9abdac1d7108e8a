"""Which pictures cannot be trusted: from the first sign of damage to the next clean keyframe."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from streaming.sources.ffmpeg_log import LogLine

LOST: Final = re.compile(r"RTP: missed \d+ packets|bad cseq|packet too late")
BROKEN: Final = re.compile(
    r"error while decoding MB|concealing \d+|decode_slice_header error|cabac decode of|corrupted macroblock"
    r"|(?:left|top) block unavailable|out of range intra|Missing reference picture|reference picture missing"
    r"|Could not find ref with POC|Error constructing the frame RPS|invalid undecodable NALU|CABAC_MAX_BIN"
    r"|number of reference frames .* exceeds|negative number of zero coeffs|Error splitting the input into NAL"
    r"|Invalid NAL unit size|ac-tex damaged|error dc|mjpeg_decode_(?:dc|scan)|bad vlc|overread \d{3,}|Truncated frame"
)
"""What decoders say of a damaged picture. A list of the harmful, not of the harmless: many cameras earn a complaint
for every picture that they send, about things that do not show."""

PATIENCE_NS: Final = 20_000_000_000
"""A stream without (further) keyframes, as with intra refresh, is trusted after this long without new damage."""


def lost_packets(lines: Iterable[LogLine]) -> bool:
    """Whether the demuxer reports packets that never came."""
    return any(LOST.search(message) for _level, _name, message in lines)


def broken_picture(lines: Iterable[LogLine]) -> bool:
    """Whether the decoder reports a damaged picture."""
    return any(BROKEN.search(message) for _level, _name, message in lines)


@dataclass
class DamageGate:
    """Counts packets; lets pictures pass until damage, then again from a keyframe whose packets came after it.

    A live stream is joined anywhere: the gate starts closed and nothing counts as damaged before the first keyframe.
    """

    joined: bool = False
    _clean_from: int = 0
    _distrusted_ns: int | None = None

    @property
    def trusting(self) -> bool:
        """Whether pictures pass now, without a word against them."""
        return self.joined and self._clean_from == 0

    def lost(self, packet: int, now_ns: int) -> None:
        """Data is missing, as the demuxer noticed while `packet` was read.

        FFmpeg's parser holds one access unit back, so what is missing belongs to `packet` or to the one after it.
        """
        self._close(packet + 2, now_ns)

    def broken(self, packet: int, now_ns: int) -> None:
        """`packet` could not be decoded properly."""
        self._close(packet + 1, now_ns)

    def passes(self, packet: int, now_ns: int, *, keyframe: bool) -> bool:
        """Whether the picture of `packet` can be trusted. Asked in presentation order."""
        if self.joined and self._clean_from == 0:
            return True
        if self._distrusted_ns is None:
            self._distrusted_ns = now_ns
        waited_out = now_ns - self._distrusted_ns > PATIENCE_NS
        if waited_out or (keyframe and packet >= self._clean_from):
            self.joined, self._clean_from = True, 0
        return self.joined and self._clean_from == 0

    def _close(self, clean_from: int, now_ns: int) -> None:
        self._clean_from = max(self._clean_from, clean_from)
        self._distrusted_ns = now_ns
