"""CURVE keys for tcp://: files, and the gate that lets in only the clients whose public key lies in a folder.

A key file is one line, `camvec-curve-public NAME KEY` or `camvec-curve-secret NAME KEY`, the key in Z85. The server has
its pair and a folder of the clients' `.public` files; a client has its pair and the server's `.public` file.
"""

import contextlib
import logging
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import zmq
from zmq.utils import z85

from streaming.errors import ConfigError, TransportError

ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
ZAP_VERSION: Final = b"1.0"
ZAP_DOMAIN: Final = b"camvec"
MAX_NAMES: Final = 64
"""How many unknown keys are counted by name; further ones share one count."""

_LOG = logging.getLogger(__name__)
_KEY_TEXT = r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}"
_LINE = re.compile(rf"camvec-curve-(public|secret) ([A-Za-z0-9._-]{{1,64}}) ({_KEY_TEXT})\s*")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85."""

    name: str
    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class ServerKeys:
    """What a bound end needs: its own pair, and the folder of the public keys that may connect."""

    own: KeyPair
    clients: Path


@dataclass(frozen=True)
class ClientKeys:
    """What a connecting end needs: its own pair, and the public key of the server that it expects."""

    own: KeyPair
    server_public: bytes


Keys = ServerKeys | ClientKeys


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.public (0644) and NAME.secret (0600) into `folder` (0700) and return their paths.

    Raises ConfigError if one of them exists, the name does not fit or the folder cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"expected a key name of letters, digits, dot, dash and underscore up to 64 long, got {name!r}"
        )
    public, secret = zmq.curve_keypair()
    public_path, secret_path = folder / f"{name}.public", folder / f"{name}.secret"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            raise PermissionError(1, "others can enter this folder; `chmod 700` it, or name a new one", str(folder))
        for path in (public_path, secret_path):
            if path.exists():
                raise FileExistsError(17, "it exists already; remove it if its key is no longer used", str(path))
        _write_new(secret_path, f"camvec-curve-secret {name} {secret.decode()}\n", 0o600)
        _write_new(public_path, f"camvec-curve-public {name} {public.decode()}\n", 0o644)
    except OSError as exc:
        raise ConfigError(f"cannot write the key: {exc.strerror}", path=str(exc.filename or folder)) from exc
    return public_path, secret_path


def _write_new(path: Path, line: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, mode)
        file.write(line)


def load_public(path: Path) -> bytes:
    """The public key of a `.public` file, Z85. Raises ConfigError."""
    return _load(path, "public")[1]


def load_pair(secret_path: Path) -> KeyPair:
    """The key pair of a `.secret` file. Raises ConfigError, also when others may read the file."""
    name, secret = _load(secret_path, "secret")
    if secret_path.stat().st_mode & 0o077:
        raise ConfigError("others can read this secret key: make new keys, or `chmod 600` it", path=str(secret_path))
    return KeyPair(name, zmq.curve_public(secret), secret)


def _load(path: Path, kind: Literal["public", "secret"]) -> tuple[str, bytes]:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not a text file"
        raise ConfigError(f"cannot read the {kind} key: {why}; make keys with `camvec keys`", path=str(path)) from exc
    match = _LINE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"expected one line `camvec-curve-{kind} NAME KEY`; make keys with `camvec keys`", path=str(path)
        )
    if match[1] != kind:
        raise ConfigError(f"expected a {kind} key, got a {match[1]} key", path=str(path))
    return match[2], match[3].encode()


def load_clients(folder: Path) -> dict[bytes, str]:
    """Public key -> name of every `.public` file in `folder`; a broken file is logged and lets nobody in."""
    clients = {}
    try:
        paths = sorted(folder.glob("*.public"))
    except OSError as exc:
        _LOG.warning("cannot read the clients' keys in %s: %s", folder, exc.strerror)
        return {}
    for path in paths:
        try:
            clients[load_public(path)] = path.stem
        except ConfigError as exc:
            _LOG.warning("%s", exc)
    return clients


class Gatekeeper:
    """Answers ZeroMQ's question "may this key connect?" for all CURVE sockets of one context, in a thread of its own.

    The folder is read at each handshake, so adding or removing a file needs no restart. Start it before the socket binds.
    pyzmq's ThreadAuthenticator would run an event loop in its thread, and reads the folder only when told.
    """

    def __init__(self, context: zmq.SyncContext, clients: Path) -> None:
        if not clients.is_dir():
            raise ConfigError("expected a folder with the clients' .public files", path=str(clients))
        self._context, self._clients = context, clients
        self._stop_endpoint = f"inproc://gatekeeper-{id(self)}"
        self._thread = threading.Thread(target=self._serve, name="curve-gatekeeper", daemon=True)
        self._stop: zmq.SyncSocket
        self._bound = threading.Event()
        self._failure: zmq.ZMQError | None = None
        self.allowed: Counter[str] = Counter()
        """Handshakes by the name of the client's key file."""
        self.denied: Counter[str] = Counter()
        """Handshakes refused, by public key."""

    def __enter__(self) -> Self:
        self._stop = self._context.socket(zmq.PAIR)
        self._stop.setsockopt(zmq.LINGER, 0)
        self._stop.bind(self._stop_endpoint)
        self._thread.start()
        self._bound.wait()
        if self._failure is not None:
            self._stop.close()
            why = "another CURVE end has this context"
            raise TransportError(f"cannot check keys: {why} ({self._failure.strerror})") from self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(zmq.Again):  # the thread may have ended already
            self._stop.send(b"", zmq.NOBLOCK)
        self._thread.join()
        self._stop.close()

    def _serve(self) -> None:
        zap, stop = self._context.socket(zmq.REP), self._context.socket(zmq.PAIR)
        zap.setsockopt(zmq.LINGER, 0)
        try:
            stop.connect(self._stop_endpoint)
            zap.bind(ZAP_ENDPOINT)
        except zmq.ZMQError as exc:
            self._failure = exc
        self._bound.set()
        poller = zmq.Poller()
        poller.register(zap, zmq.POLLIN)
        poller.register(stop, zmq.POLLIN)
        while self._failure is None:
            ready = dict(poller.poll())
            if stop in ready:
                break
            zap.send_multipart(self._answer(zap.recv_multipart()))
        zap.close()
        stop.close()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        # ZAP request: version, id, domain, address, identity, mechanism, credentials (RFC 27).
        request_id = request[1] if len(request) > 1 else b""
        is_curve = len(request) == 7 and request[0] == ZAP_VERSION and request[5] == b"CURVE" and len(request[6]) == 32
        key = z85.encode(request[6]) if is_curve else b""
        name = load_clients(self._clients).get(key) if is_curve else None
        if name is not None:
            self.allowed[name] += 1
            return [ZAP_VERSION, request_id, b"200", b"OK", name.encode(), b""]
        self._deny(key.decode() or "no key", request[3].decode(errors="replace") if is_curve else "unknown address")
        return [ZAP_VERSION, request_id, b"400", b"unknown key", b"", b""]

    def _deny(self, key: str, address: str) -> None:
        known = key in self.denied or len(self.denied) < MAX_NAMES
        if key not in self.denied:
            _LOG.warning("refused a client at %s: its key %s is not in %s", address, key, self._clients)
        self.denied[key if known else "others"] += 1


def secure(socket: zmq.SyncSocket, keys: Keys) -> None:
    """Set CURVE on a socket before it binds (ServerKeys) or connects (ClientKeys)."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
    if isinstance(keys, ClientKeys):
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server_public)
        return
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    # Without this, a missing gatekeeper would let everybody in.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
