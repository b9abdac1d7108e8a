"""One process of the barest pipeline: `bare.py capture FOLDER URL...`, `bare.py encode FOLDER` or `bare.py publish FOLDER PORT`.

Capture decodes, converts and sends; encode runs the network on what comes and sends the vector on; publish writes it to a
broker's socket. No account, no gate, no reconnection, no event loop: what any three processes with ZeroMQ between them do at least.
Each writes what it counted of its own stages to `FOLDER/ROLE.json` once a second.
"""

import json
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import zmq


class Tally:
    """CPU of a stage and how often it ran, in a file that is renewed once a second."""

    def __init__(self, path: Path) -> None:
        self._path, self._cpu_ns, self._times, self._written_s = path, 0, 0, 0.0

    def add(self, begun_ns: int) -> None:
        """The stage began when this thread had used `begun_ns`."""
        self._cpu_ns += time.thread_time_ns() - begun_ns
        self._times += 1
        if time.monotonic() > self._written_s + 1:
            self._written_s = time.monotonic()
            self._path.with_suffix(".new").write_text(json.dumps({"cpu_ns": self._cpu_ns, "times": self._times}))
            self._path.with_suffix(".new").replace(self._path)


def capture(context: Any, folder: Path, urls: list[str]) -> None:
    import av  # noqa: PLC0415  each process loads what it needs

    from streaming.frames import FrameSpec  # noqa: PLC0415
    from streaming.sources.convert import convert  # noqa: PLC0415

    spec, lock, tally = FrameSpec(size_hw=(224, 224)), threading.Lock(), Tally(folder / "capture.json")
    frames = context.socket(zmq.PUSH)
    frames.connect(f"ipc://{folder}/frames")

    def read(url: str) -> None:
        options = {"rtsp_transport": "tcp", "analyzeduration": "0", "probesize": "32"}
        with av.open(url, options=options) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for packet in container.demux(stream):
                for image in packet.decode():
                    begun_ns = time.thread_time_ns()
                    pixels = convert(image, spec)
                    with lock:
                        tally.add(begun_ns)
                        frames.send(pixels, copy=False)

    readers = [threading.Thread(target=read, args=(url,)) for url in urls]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def encode(context: Any, folder: Path) -> None:
    import numpy as np  # noqa: PLC0415

    from encoders_core.draining import drain  # noqa: PLC0415
    from encoders_core.hardware_threads import configure_threads  # noqa: PLC0415
    from encoders_core.realtime.frame_encoder import load_frame_encoder  # noqa: PLC0415

    configure_threads()
    encoder, tally = load_frame_encoder(), Tally(folder / "encode.json")
    state, (height, width) = encoder.new_state(), encoder.descriptor.input.size_hw
    frames, vectors = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    frames.bind(f"ipc://{folder}/frames")
    vectors.connect(f"ipc://{folder}/vectors")
    while True:
        pixels = np.frombuffer(frames.recv(copy=False), np.uint8).reshape(height, width, 3)
        begun_ns = time.thread_time_ns()
        features = drain(encoder.encode([encoder.plan(state, pixels)]))
        tally.add(begun_ns)
        vectors.send(features.astype(np.float16).tobytes())


def publish(context: Any, folder: Path, port: int) -> None:
    vectors = context.socket(zmq.PULL)
    vectors.bind(f"ipc://{folder}/vectors")
    with socket.create_connection(("127.0.0.1", port)) as broker:
        broker.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        broker.sendall(packet(0x10, b"\x00\x04MQTT\x04\x02\x00\x00\x00\x04bare"))
        broker.recv(4)
        topic = b"camvec/bare/cam/front/embedding/model"
        while True:
            broker.sendall(packet(0x30, len(topic).to_bytes(2, "big") + topic + vectors.recv()))


def packet(kind: int, body: bytes) -> bytes:
    """An MQTT packet."""
    length, size = b"", len(body)
    while True:
        size, low = divmod(size, 128)
        length += bytes([low | (128 if size else 0)])
        if not size:
            return bytes([kind]) + length + body


def main() -> None:
    role, folder, context = sys.argv[1], Path(sys.argv[2]), zmq.Context()
    if role == "capture":
        capture(context, folder, sys.argv[3:])
    elif role == "encode":
        encode(context, folder)
    else:
        publish(context, folder, int(sys.argv[3]))


if __name__ == "__main__":
    main()
