"""An HTTP server whose pages are functions: videos, camera streams, and pages that freeze, drip or refuse."""

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Page = Callable[[BaseHTTPRequestHandler, threading.Event], None]
"""Answers one GET; returns when the event is set."""


@contextmanager
def http_server(pages: Mapping[str, Page], *, cert: Path | None = None, key: Path | None = None) -> Iterator[int]:
    """The port of a running server on all loopback addresses, with TLS if there is a certificate."""
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):
                pages[self.path](self, stop) if self.path in pages else self.send_error(404)

        def log_message(self, *_args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_args: object) -> None:  # clients that refuse our certificate
            pass

    server = Server(("", 0), Handler)
    if cert is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


def content(data: bytes, media_type: str) -> Page:
    """A page with this content."""

    def page(request: BaseHTTPRequestHandler, _stop: threading.Event) -> None:
        request.send_response(200)
        request.send_header("Content-Type", media_type)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    return page


def status(code: int) -> Page:
    """A page that only refuses."""
    return lambda request, _stop: request.send_error(code)


def frozen(_request: BaseHTTPRequestHandler, stop: threading.Event) -> None:
    """Accepts the question and never answers."""
    stop.wait(60)


def slow_drip(request: BaseHTTPRequestHandler, stop: threading.Event) -> None:
    """A byte at a time: no inactivity time-out ever fires."""
    request.send_response(200)
    request.send_header("Content-Type", "video/mp4")
    request.end_headers()
    while not stop.wait(0.2):
        request.wfile.write(b"\0")
        request.wfile.flush()


def motion_jpeg(jpegs: list[bytes], fps: float) -> Page:
    """A camera's multipart stream."""

    def page(request: BaseHTTPRequestHandler, stop: threading.Event) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=cam")
        request.end_headers()
        number = 0
        while not stop.wait(1 / fps):
            jpeg = jpegs[number % len(jpegs)]
            number += 1
            head = f"--cam\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            request.wfile.write(head.encode() + jpeg + b"\r\n")
            request.wfile.flush()

    return page
