"""`camvec run` as a user has it: real processes, a real broker, killed workers, signals. R1, R8, R20-R22, R33, R35."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from streaming import FeatureSubscriber
from streaming.events import Event
from streaming.feature import CameraState, Model
from streaming.stream import Stream
from tests.gear.daemon import daemon, wait_until
from tests.gear.mosquitto import Mosquitto, mosquitto
from tests.streaming.sources.gated_gear import encoded, room

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

SECRET = "hunter2+geheim"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    folder = tmp_path / "broker"
    folder.mkdir()
    with mosquitto(folder) as running:
        yield running


def config(broker: Mosquitto, cameras: str, *, extra: str = "") -> str:
    return f"node: test\nmqtt: {broker.url}\n{extra}\ncameras:\n{cameras}\n"


async def until_state(subscriber: FeatureSubscriber, camera: str, *states: str) -> CameraState:
    async with asyncio.timeout(40):
        async for found in subscriber.states(camera):
            if found.state in states:
                return found
    raise AssertionError("the stream of states ended")


async def take(subscriber: FeatureSubscriber, camera: str, count: int, timeout_s: float = 40) -> list[int]:
    """The frame numbers of the next `count` vectors."""
    found: list[int] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            async for feature in subscriber.features(camera):
                found.append(feature.frame_seq)
                if len(found) == count:
                    return found
    raise AssertionError(f"{found} after {timeout_s} s; {subscriber.connection}, {subscriber.statistics(camera)}")


async def until_new(events: Stream[Event]) -> None:
    """Wait for the beginning of an event."""
    async for event in events:
        if event.phase == "new":
            return


def add_up(totals: dict[str, int]) -> bool:
    """Invariant 2 after a drain, from the account alone."""
    causes = set(totals) - {"captured", "accounted", "encoded", "held", "published"}
    told = totals["published"] + totals["held"] + sum(totals[cause] for cause in causes)
    return totals["captured"] == totals["accounted"] == told


async def test_daemon_accounts_for_every_frame_of_three_independent_lists(tmp_path: Path, broker: Mosquitto) -> None:
    """The scene's own list, the workers' counts, and what two subscribers were told."""
    log = tmp_path / "scene.jsonl"
    text = config(broker, f'  front: "scene:street?seed=3&fps=15&log={log}"')
    async with FeatureSubscriber(broker.url) as one, FeatureSubscriber(broker.url) as two:
        streams = [one.features(), two.features()]
        for stream in streams:
            await stream.ready()
        with daemon(tmp_path, text) as running:
            await take(one, "front", 40)
            code, seconds = await asyncio.to_thread(running.stop)
            totals = running.totals()["front"]
        await asyncio.sleep(0.5)
        seen = [subscriber.statistics("front") for subscriber in (one, two)]
    emitted = len(log.read_text().splitlines())
    assert code == 0
    assert seconds < 5
    assert add_up(totals), totals
    assert totals["captured"] <= emitted <= totals["captured"] + 30
    for statistics in seen:
        assert statistics.frames == totals["captured"]
        assert statistics.vectors == totals["published"]
        assert statistics.missing_messages == 0


async def test_decode_gate_accounts_for_the_frames_that_nobody_looked_at(tmp_path: Path, broker: Mosquitto) -> None:
    """A quiet camera: most frames are blind, and subscriber, account and state agree on every one."""
    clip = encoded(tmp_path / "quiet.mkv", room(noise=2), 250)
    text = config(broker, f"  front: {{url: {clip}, realtime: true, loop: true, decode_gate: true}}")
    async with FeatureSubscriber(broker.url) as subscriber:
        features = subscriber.features()
        await features.ready()
        with daemon(tmp_path, text) as running:
            await take(subscriber, "front", 3)
            before = subscriber.statistics("front")
            await asyncio.sleep(8)
            after = subscriber.statistics("front")
            state = await until_state(subscriber, "front", "streaming")
            _, seconds = await asyncio.to_thread(running.stop)
            totals = running.totals()["front"]
        await asyncio.sleep(0.5)
        statistics = subscriber.statistics("front")
    assert seconds < 5
    assert add_up(totals), totals
    assert statistics.frames == totals["captured"] > 150
    assert statistics.dropped["blind"] == totals["blind"] > 0.5 * totals["captured"]
    assert statistics.missing_messages == 0
    # Heartbeats fill the time between vectors: on a busy machine the gate lets more pictures through, and there are none.
    assert after.vectors + after.heartbeats >= before.vectors + before.heartbeats + 3
    assert state.fps_in > 20
    assert state.dropped.keys() <= {"blind", "superseded", "paced", "encoder_away"}


async def test_capture_worker_killed_under_load_loses_only_what_it_held(tmp_path: Path, broker: Mosquitto) -> None:
    text = config(broker, '  front: "scene:busy?seed=1&fps=15"\n  back: "scene:street?seed=2&fps=15"')
    async with FeatureSubscriber(broker.url) as subscriber:
        features = subscriber.features()
        await features.ready()
        with daemon(tmp_path, text) as running:
            before = await take(subscriber, "front", 10)
            running.kill_worker("capture-0")
            after = await take(subscriber, "front", 10)
            code, _ = await asyncio.to_thread(running.stop)
            totals = running.totals()
        await asyncio.sleep(0.5)
        restarts = subscriber.statistics("front").restarts
    assert code == 0
    assert after[0] > before[-1]
    assert restarts == 0
    for camera in ("front", "back"):
        assert add_up(totals[camera]), totals[camera]


async def test_encoder_killed_under_load_comes_back_cold_and_the_hole_is_booked(
    tmp_path: Path, broker: Mosquitto
) -> None:
    text = config(broker, '  front: "scene:busy?seed=1&fps=15"')
    async with FeatureSubscriber(broker.url) as subscriber:
        with daemon(tmp_path, text) as running:
            await take(subscriber, "front", 10)
            running.kill_worker("encode-0")
            async with asyncio.timeout(60):
                async for feature in subscriber.features("front"):
                    if feature.quality.cold:
                        break
            await take(subscriber, "front", 5)
            await asyncio.to_thread(running.stop)
            totals = running.totals()["front"]
    assert add_up(totals), totals
    assert totals["encoder_away"] + totals["worker_lost"] > 0


async def test_publisher_killed_comes_back_and_says_so(tmp_path: Path, broker: Mosquitto) -> None:
    text = config(broker, '  front: "scene:busy?seed=1&fps=15"')
    async with FeatureSubscriber(broker.url) as subscriber:
        with daemon(tmp_path, text) as running:
            before = await take(subscriber, "front", 10)
            running.kill_worker("publish")
            after = await take(subscriber, "front", 10)
            await asyncio.to_thread(running.stop)
            totals = running.totals()["front"]
    assert after[-1] > before[-1]
    assert totals["captured"] == totals["accounted"]


async def test_reload_adds_removes_and_changes_cameras_and_touches_no_other(tmp_path: Path, broker: Mosquitto) -> None:
    stays, goes = '  stays: "scene:busy?seed=1&fps=10"', '  goes: "scene:busy?seed=2&fps=10"'
    changes, changed = '  changes: "scene:busy?seed=3&fps=10"', '  changes: "scene:busy?seed=3&fps=5"'
    comes = '  comes: "scene:busy?seed=4&fps=10"'
    async with FeatureSubscriber(broker.url) as subscriber:
        with daemon(tmp_path, config(broker, f"{stays}\n{goes}\n{changes}")) as running:
            await asyncio.gather(*(take(subscriber, camera, 3) for camera in ("stays", "goes", "changes")))
            reset_flags: list[bool] = []
            resets = asyncio.create_task(collect_resets(subscriber, "stays", reset_flags))
            removal = asyncio.create_task(until_state(subscriber, "goes", "removed"))
            await until_state(subscriber, "goes", "streaming")
            running.reload(config(broker, f"{stays}\n{changed}\n{comes}"))
            await take(subscriber, "comes", 3)
            await removal
            await take(subscriber, "changes", 3)
            running.reload("cameras: {oops")
            await asyncio.to_thread(running.wait_for, "reload refused; the running configuration stays")
            await take(subscriber, "stays", 3)
            resets.cancel()
            await asyncio.gather(resets, return_exceptions=True)
            code, _ = await asyncio.to_thread(running.stop)
            totals = running.totals()
    assert code == 0
    assert set(totals) == {"stays", "changes", "comes"}
    assert all(add_up(row) for row in totals.values()), totals
    assert reset_flags
    assert not any(reset_flags)


async def collect_resets(subscriber: FeatureSubscriber, camera: str, flags: list[bool]) -> None:
    async for feature in subscriber.features(camera):
        flags.append(feature.reset)  # noqa: PERF401 - it never ends: what there is so far is read from outside


async def test_stop_takes_under_five_seconds_with_a_dead_broker_and_a_stuck_camera(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    with mosquitto(folder) as broker:
        text = config(broker, '  front: "scene:street?fps=10"\n  stuck: "rtsp://127.0.0.1:9/never"')
        with daemon(tmp_path, text) as running:
            await asyncio.to_thread(running.wait_for, "all workers are up")
            async with FeatureSubscriber(broker.url) as subscriber:
                await take(subscriber, "front", 3)
            broker.freeze()
            os.kill(running.worker_pid("encode-0"), signal.SIGSTOP)
            code, seconds = await asyncio.to_thread(running.stop)
            broker.thaw()
            leftover = running.descendants()
    assert code == 0
    assert seconds < 5
    assert not leftover


def test_daemon_that_is_killed_leaves_no_process_behind(tmp_path: Path, broker: Mosquitto) -> None:
    with daemon(tmp_path, config(broker, '  front: "scene:street?fps=10"')) as running:
        running.wait_for("all workers are up")
        children = running.descendants()
        assert len(children) >= 3
        running.process.kill()
        wait_until(lambda: not any(c.is_running() and c.status() != "zombie" for c in children), 5, what="orphans end")


async def test_secret_stands_nowhere_but_in_the_configuration(tmp_path: Path, broker: Mosquitto) -> None:
    """R20: logs, states, process arguments and environments, with a camera that refuses the password."""
    text = config(broker, f'  front: "rtsp://user:{SECRET}@127.0.0.1:9/cam"\n  back: "scene:street?fps=5"')
    async with FeatureSubscriber(broker.url) as subscriber:
        with daemon(tmp_path, text, env={"CAMVEC_DEBUG": "1"}) as running:
            state = await until_state(subscriber, "front", "backoff")
            await take(subscriber, "back", 3)
            arguments = [" ".join(child.cmdline()) for child in running.descendants()]
            environments = [str(child.environ()) for child in running.descendants()]
            await asyncio.to_thread(running.stop)
    assert state.reason == "refused"
    assert state.next_retry_at is not None
    for place in (running.log.read_text(), str(state), *arguments, *environments):
        assert SECRET not in place
        assert "hunter2" not in place


async def test_file_source_loses_nothing_and_the_daemon_ends_by_itself(tmp_path: Path, broker: Mosquitto) -> None:
    text = config(broker, '  file: "scene:street?seed=5&realtime=0&frames=60&fps=10"')
    async with FeatureSubscriber(broker.url) as subscriber:
        features = subscriber.features()
        await features.ready()
        with daemon(tmp_path, text) as running:
            code = await asyncio.to_thread(running.process.wait, 60)
            totals = running.totals()["file"]
        await asyncio.sleep(0.3)
    assert code == 0
    assert totals["captured"] == 60
    assert totals["encoded"] + totals["held"] == 60
    assert add_up(totals), totals


async def test_single_process_runs_the_same_pipeline_in_threads(tmp_path: Path, broker: Mosquitto) -> None:
    text = config(broker, '  front: "scene:street?fps=10"')
    async with FeatureSubscriber(broker.url) as subscriber:
        with daemon(tmp_path, text, "--single-process") as running:
            await take(subscriber, "front", 10)
            workers = [child for child in running.descendants() if "workers.child" in " ".join(child.cmdline())]
            code, seconds = await asyncio.to_thread(running.stop)
            totals = running.totals()["front"]
    assert not workers
    assert code == 0
    assert seconds < 5
    assert add_up(totals), totals


def test_second_daemon_of_the_same_node_is_refused_with_a_sentence(tmp_path: Path, broker: Mosquitto) -> None:
    text = config(broker, '  front: "scene:street?fps=5"')
    with daemon(tmp_path, text) as first:
        first.wait_for("all workers are up")
        other = tmp_path / "other"
        other.mkdir()
        with daemon(other, text, env={"RUNTIME_DIRECTORY": str(tmp_path / "run")}) as second:
            assert second.process.wait(30) == 1
            assert "already" in second.tail()
        assert first.process.poll() is None


async def test_threshold_set_over_mqtt_takes_effect_and_nonsense_is_refused(tmp_path: Path, broker: Mosquitto) -> None:
    topic = "camvec/test/cam/front"
    async with FeatureSubscriber(broker.url) as subscriber:
        with daemon(tmp_path, config(broker, '  front: "scene:busy?fps=10"')) as running:
            await take(subscriber, "front", 3)
            for value in ("1", '"oops"'):
                send = ["mosquitto_pub", "-p", str(broker.port), "-q", "1", "-t", f"{topic}/set/activity_threshold"]
                await asyncio.to_thread(subprocess.run, [*send, "-m", value], check=True)
            await asyncio.to_thread(wait_until, lambda: "was not carried out" in running.log.read_text(), 20)
            read = ["mosquitto_sub", "-p", str(broker.port), "-C", "1", "-W", "10", "-t", f"{topic}/value/+"]
            done = await asyncio.to_thread(subprocess.run, read, capture_output=True, text=True, check=True)
            events = subscriber.events("front", event_type="activity")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(until_new(events), 5)
    assert done.stdout.strip() == "1.0"


async def test_temporal_output_is_a_second_model_beside_the_frames(tmp_path: Path, broker: Mosquitto) -> None:
    text = config(broker, '  front: "scene:busy?fps=10"', extra="temporal: {window: 4}")
    async with FeatureSubscriber(broker.url) as subscriber:
        with daemon(tmp_path, text):
            frames = await take(subscriber, "front", 3)
            async with asyncio.timeout(20):
                temporal = await anext(subscriber.features("front", model="efficientnet-lite0-temporal"))
                models = {model.model_id: model async for model in first(subscriber.models(), 2)}
    assert len(frames) == 3
    assert temporal.output == "temporal"
    assert models["efficientnet-lite0"].trained
    assert models["efficientnet-lite0-temporal"].temporal_of == "efficientnet-lite0"
    assert not models["efficientnet-lite0-temporal"].trained


async def first(models: Stream[Model], count: int) -> AsyncIterator[Model]:
    for _ in range(count):
        yield await anext(models)
