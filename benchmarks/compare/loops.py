"""The loops that one writes without camvec, as a process of its own each: OpenCV, torch and paho in forty lines.

    python loops.py '{"kind": "naive", "camera": "cam0", "port": 1883, "url": "rtsp://..."}'

`naive` encodes every frame that VideoCapture gives; `better` has a thread that keeps the newest frame, and encodes that;
`better_fast` is `better` with this project's network in place of eager torch. Runs until its standard input ends.
"""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import paho.mqtt.client as mqtt
import torch
from numpy.typing import NDArray

from encoders_core.draining import drain
from encoders_core.models.efficientnet_lite import EfficientNetLite
from encoders_core.realtime.frame_encoder import Backend, load_frame_encoder
from encoders_core.weights.packaged import EFFICIENTNET_LITE0, load_packaged
from streaming.sources.timecode import STRIP_PX, read_strip

Picture = NDArray[np.uint8]
Encode = Callable[[Picture], NDArray[np.float32]]


def eager() -> Encode:
    """(H, W, 3) BGR -> (1280,): as the model's page shows it."""
    model = EfficientNetLite().eval()
    model.load_state_dict(load_packaged(EFFICIENTNET_LITE0))

    def encode(picture: Picture) -> NDArray[np.float32]:
        rgb = cv2.cvtColor(cv2.resize(picture, (224, 224)), cv2.COLOR_BGR2RGB)
        x = (torch.from_numpy(rgb).permute(2, 0, 1)[None].float() - 127) / 128
        with torch.inference_mode():
            return np.asarray(model.forward_features(x)[0])

    return encode


def fast(backend: Backend) -> Encode:
    """The same through the network that ships."""
    encoder = load_frame_encoder(backend=backend)

    def encode(picture: Picture) -> NDArray[np.float32]:
        rgb = cv2.cvtColor(cv2.resize(picture, (224, 224)), cv2.COLOR_BGR2RGB)
        plan = encoder.plan(encoder.new_state(), np.asarray(rgb, np.uint8))
        return np.asarray(drain(encoder.encode([plan]))[0])

    return encode


def every_frame(url: str, stop: threading.Event) -> Iterator[Picture]:
    """What VideoCapture gives, one after the other."""
    capture = cv2.VideoCapture(url)
    while not stop.is_set():
        ok, picture = capture.read()
        if not ok:
            break
        yield np.asarray(picture, np.uint8)
    capture.release()


def newest_frame(url: str, stop: threading.Event) -> Iterator[Picture]:
    """The newest of them whenever one is asked for; a thread grabs."""
    newest: list[Picture] = []
    changed = threading.Condition()

    def grab() -> None:
        for picture in every_frame(url, stop):
            with changed:
                newest[:] = [picture]
                changed.notify()

    thread = threading.Thread(target=grab)
    thread.start()
    while not stop.is_set():
        with changed:
            changed.wait_for(lambda: newest or stop.is_set(), timeout=0.5)
            picture = newest.pop() if newest else None
        if picture is not None:
            yield picture
    thread.join()


def run(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    kind, topic = settings["kind"], f"{settings['kind']}/{settings['camera']}"
    encode = fast(settings["backend"]) if kind == "better_fast" else eager()
    encode(np.zeros((480, 640, 3), np.uint8))
    frames = every_frame if kind == "naive" else newest_frame
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", settings["port"])
    client.loop_start()

    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    for picture in frames(settings["url"], stop):
        code = read_strip(cv2.cvtColor(picture[-STRIP_PX:], cv2.COLOR_BGR2GRAY))
        if code is not None:
            vector = encode(picture[:-STRIP_PX])
            client.publish(topic, json.dumps({"frame": code.index, "vector": vector.tolist()}))
    client.loop_stop()


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
