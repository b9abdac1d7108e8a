"""Daemons with cameras that misbehave, cameras behind the network, and a broker that goes away. R1, R5, R8, R29, R30."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from streaming import FeatureSubscriber
from streaming.curve import make_keys
from tests.gear.daemon import daemon
from tests.gear.mosquitto import Mosquitto, free_port, mosquitto
from tests.gear.rtsp import elementary_stream, rtsp_server
from tests.integration.test_daemon import add_up, config, take, until_state

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    folder = tmp_path / "broker"
    folder.mkdir()
    with mosquitto(folder) as running:
        yield running


def mounts(*paths: str, fps: int = 10, codec: str = "h264") -> dict[str, dict[str, object]]:
    return {path: {"file": elementary_stream(codec, fps=fps), "fps": fps} for path in paths}


async def test_eight_cameras_of_which_one_is_dead_and_one_freezes(tmp_path: Path, broker: Mosquitto) -> None:
    good = [f"good{number}" for number in range(6)]
    with rtsp_server(mounts("/good")) as server, rtsp_server(mounts("/freezes")) as freezing:
        lines = [f"  {name}: {server.url('/good')}" for name in good]
        lines.append(f"  dead: rtsp://127.0.0.1:{free_port()}/cam")
        lines.append(f"  freezes: {{url: '{freezing.url('/freezes')}', read_timeout_s: 1, stall_floor_s: 2}}")
        with daemon(tmp_path, config(broker, "\n".join(lines))) as running:
            async with FeatureSubscriber(broker.url) as subscriber:
                await asyncio.gather(*(take(subscriber, name, 2) for name in [*good, "freezes"]))
                freezing.freeze()
                dead = await until_state(subscriber, "dead", "backoff")
                frozen = await until_state(subscriber, "freezes", "stalled", "backoff")
                seen: Counter[str] = Counter()
                async with asyncio.timeout(40):
                    async for feature in subscriber.features():
                        seen[feature.camera] += 1
                        if all(seen[name] >= 5 for name in good):
                            break
                freezing.thaw()
                await until_state(subscriber, "freezes", "streaming")
            code, seconds = await asyncio.to_thread(running.stop)
            totals = running.totals()
    assert code == 0
    assert seconds < 5
    assert (dead.state, dead.reason) == ("backoff", "refused")
    assert dead.next_retry_at is not None
    assert frozen.reason in {"stalled", "timeout"}
    assert all(add_up(row) for row in totals.values()), totals


async def test_camera_that_restarts_is_read_again_and_its_numbers_go_on(tmp_path: Path, broker: Mosquitto) -> None:
    with (
        rtsp_server(mounts("/cam", codec="h265")) as server,
        daemon(tmp_path, config(broker, f"  front: {server.url('/cam')}")) as running,
    ):
        async with FeatureSubscriber(broker.url) as subscriber:
            before = await take(subscriber, "front", 3)
            server.kill()
            lost = await until_state(subscriber, "front", "backoff", "connecting")
            server.start()
            async with asyncio.timeout(60):
                async for feature in subscriber.features("front"):
                    if feature.reset:
                        break
            after = await take(subscriber, "front", 2)
        await asyncio.to_thread(running.stop)
        totals = running.totals()["front"]
    assert lost.state in {"backoff", "connecting"}
    assert after[-1] > before[-1]
    assert add_up(totals), totals


async def test_camera_that_refuses_the_password_waits_long_and_says_so(tmp_path: Path, broker: Mosquitto) -> None:
    """R7: a retry loop would lock the camera's account."""
    with rtsp_server(mounts("/cam"), user="viewer", password="right", auth="digest") as server:
        text = config(broker, f"  front: {server.url('/cam', login='viewer:wrong')}")
        with daemon(tmp_path, text):
            async with FeatureSubscriber(broker.url) as subscriber:
                state = await until_state(subscriber, "front", "auth_failed")
    assert state.reason == "auth"
    assert state.next_retry_at is not None
    assert state.next_retry_at / 1e6 - time.time() > 200


async def test_broker_that_restarts_gets_everything_again(tmp_path: Path) -> None:
    """R29, R33: frames keep flowing meanwhile, and the state says what was not delivered."""
    folder = tmp_path / "broker"
    folder.mkdir()
    with mosquitto(folder) as broker:
        text = config(broker, '  front: "scene:busy?seed=1&fps=10"')
        with daemon(tmp_path, text) as running:
            async with FeatureSubscriber(broker.url) as subscriber:
                before = await take(subscriber, "front", 3)
                broker.stop()
                await asyncio.sleep(3)
                broker.start()
                after = await take(subscriber, "front", 3)
                state = await until_state(subscriber, "front", "streaming")
            await asyncio.to_thread(running.stop)
            totals = running.totals()["front"]
    assert after[0] > before[-1] + 10
    assert state.dropped.get("broker_away", 0) + state.dropped.get("expired", 0) > 0
    assert add_up(totals), totals


async def test_broker_that_refuses_the_password_is_named_and_frames_keep_flowing(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    with mosquitto(folder, users={"edge": "right"}) as broker:
        text = config(broker, '  front: "scene:busy?fps=10"').replace("mqtt://", "mqtt://edge:wrong@")
        with daemon(tmp_path, text) as running:
            await asyncio.to_thread(running.wait_for, "all workers are up")
            await asyncio.sleep(6)
            log = running.log.read_text()
            code, _ = await asyncio.to_thread(running.stop)
            totals = running.totals()["front"]
    assert code == 0
    assert "password" in log or "authori" in log
    assert "wrong" not in log
    assert totals["captured"] > 30
    assert totals["encoded"] > 0
    assert add_up(totals), totals


async def test_frames_cross_hosts_encrypted_and_a_stranger_gets_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    """A capture host and an encoder host, each with its own runtime folder, over tcp with CURVE."""
    keys, clients, port = tmp_path / "keys", tmp_path / "clients", free_port()
    for name in ("encoder", "barn", "stranger"):
        make_keys(keys, name)
    clients.mkdir()
    (clients / "barn.public").write_text((keys / "barn.public").read_text())
    encoder = (
        f"node: farm\nroles: [encode, publish]\nmqtt: {broker.url}\n"
        f"transport: {{listen: 'tcp://127.0.0.1:{port}', keys: {{secret: {keys}/encoder.secret, clients: {clients}}}}}\n"
    )

    def capture(name: str) -> str:
        return (
            f"node: {name}\nroles: [capture]\n"
            f"transport: {{connect: 'tcp://127.0.0.1:{port}', "
            f"keys: {{secret: {keys}/{name}.secret, server: {keys}/encoder.public}}}}\n"
            f'cameras:\n  {name}: "scene:busy?fps=10"\n'
        )

    folders = [tmp_path / name for name in ("farm", "b", "s")]
    for folder in folders:
        folder.mkdir()
    async with FeatureSubscriber(broker.url) as subscriber:
        with daemon(folders[0], encoder) as farm, daemon(folders[1], capture("barn")) as barn:
            with daemon(folders[2], capture("stranger")):
                found = await take(subscriber, "barn", 10)
                await asyncio.sleep(2)
                strangers = subscriber.statistics("stranger").frames
            codes = [(await asyncio.to_thread(one.stop))[0] for one in (barn, farm)]
    assert len(found) == 10
    assert strangers == 0
    assert codes == [0, 0]


def test_probe_of_a_real_camera_says_what_it_sends(tmp_path: Path) -> None:
    with rtsp_server(mounts("/cam", fps=25)) as server:
        done = subprocess.run(
            [sys.executable, "-m", "workers.cli", "probe", server.url("/cam"), "--seconds", "2", "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=tmp_path,
        )
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["codec"], report["width"], report["height"]) == ("h264", 320, 240)
    assert 20 < report["fps_measured"] < 30
