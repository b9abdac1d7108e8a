"""What a source really sends, found out by watching it for a few seconds."""

import statistics
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Final, Literal
from urllib.parse import urlsplit

from streaming.clock import SYSTEM_CLOCK, Clock
from streaming.errors import Reason, SourceError
from streaming.frames import ClockSource
from streaming.redaction import redact
from streaming.sources import open_source
from streaming.sources.base import Picture, SourceConfig
from streaming.sources.watchdog import Watchdog

GRACE_S: Final = 1.0


@dataclass
class ProbeReport:
    """What `probe` saw. `reason` is None if pictures came; the URL is redacted. Times in ms, intervals in s."""

    url: str
    reason: Reason | None = None
    detail: str = ""
    auth: Literal["none", "accepted", "refused", "unknown"] = "unknown"
    """none: worked without credentials; accepted: worked with those of the URL."""
    codec: str = ""
    width: int = 0
    height: int = 0
    pix_fmt: str = ""
    transport: str = ""
    live: bool = False
    fps_announced: float = 0.0
    fps_measured: float = 0.0
    """By the stream's own time."""
    keyframe_interval_s: float | None = None
    """Median; None if fewer than two keyframes came."""
    clock: ClockSource | None = None
    """The best that was seen: rtcp and driver come after a while."""
    captured_error_us: int = 0
    frames: int = 0
    damaged: int = 0
    repaired_pts: int = 0
    open_ms: float | None = None
    first_frame_ms: float | None = None
    decode_ms: float | None = None
    """Median of one picture."""


@dataclass
class _Notes:
    pts_us: list[int] = field(default_factory=list)
    keyframes_us: list[int] = field(default_factory=list)
    decode_us: list[int] = field(default_factory=list)


def probe(config: SourceConfig, seconds: float = 5.0, clock: Clock = SYSTEM_CLOCK) -> ProbeReport:
    """Open the source, watch it for `seconds`, and report. Blocks; returns in time even if the source is stuck."""
    report, stop = ProbeReport(url=redact(config.url)), threading.Event()
    watcher = threading.Thread(target=_watch, args=(config, seconds, clock, report, stop), name="probe", daemon=True)
    limits = Watchdog(config)
    watcher.start()
    watcher.join(limits.open_limit_s + seconds + limits.stall_limit_s + GRACE_S)
    if watcher.is_alive():
        stop.set()
        return replace(report, reason="stalled", detail=f"{report.url}: gave up waiting; the source is stuck")
    return report


def _watch(config: SourceConfig, seconds: float, clock: Clock, report: ProbeReport, stop: threading.Event) -> None:
    source, notes, started_s = open_source(config, clock), _Notes(), time.monotonic()
    try:
        info = source.open()
        report.open_ms = _ms_since(started_s)
        report.codec, report.width, report.height, report.pix_fmt = info.codec, info.width, info.height, info.pix_fmt
        report.transport, report.live, report.fps_announced = info.transport, info.live, info.fps
        until_s = time.monotonic() + seconds
        for picture in source.pictures():
            _note(picture, report, notes, started_s)
            if stop.is_set() or time.monotonic() > until_s:
                break
    except SourceError as error:
        report.reason, report.detail = error.reason, str(error)
    except Exception as exc:  # noqa: BLE001 - a fault of ours is part of the report
        report.reason, report.detail = "internal", redact(f"{type(exc).__name__}: {exc}")
    finally:
        source.close()
    report.repaired_pts = source.repaired_pts
    _conclude(config, report, notes)


def _note(picture: Picture, report: ProbeReport, notes: _Notes, started_s: float) -> None:
    report.frames += 1
    report.damaged += picture.damaged
    if picture.image is None:
        return
    if report.first_frame_ms is None:
        report.first_frame_ms = _ms_since(started_s)
    report.width, report.height, report.pix_fmt = picture.image.width, picture.image.height, picture.image.format.name
    if report.clock in (None, "arrival"):
        report.clock, report.captured_error_us = picture.captured.clock, picture.captured.error_us
    notes.pts_us.append(picture.pts_us)
    notes.decode_us.append(picture.decode_us)
    if picture.keyframe:
        notes.keyframes_us.append(picture.pts_us)


def _conclude(config: SourceConfig, report: ProbeReport, notes: _Notes) -> None:
    if len(notes.pts_us) > 1:
        report.fps_measured = round((len(notes.pts_us) - 1) * 1e6 / (notes.pts_us[-1] - notes.pts_us[0]), 2)
    if len(notes.keyframes_us) > 1:
        pairs = zip(notes.keyframes_us, notes.keyframes_us[1:], strict=False)
        report.keyframe_interval_s = statistics.median((after - before) / 1e6 for before, after in pairs)
    if notes.decode_us:
        report.decode_ms = round(statistics.median(notes.decode_us) / 1000, 2)
    if report.reason == "auth":
        report.auth = "refused"
    elif report.open_ms is not None:
        report.auth = "accepted" if urlsplit(config.url).username else "none"


def _ms_since(started_s: float) -> float:
    return round((time.monotonic() - started_s) * 1000, 1)
