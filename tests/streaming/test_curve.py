import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq

from streaming.curve import ClientKeys, KeyPair, ServerKeys, load_clients, load_pair, load_public, make_keys
from streaming.errors import ConfigError, TransportError
from streaming.frames import Since
from streaming.transport import CaptureLink, EncoderInbox, FrameArrived, RecordReceiver, RecordSender
from streaming.wire import Tail
from tests.streaming.transport_gear import PATIENCE_S, SMALL, EncoderThread, frame, until


@dataclass
class Keyring:
    """A server that knows `client`, a client that it does not know, and a server that is another."""

    server: ServerKeys
    client: ClientKeys
    stranger: ClientKeys
    misled: ClientKeys


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    pairs: dict[str, KeyPair] = {}
    for name in ("server", "client", "stranger", "other-server"):
        pairs[name] = load_pair(make_keys(tmp_path / "keys", name)[1])
    allowed = tmp_path / "clients"
    allowed.mkdir()
    (allowed / "edge-box.public").write_bytes((tmp_path / "keys" / "client.public").read_bytes())
    return Keyring(
        ServerKeys(pairs["server"], allowed),
        ClientKeys(pairs["client"], pairs["server"].public),
        ClientKeys(pairs["stranger"], pairs["server"].public),
        ClientKeys(pairs["client"], pairs["other-server"].public),
    )


def allow(keyring: Keyring, pair: KeyPair) -> None:
    line = f"camvec-curve-public {pair.name} {pair.public.decode()}\n"
    (keyring.server.clients / f"{pair.name}.public").write_text(line)


async def test_client_with_the_right_keys_is_served(keyring: Keyring) -> None:
    with EncoderThread("tcp://127.0.0.1:*", keys=keyring.server) as encoder:
        async with CaptureLink(encoder.inbox.endpoint, "capture-0", ["front"], keys=keyring.client) as link:
            await asyncio.wait_for(link.ready(), PATIENCE_S)
            await link.credit("front")
            assert link.send_frame(frame("front", 0)) is None
            await asyncio.wait_for(link.settled(), PATIENCE_S)
        assert len(encoder.of(FrameArrived)) == 1
        assert encoder.inbox.refused_handshakes == 0
        gatekeeper = encoder.inbox._end.gatekeeper
        assert gatekeeper is not None
        assert gatekeeper.allowed == {"edge-box": 1}


async def test_unknown_client_gets_nothing_and_is_counted_by_its_key(keyring: Keyring) -> None:
    with EncoderThread("tcp://127.0.0.1:*", keys=keyring.server) as encoder:
        async with CaptureLink(encoder.inbox.endpoint, "capture-0", ["front"], keys=keyring.stranger) as link:
            await until(lambda: encoder.inbox.denied_keys)
            await until(lambda: link.refused_handshakes)
            assert set(encoder.inbox.denied_keys) == {keyring.stranger.own.public.decode()}
            assert not link.connected
            # Its key is put into the folder: it is let in at its next try, with no restart.
            allow(keyring, keyring.stranger.own)
            await asyncio.wait_for(link.ready(), PATIENCE_S)
        assert encoder.events[0].worker == "capture-0"  # type: ignore[union-attr]


async def test_client_that_expects_another_server_gets_nothing_and_is_counted(keyring: Keyring) -> None:
    with EncoderThread("tcp://127.0.0.1:*", keys=keyring.server) as encoder:
        async with CaptureLink(encoder.inbox.endpoint, "capture-0", ["front"], keys=keyring.misled) as link:
            await until(lambda: encoder.inbox.refused_handshakes)
            assert not link.connected
    assert encoder.events == []


async def test_plain_client_is_refused_by_a_curve_server(keyring: Keyring) -> None:
    with EncoderThread("tcp://127.0.0.1:*", keys=keyring.server) as encoder:
        async with CaptureLink(encoder.inbox.endpoint, "capture-0", ["front"]) as link:
            await until(lambda: encoder.inbox.refused_handshakes)
            assert not link.connected
    assert encoder.events == []


async def test_curve_client_is_refused_by_a_plain_server(keyring: Keyring) -> None:
    with EncoderThread("tcp://127.0.0.1:*") as encoder:
        async with CaptureLink(encoder.inbox.endpoint, "capture-0", ["front"], keys=keyring.client) as link:
            await until(lambda: link.refused_handshakes)
            assert not link.connected
    assert encoder.events == []


async def test_server_without_its_gatekeeper_lets_nobody_in(keyring: Keyring) -> None:
    with EncoderThread("tcp://127.0.0.1:*", keys=keyring.server) as encoder:
        gatekeeper = encoder.inbox._end.gatekeeper
        assert gatekeeper is not None
        gatekeeper._stop.send(b"")
        gatekeeper._thread.join(PATIENCE_S)
        async with CaptureLink(encoder.inbox.endpoint, "capture-0", ["front"], keys=keyring.client) as link:
            await until(lambda: encoder.inbox.refused_handshakes)
            assert not link.connected
    assert encoder.events == []


async def test_records_travel_under_curve_too(keyring: Keyring) -> None:
    async with RecordReceiver("tcp://127.0.0.1:*", keys=keyring.server) as receiver:
        with (
            RecordSender(receiver.endpoint, "stranger", keys=keyring.stranger) as stranger,
            RecordSender(receiver.endpoint, "encoder-0", keys=keyring.client) as sender,
        ):
            await until(lambda: sender.send(Tail("front", 1, Since(2))))
            assert await asyncio.wait_for(receiver.receive(), PATIENCE_S) == Tail("front", 1, Since(2))
            await until(lambda: receiver.refused_handshakes)
            assert not stranger.send(Tail("front", 3, Since(2)))
            allow(keyring, keyring.stranger.own)
            await until(lambda: stranger.send(Tail("front", 3, Since(2))))
            assert await asyncio.wait_for(receiver.receive(), PATIENCE_S) == Tail("front", 3, Since(2))


async def test_many_handshakes_at_once_do_not_hold_up_the_poll(keyring: Keyring) -> None:
    with EncoderThread("tcp://127.0.0.1:*", keys=keyring.server) as encoder, zmq.Context() as context:
        strangers = []
        for _ in range(30):
            stranger = context.socket(zmq.DEALER)
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.connect(encoder.inbox.endpoint)
            strangers.append(stranger)
        async with CaptureLink(encoder.inbox.endpoint, "capture-0", ["front"], keys=keyring.client) as link:
            await asyncio.wait_for(link.ready(), PATIENCE_S)
        await until(lambda: encoder.inbox.refused_handshakes >= 30)
        for stranger in strangers:
            stranger.close()


def test_second_curve_server_in_one_context_is_refused(keyring: Keyring) -> None:
    with zmq.Context() as context:
        first = EncoderInbox("tcp://127.0.0.1:*", SMALL, "m", keys=keyring.server, context=context)
        second = EncoderInbox("tcp://127.0.0.1:*", SMALL, "m", keys=keyring.server, context=context)
        with (
            first,
            pytest.raises(TransportError, match="cannot check keys: another CURVE end has this context"),
            second,
        ):
            pass


def test_keys_are_refused_where_they_mean_nothing(keyring: Keyring, tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="expected server keys for ipc"):
        EncoderInbox(f"ipc://{tmp_path}/s", SMALL, "m", keys=keyring.client)  # type: ignore[arg-type]
    with pytest.raises(TransportError, match="expected client keys for tcp"):
        CaptureLink("tcp://10.0.0.1:5", "c", keys=keyring.server)  # type: ignore[arg-type]
    with pytest.raises(TransportError, match="expected no keys for inproc://x"):
        EncoderInbox("inproc://x", SMALL, "m", keys=keyring.server)
    missing = ServerKeys(keyring.server.own, tmp_path / "missing")
    with (
        pytest.raises(ConfigError, match=r"missing: expected a folder with the clients' \.public files"),
        EncoderInbox("tcp://127.0.0.1:*", SMALL, "m", keys=missing),
    ):
        pass


def test_make_keys_writes_private_files_and_never_overwrites(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    public, secret = make_keys(folder, "front-door")
    assert (folder.stat().st_mode & 0o777, secret.stat().st_mode & 0o777) == (0o700, 0o600)
    pair = load_pair(secret)
    assert (pair.name, pair.public) == ("front-door", load_public(public))
    assert pair.secret.decode() not in repr(pair)
    before = secret.read_bytes()
    with pytest.raises(ConfigError, match=r"front-door\.public: cannot write the key: it exists already"):
        make_keys(folder, "front-door")
    public.unlink()
    with pytest.raises(ConfigError, match=r"front-door\.secret: cannot write the key: it exists already"):
        make_keys(folder, "front-door")
    assert secret.read_bytes() == before
    with pytest.raises(ConfigError, match="expected a key name"):
        make_keys(folder, "../x")
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match=r"shared: cannot write the key: others can enter this folder; `chmod 700`"):
        make_keys(shared, "a")
    assert list(shared.iterdir()) == []


def test_key_files_that_cannot_be_used_are_named_in_one_sentence(tmp_path: Path) -> None:
    public, secret = make_keys(tmp_path, "a")
    with pytest.raises(ConfigError, match=r"b\.public: cannot read the public key: No such file"):
        load_public(tmp_path / "b.public")
    with pytest.raises(ConfigError, match="expected a public key, got a secret key"):
        load_public(secret)
    with pytest.raises(ConfigError, match="expected a secret key, got a public key"):
        load_pair(public)
    secret.chmod(0o640)
    with pytest.raises(ConfigError, match=r"others can read this secret key: .*chmod 600"):
        load_pair(secret)
    for content in (b"", b"camvec-curve-public a tooshort", b"\xff\xfe", public.read_bytes() * 2):
        public.write_bytes(content)
        with pytest.raises(ConfigError, match="make keys with `camvec keys`"):
            load_public(public)


def test_folder_of_clients_may_vanish(tmp_path: Path) -> None:
    assert load_clients(tmp_path / "gone") == {}


def test_folder_of_clients_skips_what_is_broken(tmp_path: Path) -> None:
    make_keys(tmp_path, "good")
    (tmp_path / "bad.public").write_text("nonsense")
    assert list(load_clients(tmp_path).values()) == ["good"]


def test_key_text_may_hold_any_z85_character(tmp_path: Path) -> None:
    # A key may begin with '#': the file has no comments for that reason.
    for number in range(100):
        public, _ = make_keys(tmp_path, f"key-{number}")
        assert len(load_public(public)) == 40
