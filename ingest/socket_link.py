"""The thread that owns a connection to a collector's socket: sends, hears, connects again.

What it sends is an Outbox's; what it hears goes to two functions. A connection that ends, for
whatever reason, is made anew 0.05 to 5 s later, with jitter, for as long as it takes; what has no
answer is then sent again under the session's name and the numbers it had. Should the thread itself
end, it says so: nobody else would send.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import random
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable

from ingest.socket_outbox import Outbox
from ingest.socket_protocol import (
    LARGEST,
    Ack,
    Answers,
    Goodbye,
    Hello,
    ProtocolError,
    Refusal,
    Welcome,
    encode,
)

__all__ = ["Link"]

_log = logging.getLogger("headrace.publisher")

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 5.0
# For a collector that is there and says nothing.
_WELCOME_S = 10.0
_READ_BYTES = 64 * 1024


class Link:
    """One session at the socket `path`. The functions are called by its thread, `failed` once, with
    what has ended it before close()."""

    def __init__(
        self,
        path: str,
        key: str,
        outbox: Outbox,
        acked: Callable[[int], object],
        refused: Callable[[Refusal], object],
        failed: Callable[[BaseException], object],
    ) -> None:
        self.path = path
        # Why there is no connection; empty while there is one.
        self.trouble = "not connected yet"
        self._hello = encode(Hello(uuid.uuid4().bytes, key))
        self._outbox = outbox
        self._acked = acked
        self._refused = refused
        self._failed = failed
        self._closing = False
        self._bell, self._cord = socket.socketpair()
        self._bell.setblocking(False)
        self._cord.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="headrace-socket", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something to send."""
        with contextlib.suppress(OSError):  # full of earlier calls, or closed
            self._cord.send(b"\0")

    def close(self) -> None:
        """End now; what is on its way has no answer then. Twice is harmless."""
        self._closing = True
        self.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- the thread

    def _run(self) -> None:
        try:
            with self._bell, self._cord:
                self._connect_ever_again()
        except BaseException as error:
            _log.exception("nothing more is sent to the collector at %s", self.path)
            self._failed(error)

    def _connect_ever_again(self) -> None:
        wait_s = _FIRST_WAIT_S
        # Not select(), which takes no descriptor above 1,023.
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        while not self._closing:
            before = self._outbox.answered
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
                    self._converse(door)
            except OSError as error:
                self._say(_why(error))
            except (ProtocolError, _Left) as error:
                self._say(str(error))
            except Exception as error:
                _log.exception("the connection to the collector failed")
                self._say(repr(error))
            self._outbox.again()
            if self._outbox.answered > before:
                wait_s = _FIRST_WAIT_S
            deadline = time.monotonic() + wait_s * random.uniform(0.5, 1.0)  # noqa: S311 (no secret)
            while not self._closing and (left_s := deadline - time.monotonic()) > 0:
                poller.poll(left_s * 1000)
                self._drain()
            wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)

    def _converse(self, door: socket.socket) -> None:
        """Send and hear until close(). Raises OSError, ProtocolError or _Left."""
        door.setblocking(False)
        door.connect(self.path)
        answers = Answers()
        give_up = time.monotonic() + _WELCOME_S
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        handle = door.fileno()
        out, is_welcome, watching = memoryview(self._hello), False, 0
        while not self._closing:
            idle = False
            if is_welcome and not out:
                out = memoryview(self._outbox.take())
                idle = not out
            if out:
                with contextlib.suppress(BlockingIOError):
                    out = out[door.send(out) :]
            wanted = select.POLLIN | (select.POLLOUT if out else 0)
            if wanted != watching:
                poller.register(handle, wanted)
                watching = wanted
            wait_s = None
            if not is_welcome:
                wait_s = give_up - time.monotonic()
                if wait_s <= 0:
                    raise TimeoutError(errno.ETIMEDOUT, f"no welcome within {_WELCOME_S:g} s")
            elif not out and not idle:
                wait_s = 0.0  # there may be more to send: only a look at what came
            for found, event in poller.poll(None if wait_s is None else wait_s * 1000):
                if found != handle:
                    self._drain()
                elif event & ~select.POLLOUT:
                    data = door.recv(_READ_BYTES)
                    if not data:
                        raise ConnectionError(errno.ECONNRESET, "it closed the connection")
                    for answer in answers.receive(data):
                        is_welcome |= self._hear(answer)

    def _hear(self, answer: Welcome | Ack | Refusal | Goodbye) -> bool:
        """True for a welcome."""
        match answer:
            case Ack(seq):
                self._acked(seq)
            case Refusal():
                self._refused(answer)
            case Goodbye(code, reason):
                raise _Left(f"it said goodbye: {reason} ({code})")
            case Welcome(largest):
                if largest < LARGEST:
                    raise ProtocolError(f"it takes frames up to {largest:,} bytes only")
                self.trouble = ""
                return True
        return False

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._bell.recv(4096):
                pass

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble and not self._closing:
            _log.warning("the collector at %s: %s", self.path, trouble)
        self.trouble = trouble


class _Left(Exception):
    """The collector has said goodbye."""


def _why(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return "nobody listens there; is `headrace collect` running?"
    return error.strerror or str(error)
