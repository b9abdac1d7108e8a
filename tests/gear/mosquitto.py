"""A real mosquitto for tests: plain, with passwords, ACL, TLS and client certificates; to be stopped, frozen, restarted.

with mosquitto(tmp_path, users={"edge": "secret"}) as broker:
    ...  # broker.port; broker.freeze(), broker.thaw(), broker.stop(), broker.start()
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NEEDED = "needs Debian's mosquitto (apt-get install mosquitto)"
SERVER = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, a server on localhost and 127.0.0.1, a client; and an authority that signed none of them."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path
    other_ca: Path


@dataclass
class Mosquitto:
    """A running broker on 127.0.0.1."""

    directory: Path
    port: int
    log: Path
    config: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert SERVER is not None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([SERVER, "-c", str(self.config)], stdout=log, stderr=log)
        wait_for_port(self.port, self.process)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(sig)
            self.process.send_signal(signal.SIGCONT)  # a frozen one heeds nothing but SIGKILL
            self.process.wait(10)
            self.process = None

    def freeze(self) -> None:
        """Open sockets, no answers: like a pulled cable."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def mosquitto(
    directory: Path,
    *,
    users: dict[str, str] | None = None,
    acl: str = "",
    tls: Certificates | None = None,
    client_certificates: bool = False,
    persistence: bool = False,
    port: int | None = None,
    extra: str = "",
) -> Iterator[Mosquitto]:
    """A broker that dies with the `with`. `acl` is the text of its ACL file."""
    if SERVER is None:
        pytest.skip(NEEDED)
    port = port or free_port()
    lines = [
        f"listener {port} 127.0.0.1",
        f"allow_anonymous {'false' if users else 'true'}",
        "max_queued_messages 100000",
    ]
    if os.geteuid() == 0:
        lines.insert(0, "user root")  # else it cannot read our folder
    if users:
        lines.append(f"password_file {_password_file(directory, users)}")
    if acl:
        (directory / "acl").write_text(acl)
        lines.append(f"acl_file {directory / 'acl'}")
        (directory / "acl").chmod(0o600)
    if tls:
        lines += [f"cafile {tls.ca}", f"certfile {tls.cert}", f"keyfile {tls.key}"]
        lines += ["require_certificate true"] if client_certificates else []
    if persistence:
        (directory / "data").mkdir(exist_ok=True)
        lines += ["persistence true", f"persistence_location {directory / 'data'}/"]
    config = directory / "mosquitto.conf"
    config.write_text("\n".join([*lines, extra, ""]))
    broker = Mosquitto(directory, port, directory / "mosquitto.log", config)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def make_certificates(directory: Path) -> Certificates:
    """Throw-away certificates, EC P-256, valid for a day, made with openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl (apt-get install openssl)")
    ca, ca_key = _authority(directory, "ca")
    other_ca, _ = _authority(directory, "other")
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    cert, key = _signed(directory, "server", "localhost", (ca, ca_key), names)
    client_cert, client_key = _signed(directory, "client", "edge", (ca, ca_key), "extendedKeyUsage=clientAuth")
    return Certificates(ca, cert, key, client_cert, client_key, other_ca)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = 10) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None, f"the broker ended with exit code {process.returncode}"
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port} after {timeout_s} s")


def _password_file(directory: Path, users: dict[str, str]) -> Path:
    path = directory / "passwords"
    path.touch(mode=0o600)
    for user, password in users.items():
        subprocess.run(["mosquitto_passwd", "-b", str(path), user, password], check=True, capture_output=True)
    return path


def _authority(directory: Path, name: str) -> tuple[Path, Path]:
    cert, key = directory / f"{name}.crt", directory / f"{name}.key"
    _openssl("req", "-x509", *_new_key(key), "-subj", f"/CN=test {name}", "-out", cert, "-days", 1)
    return cert, key


def _signed(directory: Path, name: str, common: str, signer: tuple[Path, Path], extension: str) -> tuple[Path, Path]:
    cert, key, request = (directory / f"{name}.{kind}" for kind in ("crt", "key", "csr"))
    _openssl("req", *_new_key(key), "-subj", f"/CN={common}", "-addext", extension, "-out", request)
    authority = ["-CA", signer[0], "-CAkey", signer[1], "-CAcreateserial"]
    _openssl("x509", "-req", "-in", request, *authority, "-copy_extensions", "copy", "-days", 1, "-out", cert)
    return cert, key


def _new_key(path: Path) -> list[str | Path]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path]


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
