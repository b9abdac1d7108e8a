"""The capture worker: a few cameras, read in threads, sent one way to their encoders.

reader thread: decode -> convert -> newest-frame slot -> ZeroMQ, when there is a credit; else the event loop waits for one
"""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import cv2

from streaming.board import AccountBoard
from streaming.config import CameraConfig, Config
from streaming.logs import get_logger
from streaming.transport import CaptureLink
from streaming.wire import Welcome
from workers.camera import CameraCapture
from workers.control import Assignment, CommandReader, Status, StatusWriter, Stop, read_orders
from workers.endpoints import shared_context
from workers.health import Health
from workers.keys import client_keys

_log = get_logger("capture")
HEARTBEAT_S = 1.0
STATS_EVERY = 5
_DRAIN_S = 1.0


class CaptureWorker:
    """Runs the cameras of one assignment and follows the changes of it."""

    def __init__(self, assignment: Assignment, config: Config, status: StatusWriter) -> None:
        self._assignment = assignment
        self._config = config
        self._status = status
        self._health = Health(assignment.worker)
        self._links: dict[str, CaptureLink] = {}
        self._cameras: dict[str, CameraCapture] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._over_memory = False

    async def run(self, commands: CommandReader) -> None:
        """Until the supervisor says stop or is gone, or this process has grown too large."""
        async with AsyncExitStack() as self._stack, asyncio.TaskGroup() as self._group:
            self._board = self._stack.enter_context(AccountBoard.open(Path(self._assignment.board)))
            await self._follow(self._assignment, self._config)
            self._status.send(Status("ready"))
            beat = self._group.create_task(self._beat(), name="heartbeat")
            async for order in read_orders(commands):
                if isinstance(order, Stop):
                    break
                await self._follow(order, Config.from_json(order.config))
            beat.cancel()
            await self._stop_cameras(list(self._cameras))
            await self._drain()

    async def _follow(self, assignment: Assignment, config: Config) -> None:
        """Stop what is gone or changed, start what is new; a camera that stays is not touched."""
        before, self._assignment, self._config = self._config, assignment, config
        stays = {c for c in assignment.cameras if c in self._cameras and before.camera(c) == config.camera(c)}
        gone = [camera for camera in self._cameras if camera not in stays]
        await self._stop_cameras(gone)
        for camera in gone:
            for link in self._links.values():
                link.remove_camera(camera)
        for camera in assignment.cameras:
            if camera not in stays:
                await self._start_camera(camera, config.camera(camera))

    async def _start_camera(self, camera: str, settings: CameraConfig) -> None:
        link = await self._link(self._assignment.encoders[camera])
        link.add_camera(camera)
        capture = CameraCapture(
            camera,
            settings,
            link,
            self._board.row(camera),
            self._health,
            max_pixels=self._config.capture.max_pixels,
        )
        self._cameras[camera] = capture
        self._tasks[camera] = self._group.create_task(self._run_camera(capture), name=f"camera {camera}")

    async def _run_camera(self, capture: CameraCapture) -> None:
        await capture.run()
        if all(other.finished for other in self._cameras.values()):
            await self._drain()
            self._status.send(Status("finished"))

    async def _stop_cameras(self, cameras: list[str]) -> None:
        for camera in cameras:
            self._tasks[camera].cancel()
        await asyncio.gather(*(self._tasks.pop(camera) for camera in cameras), return_exceptions=True)
        for camera in cameras:
            self._cameras.pop(camera).stop()

    async def _link(self, endpoint: str) -> CaptureLink:
        if endpoint not in self._links:
            keys = client_keys(self._config, endpoint)
            link = CaptureLink(
                endpoint,
                self._assignment.worker,
                keys=keys,
                context=shared_context(endpoint),
                on_welcome=self._tell_states,
            )
            self._links[endpoint] = await self._stack.enter_async_context(link)
        return self._links[endpoint]

    def _tell_states(self, _: Welcome) -> None:
        for capture in self._cameras.values():
            capture.tell(capture.reader.state())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(_DRAIN_S):
                for link in self._links.values():
                    if link.connected:
                        await link.settled()
        except TimeoutError:
            _log.warning("stopped with frames that the encoder has not acknowledged", worker=self._assignment.worker)

    async def _beat(self) -> None:
        beats = 0
        while True:
            started_ns = time.monotonic_ns()
            await asyncio.sleep(HEARTBEAT_S)
            beats += 1
            self._health.time("loop_lag", (time.monotonic_ns() - started_ns) // 1000 - int(HEARTBEAT_S * 1e6))
            for capture in self._cameras.values():
                capture.beat()
            self._status.send(Status("alive", progress=sum(c.captured for c in self._cameras.values())))
            if beats % STATS_EVERY == 0:
                self._report()

    def _report(self) -> None:
        stats = self._health.snapshot()
        for link in list(self._links.values())[:1]:
            link.send_record(stats)
        if stats.rss_mb > self._config.capture.rss_limit_mb:
            _log.error("over the memory limit; ending for a fresh start", worker=stats.worker, rss_mb=stats.rss_mb)
            raise MemoryError(f"{stats.rss_mb:.0f} MB are over capture.rss_limit_mb")


def run_capture(assignment: Assignment, config: Config, commands: CommandReader, status: StatusWriter) -> None:
    """The capture role: blocks until it is told to stop."""
    cv2.setNumThreads(1)  # parallelism comes from processes and from the cameras' threads
    asyncio.run(CaptureWorker(assignment, config, status).run(commands))
