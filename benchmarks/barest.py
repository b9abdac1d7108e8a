"""What any pipeline of three processes costs besides decoding and encoding, before it accounts for anything.

    python benchmarks/barest.py CLIP [--streams 1] [--seconds 12] [--json]

Three processes (`compare/bare.py`) do what cannot be left out: decode and convert, run the network, write to the broker's
socket, with ZeroMQ between them. CPU is counted as in `overhead.py`, so its `besides_ms` is what that file's `overhead_ms` could come down
to: with the same conversion, and without gate, account, credits, records, reconnection or states.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from compare import threads
from compare.clip import CodedClip, code_clip
from compare.rig import broker, feeding, machine
from overhead import decode_only_ms

ROLES = ("publish", "encode", "capture")
WARM_S = 12.0


async def measure(options: argparse.Namespace, clip: CodedClip, folder: Path) -> dict[str, Any]:
    cameras = [f"cam{number}" for number in range(options.streams)]
    async with contextlib.AsyncExitStack() as stack:
        broker_name, port, _ = await stack.enter_async_context(broker(folder))
        feed = await stack.enter_async_context(feeding(clip, ["camvec", "decode"], cameras, folder / "pushes.txt"))
        feed.connect()
        arguments = {"publish": [str(port)], "encode": [], "capture": feed.urls("camvec", cameras).values()}
        pids = {role: await started(stack, role, folder, *arguments[role]) for role in ROLES}
        await asyncio.sleep(WARM_S)
        decoding = asyncio.create_task(decode_only_ms(feed.urls("decode", cameras)[cameras[0]], options.seconds))
        stages, before = tallies(folder), threads.table(pids.values())
        await asyncio.sleep(options.seconds)
        used = threads.spent(before, threads.table(pids.values()))
        spent = {role: since(stages[role], now) for role, now in tallies(folder).items()}
        decode_ms = await decoding
    frames = float(clip.fps) * options.streams * options.seconds
    parts = {
        role: {part: round(usage.cpu_ns / 1e6 / frames, 3) for part, usage in used[pid].items() if usage.cpu_ns}
        for role, pid in pids.items()
    }
    total_ms = sum(sum(part.values()) for part in parts.values())
    return {
        "source": f"{clip.size[0]}x{clip.size[1]}",
        "fps": float(clip.fps),
        "streams": options.streams,
        "threads_ms": parts,
        "total_ms": round(total_ms, 3),
        "decode_ms": round(decode_ms, 3),
        "encode_ms": round(spent["encode"], 3),
        "convert_ms": round(spent["capture"], 3),
        "besides_ms": round(total_ms - decode_ms - spent["encode"], 3),
        "broker": broker_name,
        "python": sys.version.split()[0],
        **machine(),
    }


async def started(stack: contextlib.AsyncExitStack, role: str, folder: Path, *arguments: str) -> int:
    """The process of a role; it ends with the stack."""
    script = Path(__file__).parent / "compare" / "bare.py"
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), role, str(folder), *arguments)
    stack.push_async_callback(process.wait)
    stack.callback(process.kill)
    return process.pid


def tallies(folder: Path) -> dict[str, dict[str, int]]:
    return {role: json.loads((folder / f"{role}.json").read_text()) for role in ("encode", "capture")}


def since(before: dict[str, int], now: dict[str, int]) -> float:
    """Milliseconds of CPU each time, between two tallies."""
    return (now["cpu_ns"] - before["cpu_ns"]) / 1e6 / max(1, now["times"] - before["times"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="camvec-barest-") as name:
        clip = code_clip(options.clip, Path(name) / "clip.h264", seconds=60)
        result = asyncio.run(measure(options, clip, Path(name)))
    for role, parts in result["threads_ms"].items():
        print(f"  {role:8} " + ", ".join(f"{part} {ms:.3f}" for part, ms in parts.items()))
    print(
        "total {total_ms} - decode {decode_ms} - encode {encode_ms} = {besides_ms} ms a frame, of which conversion "
        "{convert_ms}".format(**result)
    )
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
