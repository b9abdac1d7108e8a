"""The publisher at one moment, as data."""

from dataclasses import dataclass

from streaming.mqtt.lane import Lane
from streaming.mqtt.measure import Percentiles


@dataclass(frozen=True)
class CameraStatistics:
    """What became of the frames of a camera; see `streaming.accounting.CameraAccount`."""

    encoded: int
    published: int
    held: int
    dropped: dict[str, int]
    waiting: int
    accounted_upto: int
    duplicates: int
    restarts: int
    rejected: int
    fidelity: dict[str, float | int | str | None] | None
    """The figures of `FidelityRecord`; None when nothing is audited."""


@dataclass(frozen=True)
class PublisherStatistics:
    """The publisher at one moment."""

    connected: bool
    protocol: str | None
    problems: list[str]
    connections: int
    next_retry_at_us: int | None
    """When the next connection is tried; None while there is a connection."""
    cameras: dict[str, CameraStatistics]
    percentiles_ms: dict[str, Percentiles]
    budget_hits: int
    budget_misses: int
    cold: int
    unknown_cameras: int
    events_waiting: int
    spool_dropped: int


def camera_statistics(lane: Lane) -> CameraStatistics:
    """What a lane has counted."""
    account = lane.account
    return CameraStatistics(
        encoded=account.encoded,
        published=account.published,
        held=account.held,
        dropped=dict(account.dropped),
        waiting=len(lane.waiting),
        accounted_upto=account.accounted_upto,
        duplicates=account.duplicates,
        restarts=account.restarts,
        rejected=lane.rejected,
        fidelity=fidelity_figures(lane),
    )


def fidelity_figures(lane: Lane) -> dict[str, float | int | str | None] | None:
    """What audits say of the vectors of a camera, as it is published."""
    record = lane.fidelity
    if record is None:
        return None
    return {
        "fvu": _rounded(record.fvu),
        "fvu_upper": _rounded(record.fvu_upper),
        "cos_p5": _rounded(record.cos_p5),
        "audited": record.audited,
        "coverage": round(record.coverage, 3),
        "scale": round(record.scale, 3),
        "gates": record.gates,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
