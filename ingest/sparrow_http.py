"""One batch of events to a collector over HTTP, and what its answer means for them.

`verdict` is pure. `Client` is one kept connection of the standard library's http.client: one
thread, one kind of request, and a wait between attempts that a flush at exit must be able to
interrupt, which the retries of urllib3 are not made for. It follows no redirects and asks no proxy.

A kept connection may be at its end: a collector closes one that has been silent for 10 s. So it is
looked at before it is used, and where it fails before there was an answer the batch goes over a new
one at once. A quiet service neither waits nor warns for that, and twice is once: events have ids.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import re
import select
import socket
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson

__all__ = ["Client", "Outcome", "Verdict", "verdict"]

# A body below is not worth packing.
_PACK_FROM_BYTES = 1024
# More of an answer is not read.
_LONGEST_ANSWER = 1024 * 1024
# A collector's word is good for so long: longer is no use to a process that may end.
_LONGEST_PAUSE_S = 300.0
_BUSY = {408, 425, 429}
# What http.client sends neither in a host nor in a path.
_UNSENDABLE = re.compile(r"[\x00-\x20\x7f]")


class Outcome(Enum):
    """What is to be done with a batch."""

    DONE = "each of its events is acknowledged, or refused by its index"
    AGAIN = "the same again, later"
    # A wrong key or address: nothing that waiting cures, but the events can't help it.
    BLOCKED = "the same again, much later, and somebody must look at it"
    HALVE = "a collector does not take something in it, or its size: in smaller parts"
    # Of one event it says nothing: that stays.
    TOO_LARGE = "somebody on the way does not take so much at once: in smaller parts"


class Verdict(NamedTuple):
    """An outcome, with what there is to say about it."""

    outcome: Outcome
    why: str = ""
    # Of the refused: code and reason.
    refused: tuple[tuple[str, str], ...] = ()
    # When to come again; None where the collector did not say.
    pause_s: float | None = None


def verdict(status: int, retry_after: str | None, body: bytes, now: datetime) -> Verdict:
    """What an answer to a batch means."""
    answer = _answer(body)
    refused = answer.get("refused")
    if status in (202, 422) and isinstance(refused, list) and isinstance(answer["accepted"], int):
        return Verdict(Outcome.DONE, "", tuple(_reason(item) for item in refused))
    why = f"HTTP status {status}"
    code, reason = _said_by_collector(answer.get("error"))
    if reason is not None:
        why = f"{why}, {reason[:200]}"
    # Gone: the body broke off on its way.
    if status in _BUSY or 500 <= status < 600 or (status == 400 and code == "gone"):
        return Verdict(Outcome.AGAIN, why, (), _pause(retry_after, now))
    if status in (400, 413) and reason is not None:
        return Verdict(Outcome.HALVE, why)
    # A proxy also answers 400, to a request that came to the wrong port of it for one.
    if status in (400, 413) or 200 <= status < 300:
        why = f"{why}, but not a collector's answer"
    return Verdict(Outcome.TOO_LARGE if status == 413 else Outcome.BLOCKED, why)


def _answer(body: bytes) -> dict[str, object]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = None
    return {"accepted": None, **found} if isinstance(found, dict) else {}


def _said_by_collector(error: object) -> tuple[str | None, str | None]:
    """Code and reason of a collector (ingest/collector/answers.py); None from anybody else."""
    match error:
        case {"code": str(code), "reason": str(reason)}:
            return code, reason
    return None, None


def _reason(item: object) -> tuple[str, str]:
    if not isinstance(item, dict):
        return "unknown", ""
    return str(item.get("code", "unknown")), str(item.get("reason", ""))[:200]


def _pause(text: str | None, now: datetime) -> float | None:
    """Retry-After, RFC 9110, 10.2.3: seconds or a date; at most five minutes."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return min(_LONGEST_PAUSE_S, float(text))
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, min(_LONGEST_PAUSE_S, (when - now).total_seconds()))


class Client:
    """POST /v1/events of the collector at `host`. Raises ValueError for what is no address.

    For one thread at a time, but for abort().
    """

    def __init__(self, host: str, key: str, context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(host if "://" in host else f"https://{host}")
        is_one = parts.scheme in ("http", "https") and not parts.query
        if not (is_one and _is_sendable(parts.hostname or "", parts.path)):
            raise ValueError(f"{host!r} is no address of a collector, as in https://c.example.com")
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/") + "/v1/events"
        self._context = None
        if parts.scheme == "https":
            self._context = context or ssl.create_default_context()
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            if not (key.isascii() and key.isprintable()) or " " in key:
                raise ValueError("the key holds what no key does")
            self._headers["Authorization"] = f"Bearer {key}"
        self._connection: http.client.HTTPConnection | None = None
        self._is_aborted = False
        # What was packed last, to be sent again as it is.
        self._packed: tuple[Sequence[bytes], bytes, bool] | None = None

    def post(self, events: Sequence[bytes], timeout_s: float) -> Verdict:
        """Send a batch; `timeout_s` is for each step. Never raises for what the network does."""
        body, packed = self._body(events)
        headers = {**self._headers, "Content-Encoding": "gzip"} if packed else self._headers
        try:
            response = self._ask(body, headers, timeout_s)
            data = response.read(_LONGEST_ANSWER)
            if not response.isclosed():
                self.close()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Verdict(Outcome.AGAIN, _why(error))
        retry_after = response.headers.get("Retry-After")
        return verdict(response.status, retry_after, data, datetime.now(UTC))

    def close(self) -> None:
        """Let go of the connection; the next post makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abort(self) -> None:
        """From another thread: end a post that is under way, and begin no second attempt."""
        self._is_aborted = True
        connection = self._connection
        if connection is not None and (sock := connection.sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """After a fork: the connection is the parent's, which goes on with it."""
        self._is_aborted = False
        connection, self._connection = self._connection, None
        if connection is not None and (sock := connection.sock) is not None:
            connection.sock = None
            # This process's handle of it; TLS says nothing to the other side.
            with contextlib.suppress(OSError):
                socket.close(sock.detach())

    def _ask(
        self, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> http.client.HTTPResponse:
        """The head of the answer, over the kept connection where that is good."""
        connection = self._connection
        if connection is not None and connection.sock is not None and not _is_over(connection.sock):
            connection.sock.settimeout(timeout_s)
            try:
                connection.request("POST", self._path, body, headers)
                return connection.getresponse()
            except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                # Closed over there in this very moment, or by somebody on the way long ago.
                if self._is_aborted:
                    raise
        self.close()
        connection = self._connect(timeout_s)
        connection.request("POST", self._path, body, headers)
        return connection.getresponse()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._context is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout_s, context=self._context
            )
        self._connection = connection
        return connection

    def _body(self, events: Sequence[bytes]) -> tuple[bytes, bool]:
        if self._packed is not None and self._packed[0] == events:
            return self._packed[1:]
        body = b"[" + b",".join(events) + b"]"
        is_worth_it = len(body) >= _PACK_FROM_BYTES
        if is_worth_it:
            body = gzip.compress(body, 6, mtime=0)
        self._packed = (events, body, is_worth_it)
        return body, is_worth_it


def _is_over(sock: socket.socket) -> bool:
    """Whether a connection that nothing is asked of has something to say: its end, or rubbish."""
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return True
    if not hasattr(select, "poll"):  # Windows, whose select() has no limit of 1,024 files
        return bool(select.select([sock], [], [], 0)[0])
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


def _is_sendable(host: str, path: str) -> bool:
    """Whether a request can be written to it at all; no attempt would ever be otherwise."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return bool(host) and path.isascii() and not _UNSENDABLE.search(host + path)


def _why(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    text = error.strerror if isinstance(error, OSError) else None
    return text or type(error).__name__
