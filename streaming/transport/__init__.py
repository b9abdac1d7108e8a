"""The ZeroMQ ends of the pipeline: capture worker -> encoder (frames, on credit) -> publisher (records)."""

from streaming.transport.capture_link import CaptureLink
from streaming.transport.encoder_inbox import EncoderInbox
from streaming.transport.events import CamerasChanged, Event, FrameArrived, Readable, WorkerStarted, WorkerVanished
from streaming.transport.host import host_identity, ipc_endpoint, runtime_dir
from streaming.transport.records import RecordReceiver, RecordSender

__all__ = [
    "CamerasChanged",
    "CaptureLink",
    "EncoderInbox",
    "Event",
    "FrameArrived",
    "Readable",
    "RecordReceiver",
    "RecordSender",
    "WorkerStarted",
    "WorkerVanished",
    "host_identity",
    "ipc_endpoint",
    "runtime_dir",
]
