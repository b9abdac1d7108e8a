"""What arrived at the subscriber, what was pushed by the cameras, what the processes used; and the figures of all that."""

import bisect
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
import paho.mqtt.client as mqtt
import psutil
from numpy.typing import NDArray

MODEL_VARIANCE = 172.3
"""Of EfficientNet-Lite0's features over 15 clips of 12 cameras: below a hundredth of it a clip counts as still."""


class Message(NamedTuple):
    """A message as it came."""

    received_ns: int
    topic: str
    payload: bytes


class Recorder:
    """A subscriber that does nothing but write down the time: `messages` are decoded when all is over."""

    def __init__(self, port: int) -> None:
        self.messages: list[Message] = []
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self._client.on_message = lambda _c, _u, m: self.messages.append(
            Message(time.monotonic_ns(), m.topic, bytes(m.payload))
        )
        self._client.connect("127.0.0.1", port)

    def __enter__(self) -> Self:
        self._client.subscribe([("+/+", 0), ("camvec/+/cam/+/embedding/+", 0)])
        self._client.loop_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def heard(self) -> set[tuple[str, str]]:
        """Every (contender, camera) of which there has been a message."""
        return {sender_of(message.topic) for message in self.messages}


def sender_of(topic: str) -> tuple[str, str]:
    """(contender, camera) of a topic: of a loop KIND/CAMERA, of camvec as in docs/mqtt.md."""
    parts = topic.split("/")
    return parts[0], parts[1] if len(parts) == 2 else parts[3]


@dataclass
class Use:
    """CPU seconds and memory of some processes."""

    cpu_s: float
    rss_mb: float
    pss_mb: float

    @classmethod
    def of(cls, pids: Iterable[int]) -> "Use":
        """Since their start, and now."""
        cpu_s = rss = pss = 0.0
        for pid in pids:
            process = psutil.Process(pid)
            times, memory = process.cpu_times(), process.memory_full_info()
            cpu_s, rss, pss = cpu_s + times.user + times.system, rss + memory.rss, pss + memory.pss
        return cls(cpu_s, rss / 1e6, pss / 1e6)


@dataclass
class Slice:
    """One turn of one contender; figures count from `from_ns` to `to_ns`, vectors are followed from `began_ns` to `end_ns`."""

    contender: str
    began_ns: int
    from_ns: int
    to_ns: int
    end_ns: int
    cpu_s: float
    broker_cpu_s: float
    rss_mb: float
    pss_mb: float


class Vector(NamedTuple):
    """A vector at the subscriber: which frame, when; `dropped` counts by cause what camvec said of frames before it."""

    frame: int
    received_ns: int
    values: NDArray[np.float32] | None
    size: int
    dropped: dict[str, int]


def vectors_of(messages: list[Message]) -> dict[tuple[str, str], list[Vector]]:
    """By contender and camera, in the order in which they came. A heartbeat has no values and no frame (-1)."""
    found: dict[tuple[str, str], list[Vector]] = defaultdict(list)
    for received_ns, topic, payload in messages:
        if not topic.startswith("camvec/"):
            said = json.loads(payload)
            vector = Vector(said["frame"], received_ns, np.asarray(said["vector"], np.float32), len(payload), {})
        else:
            said = msgspec.msgpack.decode(payload)
            dropped = said.get("since", {}).get("dropped", {})
            if "vector" in said:
                values = np.frombuffer(said["vector"], "<f2").astype(np.float32) * said["norm"]
                vector = Vector(said["captured_at"], received_ns, values, len(payload), dropped)
            else:
                vector = Vector(-1, received_ns, None, len(payload), dropped)
        found[sender_of(topic)].append(vector)
    return found


Pushes = dict[tuple[str, str], list[tuple[int, int]]]
"""(contender, camera) -> (CLOCK_MONOTONIC in ns, frame) of each push."""


def read_pushes(log: Path) -> Pushes:
    pushes: Pushes = defaultdict(list)
    for line in log.read_text().splitlines():
        mount, frame, at_ns = line.split()
        _, contender, camera = mount.split("/")
        pushes[contender, camera].append((int(at_ns), int(frame)))
    return pushes


@dataclass
class Figures:
    """The sums of one contender over its slices."""

    arrived: int = 0
    encoded: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    bytes: int = 0
    ages_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    broker_cpu_s: float = 0.0
    error: float = 0.0
    received_error: float = 0.0
    received: int = 0

    def add(
        self, turn: Slice, pushes: Pushes, vectors: dict[tuple[str, str], list[Vector]], truth: NDArray[np.float32]
    ) -> None:
        """Count one turn; `truth` is the vector of each frame."""
        self.cpu_s += turn.cpu_s
        self.broker_cpu_s += turn.broker_cpu_s
        for sender, pushed in pushes.items():
            if sender[0] != turn.contender:
                continue
            mine = [(at_ns, frame) for at_ns, frame in pushed if turn.began_ns <= at_ns <= turn.end_ns]
            came = [v for v in vectors[sender] if turn.began_ns <= v.received_ns <= turn.end_ns]
            self._add_camera(turn, mine, came, truth)

    def _add_camera(
        self, turn: Slice, pushed: list[tuple[int, int]], came: list[Vector], truth: NDArray[np.float32]
    ) -> None:
        counted = [frame for at_ns, frame in pushed if turn.from_ns <= at_ns < turn.to_ns]
        pushed_ns = {frame: at_ns for at_ns, frame in pushed}
        order = {frame: number for number, (_, frame) in enumerate(pushed)}
        encoded = sorted(order[v.frame] for v in came if v.frame in order)
        self.arrived += len(counted)
        self.encoded += len({order[frame] for frame in counted} & set(encoded))
        for vector in came:
            if turn.from_ns <= vector.received_ns < turn.to_ns:
                self.messages += 1
                self.bytes += vector.size
                self.dropped.update(vector.dropped)
                if vector.frame in pushed_ns:
                    self.ages_ms.append((vector.received_ns - pushed_ns[vector.frame]) / 1e6)
                if vector.values is not None:
                    self.received_error += _squared(vector.values, truth[vector.frame])
                    self.received += 1
        for frame in counted:
            at = bisect.bisect_right(encoded, order[frame]) - 1
            if at >= 0:
                self.error += _squared(truth[pushed[encoded[at]][1]], truth[frame])

    def report(self, truth: NDArray[np.float32], turns: list[Slice]) -> dict[str, Any]:
        """What they come to."""
        variance = float(((truth - truth.mean(0)) ** 2).sum(1).mean())
        spread = self.arrived * max(variance, 0.01 * MODEL_VARIANCE)
        missing = self.arrived - self.encoded
        dropped = min(missing, sum(self.dropped.values()))
        is_camvec = turns[0].contender == "camvec"
        p50, p99 = np.percentile(self.ages_ms, [50, 99]) if self.ages_ms else (float("nan"),) * 2
        return {
            "age_ms": {"p50": round(float(p50), 1), "p99": round(float(p99), 1)},
            "cpu_ms_per_frame": round(1e3 * self.cpu_s / max(1, self.arrived), 2),
            "broker_cpu_ms_per_frame": round(1e3 * self.broker_cpu_s / max(1, self.arrived), 2),
            "arrived": self.arrived,
            "encoded": self.encoded,
            "held": missing - dropped if is_camvec else 0,
            "lost": dropped if is_camvec else missing,
            "lost_by_cause": dict(self.dropped),
            "fvu": round(self.error / spread, 5),
            "fvu_of_received": round(self.received_error / max(1, self.received) * self.arrived / spread, 6),
            "rss_mb": round(float(np.median([turn.rss_mb for turn in turns])), 1),
            "pss_mb": round(float(np.median([turn.pss_mb for turn in turns])), 1),
            "messages": self.messages,
            "bytes": self.bytes,
        }


def _squared(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(((a - b) ** 2).sum())
