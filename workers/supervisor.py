"""The daemon's parent: starts the workers, watches them, reloads the cameras, stops everything in order.

Order of a stop: capture first, so that nothing new comes in; then the encoders, which finish what they hold; then the
publisher, which sends it. Frames captured but never accounted for after that were in the hands of a killed worker.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from streaming.board import AccountBoard
from streaming.config import Config, diff_cameras, restart_needed
from streaming.logs import get_logger
from streaming.notify import notify, watchdog_interval_s
from workers.control import ROLES, Assignment, Role
from workers.endpoints import Endpoints
from workers.layout import Layout, plan_layout
from workers.process import Child
from workers.spawn import Handle, ProcessHandle, ThreadHandle

_log = get_logger("supervisor")
STOP_SHARES = {"capture": 0.28, "encode": 0.28, "publish": 0.28}
"""Of `shutdown_timeout_s`: how long each kind of worker may take to stop; the rest is for kills and the broker."""
MODEL_LIMIT_S = 30.0
"""After this long cameras are opened all the same: their states matter more than a model that does not load."""


class Supervisor:
    """Runs a configuration until `stop` is set or every source was a file and has ended.

    `load` is called on `reload()` for the new configuration. `board` is open while it runs and after.
    """

    def __init__(
        self,
        config: Config,
        *,
        runtime: Path,
        load: Callable[[], Config] | None = None,
        single_process: bool = False,
    ) -> None:
        self.config = config
        self.session = secrets.token_hex(8)
        self.children: dict[str, Child] = {}
        self.ready = asyncio.Event()
        self.board = AccountBoard.create(runtime / "board", capacity=max(256, 2 * len(config.cameras)))
        self.broker_port: int | None = None
        self._load = load
        self._spawn: Callable[[], Awaitable[Handle]] = ThreadHandle.spawn if single_process else ProcessHandle.spawn
        self._endpoints = Endpoints(config, runtime, inproc=single_process)
        self._layout = self._plan(config, None)
        self._changed = asyncio.Event()

    def _plan(self, config: Config, before: Layout | None) -> Layout:
        cameras = config.enabled_cameras()
        for camera in cameras:
            self.board.allocate(camera)
        return plan_layout(
            cameras,
            encoders=self._endpoints.encoders,
            cameras_per_worker=config.capture.cameras_per_worker,
            before=before,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Start everything, keep it running, and come back when it has stopped."""
        async with AsyncExitStack() as stack:
            await self._start_broker(stack)
            async with asyncio.TaskGroup() as group:
                self._group = group
                for assignment in self._assignments():
                    if assignment.role != "capture":
                        self._start(assignment)
                starting = group.create_task(self._start_capture(), name="start capture")
                watchdog = group.create_task(self._watch(), name="watchdog")
                try:
                    await self._until_stopped_or_finished(stop)
                finally:
                    starting.cancel()
                    watchdog.cancel()
                    notify("STOPPING=1")
                    await self._stop_in_order()

    async def _start_broker(self, stack: AsyncExitStack) -> None:
        if not (self.config.mqtt.embedded and "publish" in self.config.roles):
            return
        from streaming.broker import EmbeddedBroker

        broker = await stack.enter_async_context(EmbeddedBroker(port=self.config.mqtt.port))
        self.broker_port = broker.port
        _log.info("embedded broker is up", host="127.0.0.1", port=broker.port)

    def _assignments(self) -> list[Assignment]:
        layout, wanted = self._layout, self.config.roles
        by_encoder = {i: tuple(c for c, at in layout.encoder_of.items() if at == i) for i in range(layout.encoders)}
        workers: list[tuple[Role, str, tuple[str, ...], str]] = [
            ("publish", "publish", tuple(layout.encoder_of), self._endpoints.publisher),
            *(("encode", f"encode-{i}", held, self._endpoints.bound(i)) for i, held in by_encoder.items()),
            *(("capture", name, held, "") for name, held in layout.capture.items()),
        ]
        return [self._assignment(*worker) for worker in workers if worker[0] in wanted]

    def _assignment(self, role: Role, worker: str, cameras: tuple[str, ...], listen: str) -> Assignment:
        return Assignment(
            role=role,
            worker=worker,
            config=self.config.to_json(),
            session=self.session,
            cameras=cameras,
            encoders={c: self._endpoints.encoder(self._layout.encoder_of[c]) for c in cameras},
            listen=listen,
            publisher=self._endpoints.publisher,
            board=str(self.board.path),
            broker_port=self.broker_port,
        )

    async def _start_capture(self) -> None:
        """Cameras are opened when the encoders have loaded their model: frames before that could only be dropped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MODEL_LIMIT_S):
                for child in self._of_role("encode"):
                    await child.up.wait()
        for assignment in self._assignments():
            if assignment.worker not in self.children:
                self._start(assignment)
        self._changed.set()

    def _start(self, assignment: Assignment) -> None:
        child = Child(assignment, lambda _: self._changed.set(), self._spawn)
        self.children[child.name] = child
        self._group.create_task(child.keep(), name=child.name)

    async def _until_stopped_or_finished(self, stop: asyncio.Event) -> None:
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set() and not self._finished():
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({stopped, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                self._changed.clear()
                if not self.ready.is_set() and self._is_up():
                    self.ready.set()
                    self._say_ready()
                    _log.info("all workers are up", cameras=len(self._layout.encoder_of))
        finally:
            stopped.cancel()

    def _is_up(self) -> bool:
        wanted = {assignment.worker for assignment in self._assignments()}
        return wanted <= self.children.keys() and all(child.ready for child in self.children.values())

    def _finished(self) -> bool:
        captures = self._of_role("capture")
        return bool(captures) and all(child.finished for child in captures)

    def _of_role(self, role: str) -> list[Child]:
        return [child for child in self.children.values() if child.assignment.role == role]

    async def _watch(self) -> None:
        """Ping systemd's watchdog as long as every worker was heard lately: a stuck one is replaced, not pinged over."""
        interval_s = watchdog_interval_s() or 5.0
        while True:
            await asyncio.sleep(interval_s)
            if all(child.silent_s < 30.0 or not child.ready for child in self.children.values()):
                notify("WATCHDOG=1")

    async def reload(self) -> None:
        """Take over cameras that were added, removed or changed; the others go on untouched. A bad file changes nothing."""
        if self._load is None:
            return
        notify("RELOADING=1")
        try:
            config = self._load()
        except ValueError as error:
            _log.error("reload refused; the running configuration stays", error=str(error))
            self._say_ready("; the last reload was refused, the log says why")
        else:
            await self._apply(config)
            self._say_ready()

    def _say_ready(self, more: str = "") -> None:
        """To systemd, whose status shows the number of cameras and what there is `more` to say."""
        count = len(self._layout.encoder_of)
        notify("READY=1", f"STATUS={count} camera{'' if count == 1 else 's'}{more}")

    async def _apply(self, config: Config) -> None:
        for section in restart_needed(self.config, config):
            _log.warning("this section changes only with a restart", section=section)
        added, removed, changed = diff_cameras(self.config, config)
        self.config = self.config.with_cameras(config)
        self._layout = self._plan(self.config, self._layout)
        wanted = {assignment.worker: assignment for assignment in self._assignments()}
        for name, assignment in wanted.items():
            if name in self.children:
                self.children[name].send(assignment)
            else:
                self._start(assignment)
        gone = [name for name in self.children if name not in wanted]
        await asyncio.gather(*(self.children.pop(name).stop(1.0) for name in gone))
        for camera in removed:
            self.board.free(camera)
        _log.info("cameras reloaded", added=sorted(added), removed=sorted(removed), changed=sorted(changed))

    async def _stop_in_order(self) -> None:
        for role in ROLES:
            grace_s = STOP_SHARES[role] * self.config.shutdown_timeout_s
            await asyncio.gather(*(child.stop(grace_s) for child in self._of_role(role)))

    def totals(self) -> dict[str, dict[str, int]]:
        """Per camera: captured, encoded, held, published and drops by cause; what nobody accounted for is `worker_lost`.

        Final only after `run` has come back; before that the difference is merely in flight.
        """
        rows = {camera: self.board.totals(camera) for camera in self.board.cameras()}
        whole = {"capture", "publish"} <= set(self.config.roles)  # else one half of the account is on another host
        return {camera: _with_lost(row) if whole else row for camera, row in rows.items()}


def _with_lost(row: dict[str, int]) -> dict[str, int]:
    lost = row["captured"] - row["accounted"]
    return row | {"worker_lost": row["worker_lost"] + lost, "accounted": row["captured"]} if lost > 0 else row


@contextlib.asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[asyncio.Event]:
    """The supervisor as a context: yields its stop event, and waits for the ordered stop on the way out."""
    stop = asyncio.Event()
    task = asyncio.create_task(supervisor.run(stop), name="supervisor")
    task.add_done_callback(lambda _: stop.set())
    try:
        yield stop
    finally:
        stop.set()
        await task
