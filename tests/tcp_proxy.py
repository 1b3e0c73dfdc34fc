"""A TCP proxy that breaks on command: real sockets, real resets, real silence.

    with Proxy("127.0.0.1", 5432) as proxy:
        connect(port=proxy.port)
        proxy.cut_all()                            # every connection is reset
        proxy.refuse(True)                         # new ones are reset at once
        proxy.hold(); ...; proxy.release()         # nothing passes, nothing is lost
        proxy.hold("down")                         # the server hears, and is not heard
        proxy.hold_at(b"COMMIT")                   # from the moment that the client sends this
        proxy.after_bytes(100, "up")               # 100 more bytes to the server, then all is cut
        proxy.cut_before(b"COMMIT")                # the server never sees it
        proxy.cut_after(b"COMMIT")                 # the server does it; its answer is lost
        proxy.slow(125_000, "up")                  # a line of 1 Mbit/s that all connections share
        proxy.rewrite(b"there", b"hither")         # in the server's answers

"up" is from the client to the server, "down" is back. Thread based; `close` (the end of the block)
ends every thread and every socket, also while held.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Literal, Self

__all__ = ["Proxy"]

Direction = Literal["up", "down"]

# Of what has passed, so that a needle across two reads is found; needles are shorter.
_TAIL = 64

# Read at once, and held by the system for a socket, where a line is slow: what waits there has left
# the client as far as it knows.
_SLOW_BYTES = 16_384

# A close with this sends a reset: the peer gets an error, not an end of stream.
_RESET = struct.pack("ii", 1, 0)


class _Pair:
    """Two sockets that are cut together, once."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = {"up": (client, server), "down": (server, client)}
        self._sockets = (client, server)
        self._cut = False
        self._lock = threading.Lock()
        # Threads that still use the sockets: the last one closes them, so that no number of a
        # closed socket is given to another one under a thread's feet.
        self._users = 2
        # The end of what the client has sent so far.
        self.tail = b""
        self.doomed = False

    def sends(self, needle: bytes, data: bytes) -> bool:
        """Whether the needle ends in this data."""
        return needle in self.tail[max(0, len(self.tail) - len(needle) + 1) :] + data

    def cut(self) -> None:
        with self._lock:
            if self._cut:
                return
            self._cut = True
            for end in self._sockets:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                for end in self._sockets:
                    end.close()


class Proxy:
    """Listens on `port` of 127.0.0.1 and passes on to a server."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._lock = threading.Condition()
        self._pairs: set[_Pair] = set()
        self._threads: list[threading.Thread] = []
        self._refuse = self._closed = False
        self._held: set[Direction] = set()
        self._room: dict[Direction, int] = {}
        self._needle: tuple[bytes, bool] | None = None
        self._hold_at: bytes | None = None
        self._rates: dict[Direction, float] = {}
        # When the line will have carried all that was given to it, by the monotonic clock.
        self._free_at: dict[Direction, float] = {"up": 0.0, "down": 0.0}
        self._rewrites: list[tuple[bytes, bytes]] = []
        # Bytes that have passed.
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        # How often a cut that was armed has happened.
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    # -- what a test says --------------------------------------------------------------------------

    def cut_all(self) -> None:
        """Reset every connection that there is."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.cut()

    def refuse(self, refuse: bool = True) -> None:
        """Whether new connections are reset at once; those that there are go on."""
        with self._lock:
            self._refuse = refuse

    def after_bytes(self, n: int, direction: Direction) -> None:
        """Pass `n` more bytes, of all connections together, then cut all; once."""
        with self._lock:
            self._room[direction] = n

    def cut_before(self, needle: bytes) -> None:
        """Cut the connection on which the client next sends this, without passing it on; once."""
        with self._lock:
            self._needle = (needle, False)

    def cut_after(self, needle: bytes) -> None:
        """Pass it on, wait for the server's answer, and cut instead of passing that on; once."""
        with self._lock:
            self._needle = (needle, True)

    def hold(self, *directions: Direction) -> None:
        """Pass nothing in these directions, or in either; connections stay."""
        with self._lock:
            self._held = set(directions or ("up", "down"))

    def hold_at(self, needle: bytes) -> None:
        """Hold from the moment that a client sends this, which does not pass either; once."""
        with self._lock:
            self._hold_at = needle

    def slow(self, bytes_per_s: float, direction: Direction) -> None:
        """So much passes in a second, over all connections together."""
        with self._lock:
            self._rates[direction] = bytes_per_s
            # Sockets that are accepted from now on have it from this one.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BYTES)

    def rewrite(self, old: bytes, new: bytes) -> None:
        """Put `new` for `old` in what comes down, where that is not torn between two reads."""
        with self._lock:
            self._rewrites.append((old, new))

    @property
    def held(self) -> bool:
        """Whether nothing passes now."""
        with self._lock:
            return bool(self._held)

    def release(self) -> None:
        """Pass what was held, and all that follows."""
        with self._lock:
            self._held, self._hold_at = set(), None
            self._lock.notify_all()

    def close(self) -> None:
        """End all of it; returns when every thread has ended."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut_all()
        me = threading.current_thread()
        for thread in self._threads:
            if thread is not me:
                thread.join(10)
                assert not thread.is_alive(), "the proxy does not end"
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    # -- threads -----------------------------------------------------------------------------------

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                with self._lock:
                    if self._closed or self._refuse:
                        raise ConnectionRefusedError
                    server = socket.create_connection(self._target, 10)
                    server.settimeout(None)
                    pair = _Pair(client, server)
                    self._pairs.add(pair)
            except OSError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._pump, pair, "up")
            self._start(self._pump, pair, "down")

    def _pump(self, pair: _Pair, direction: Direction) -> None:
        source, sink = pair.ends[direction]
        try:
            while data := source.recv(_SLOW_BYTES if direction in self._rates else 65536):
                with self._lock:
                    needle = self._hold_at
                    if needle is not None and direction == "up" and pair.sends(needle, data):
                        self._held, self._hold_at = {"up", "down"}, None
                    while direction in self._held and not self._closed:
                        self._lock.wait()
                    self._carry(direction, len(data))
                    data, then_cut = self._judge(pair, direction, data)
                    self.passed[direction] += len(data)
                sink.sendall(data)
                if then_cut:
                    self.cut_all()
                    return
        except OSError:
            pass
        finally:
            pair.cut()
            pair.leave()
            with self._lock:
                self._pairs.discard(pair)

    def _carry(self, direction: Direction, size: int) -> None:
        """Wait until the line has carried so much, and what came before it."""
        rate = self._rates.get(direction)
        if rate is None:
            return
        done = max(self._free_at[direction], time.monotonic()) + size / rate
        self._free_at[direction] = done
        while (left := done - time.monotonic()) > 0 and not self._closed:
            self._lock.wait(left)

    def _judge(self, pair: _Pair, direction: Direction, data: bytes) -> tuple[bytes, bool]:
        """What of it may pass, and whether all is cut then."""
        room = self._room.get(direction)
        if room is not None:
            if len(data) >= room:
                del self._room[direction]
                self.cuts += 1
                return data[:room], True
            self._room[direction] = room - len(data)
        if direction == "down":
            for old, new in self._rewrites:
                data = data.replace(old, new)
            if pair.doomed:
                self.cuts += 1
                pair.cut()
                return b"", False
            return data, False
        if self._needle is not None:
            needle, pass_on = self._needle
            if pair.sends(needle, data):
                self._needle = None
                if pass_on:
                    pair.doomed = True
                else:
                    self.cuts += 1
                    pair.cut()
                    return b"", False
        pair.tail = (pair.tail + data)[-_TAIL:]
        return data, False
