"""Records -> payloads: what stands in each message. Pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from streaming import message
from streaming.errors import WireError
from streaming.frames import Since
from streaming.message import FeatureMessage, Heartbeat, Ledger, MessageQuality
from streaming.mqtt.lane import Lane, TailMark, Waiting
from streaming.mqtt.settings import MqttSettings
from streaming.mqtt.statistics import fidelity_figures
from streaming.records import FeatureRecord, HeldRecord, ModelDescriptor
from streaming.redaction import redact

SCHEMA: Final = 1
"""`v` of the JSON payloads."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant in both clocks."""

    ns: int
    """CLOCK_MONOTONIC."""
    unix_us: int

    def to_unix_us(self, ns: int) -> int:
        """A time of CLOCK_MONOTONIC near this moment as Unix microseconds."""
        return max(0, self.unix_us + (ns - self.ns) // 1000)


@dataclass(frozen=True, slots=True)
class Composer:
    """Builds the messages of one session."""

    settings: MqttSettings
    session: str

    def frame(self, lane: Lane, record: FeatureRecord, since: Since, now: Moment) -> FeatureMessage:
        """The message of one frame's vector. Raises WireError if the vector cannot be sent."""
        return self._feature(
            lane,
            record,
            since,
            now,
            vector=record.vector,
            norm=record.norm,
            model_id=record.model_id,
            model=record.model,
        )

    def temporal(
        self, lane: Lane, record: FeatureRecord, since: Since, now: Moment, descriptor: ModelDescriptor
    ) -> FeatureMessage:
        """The message of the temporal head's vector, brought to unit length. Raises WireError if it cannot be sent."""
        vector = np.frombuffer(record.temporal or b"", dtype="<f4")
        norm = float(np.linalg.norm(vector))
        unit = (vector / norm if norm else vector).astype("<f4").tobytes()
        return self._feature(
            lane, record, since, now, vector=unit, norm=norm, model_id=descriptor.model_id, model=descriptor.fingerprint
        )

    def _feature(
        self,
        lane: Lane,
        record: FeatureRecord,
        since: Since,
        now: Moment,
        *,
        vector: bytes,
        norm: float,
        model_id: str,
        model: str,
    ) -> FeatureMessage:
        stages, quality = record.stages, record.quality
        sent = message.to_wire_vector(vector, self.settings.dtype)
        return FeatureMessage(
            v=message.VERSION,
            session=self.session,
            camera=lane.camera,
            seq=lane.seq_of(model_id),
            frame_seq=record.frame_seq,
            since=since,
            model=model,
            captured_at=record.captured_at_us,
            published_at=now.unix_us,
            dim=len(vector) // 4,
            dtype=self.settings.dtype,
            norm=norm,
            vector=sent,
            output="frame" if model_id == record.model_id else "temporal",
            clock=record.clock,
            captured_error_us=record.captured_error_us,
            deadline=now.to_unix_us(record.deadline_ns),
            ledger=Ledger(
                decode=stages.decode_us,
                convert=stages.convert_us,
                wait=stages.wait_us,
                transfer=stages.transfer_us,
                queue=stages.queue_us,
                encode=stages.encode_us,
                publish=lane.publish_us,
            ),
            quality=MessageQuality(
                rung=quality.rung,
                tokens_updated=quality.tokens_updated,
                tokens_total=quality.tokens_total,
                cold=quality.cold,
                change=min(1.0, max(0.0, quality.change)),
                budget_met=now.ns <= record.deadline_ns,
            ),
            pts_us=record.pts_us,
            cut=record.cut,
            reset=record.reset,
        )

    def heartbeat(self, lane: Lane, record: HeldRecord | TailMark, since: Since, now: Moment) -> Heartbeat:
        """The message that says only what became of frames."""
        held = record if isinstance(record, HeldRecord) else None
        return Heartbeat(
            v=message.VERSION,
            session=self.session,
            camera=lane.camera,
            seq=lane.seq_of(lane.model_id),
            frame_seq=record.frame_seq,
            since=since,
            model=lane.model,
            captured_at=record.captured_at_us,
            published_at=now.unix_us,
            held_since=held.held_since_us if held else None,
            tail=held is None,
        )

    def spooled(self, waiting: Waiting, lane: Lane, now: Moment) -> bytes:
        """A feature for the spool: outside of the chain, so it says nothing of other frames."""
        assert isinstance(waiting.record, FeatureRecord)  # noqa: S101 - only features are spooled
        one = self.frame(Lane(lane.camera), waiting.record, Since(), now)
        one.spooled = True
        return message.encode(one, self.settings.format)

    def state(self, lane: Lane, now: Moment, fps_out: float) -> bytes:
        """The retained state of a camera: what capture says, and what became of its frames."""
        record, account = lane.state, lane.account
        body: dict[str, Any] = {"v": SCHEMA, "session": self.session, "camera": lane.camera, "at": now.unix_us}
        body |= {"state": "connecting", "reason": None, "detail": "", "since": now.unix_us}
        if record is not None:
            body |= {
                "state": record.state,
                "reason": record.reason,
                "detail": redact(record.detail),
                "since": record.since_us,
                "next_retry_at": record.next_retry_at_us,
                "last_frame_at": record.last_frame_at_us,
                "captured": record.captured,
                "fps_in": round(record.fps_in, 2),
                "codec": record.codec,
                "size": list(record.size),
                "clock": record.clock,
                "repaired_pts": record.repaired_pts,
                "reconnects": record.reconnects,
            }
        body |= {
            "fps_out": round(fps_out, 2),
            "lag_ms": round(lane.lag_ms, 1),
            "accounted_upto": account.accounted_upto,
            "encoded": account.encoded,
            "published": account.published,
            "held": account.held,
            "dropped": account.dropped,
            "duplicates": account.duplicates,
            "restarts": account.restarts,
            "fidelity": fidelity_figures(lane),
        }
        return to_json(body)

    def info(
        self, *, version: str, node: str, started_us: int, cameras: Iterable[str], models: Iterable[str], protocol: str
    ) -> bytes:
        """The retained description of the node."""
        body = {"v": SCHEMA, "schema": message.VERSION, "version": version, "node": node, "session": self.session}
        return to_json(
            body
            | {
                "started_at": started_us,
                "cameras": sorted(cameras),
                "models": sorted(models),
                "format": self.settings.format,
                "protocol": protocol,
            }
        )

    def model(self, descriptor: ModelDescriptor) -> bytes:
        """The retained description of a model."""
        body: dict[str, Any] = msgspec.to_builtins(descriptor)
        body.pop("type", None)
        return to_json({"v": SCHEMA, **body, "dtype": self.settings.dtype, "normalised": True})

    def gap(self, report: Mapping[str, Any], now: Moment) -> bytes:
        """What was not delivered."""
        return to_json({"v": SCHEMA, "session": self.session, "at": now.unix_us, **report})


def to_json(body: Any) -> bytes:
    """Compact JSON. Raises WireError on what JSON cannot say."""
    try:
        return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise WireError(f"expected something that JSON can say, got {exc}") from exc
