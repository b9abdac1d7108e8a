"""The CPU of demuxing and decoding alone: `python decode_only.py URL SECONDS` prints milliseconds a frame of this thread."""

import sys
import time

import av

SETTLE_FRAMES = 25


def main() -> None:
    url, seconds = sys.argv[1], float(sys.argv[2])
    options = {"rtsp_transport": "tcp", "analyzeduration": "0", "probesize": "32"} if url.startswith("rtsp") else {}
    with av.open(url, options=options) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        frames, ends_s, cpu_s = -SETTLE_FRAMES, time.monotonic() + seconds, 0.0
        for packet in container.demux(stream):
            frames += len(packet.decode())
            if frames <= 0:
                cpu_s, ends_s = time.process_time(), time.monotonic() + seconds
            elif time.monotonic() > ends_s:
                break
    print(1e3 * (time.process_time() - cpu_s) / max(1, frames))


if __name__ == "__main__":
    main()
