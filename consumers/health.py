"""/metrics, /healthz and /readyz of an inserter or a forwarder, over HTTP.

/healthz   200 while the process runs: restart it when this fails
/readyz    200 when every partition that it owns is being read, Kafka and the destination answer;
           503 and the reason otherwise: send no alarm to the process, look at the destination
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from consumers import metrics
from consumers.errors import Systemic

__all__ = ["Asked", "Starting", "serve"]


class Asked(Protocol):
    """Whose health it is: a run loop's, or that of several."""

    @property
    def away_s(self) -> float: ...

    @property
    def problem(self) -> str | None: ...


class Starting:
    """Whose health it is from the first moment on: a probe must not end what waits for Kafka."""

    # The run loop, once there is one.
    loop: Asked | None = None

    @property
    def away_s(self) -> float:
        """See Runner."""
        return 0.0 if self.loop is None else self.loop.away_s

    @property
    def problem(self) -> str | None:
        """See Runner."""
        return "waiting for Kafka" if self.loop is None else self.loop.problem


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection: one that says nothing keeps neither the others nor the exit."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that has gone, or never asked, is not news either."""


class _Quiet(WSGIRequestHandler):
    timeout = 10  # seconds that a client may take to ask

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape every few seconds is not news."""


@contextmanager
def serve(address: str | None, runner: Asked) -> Iterator[None]:
    """Serve while the block runs; without an address, nothing. Raises Systemic if it can't."""
    if address is None:
        yield
        return
    host, _, port = address.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise Systemic(f"--metrics {address!r} must be HOST:PORT, e.g. 127.0.0.1:9464")
    exposition = make_wsgi_app()

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                metrics.AWAY_SECONDS.set(runner.away_s)
                body: Iterable[bytes] = exposition(environ, start)
                return body
            case "/healthz":
                return _answer(start, "200 OK", "ok")
            case "/readyz":
                problem = runner.problem
                if problem is not None:
                    return _answer(start, "503 Service Unavailable", problem)
                return _answer(start, "200 OK", "ok")
            case _:
                return _answer(start, "404 Not Found", "/metrics, /healthz or /readyz")

    try:
        server = make_server(host or "127.0.0.1", int(port), app, _Server, _Quiet)
    except OSError as error:
        raise Systemic(f"--metrics {address}: {error.strerror}; choose another port") from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(start: Callable[..., Any], status: str, text: str) -> list[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode() + b"\n"]
