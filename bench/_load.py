"""Load over HTTP/1.1 from a process of its own: `python bench/_load.py …`, one JSON object at the end.

Raw bytes over uvloop's protocols, so that on a shared machine the load takes as little as it can of
what is measured. Each event has an id of its own, as SDKs send it. Two ways:

    --rate 0    each connection sends its next request when it has the answer
    --rate N    N requests a second, due at even times and sent within a millisecond of it; an answer's
                time counts from when its request was due, also where no connection was free, so a
                server that stalls can't hide it
"""  # noqa: E501

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import uvloop

# What the posts' example sends, with about the properties that pages do.
EVENT = (
    b'{"event":"purchase product","deviceId":"device-%06d","userId":"michelle1",'
    b'"eventId":"%016x-%08x","properties":{"category":"billing","productName":"workers",'
    b'"path":"/plans/workers","referrer":"https://example.com/","width":1440}}'
)
DEVICES = 5000


def requests(run: int, each: int) -> Callable[[], bytes]:
    """Makes one request after the other, of so many events."""
    number = 0

    def make() -> bytes:
        nonlocal number
        events = []
        for _ in range(each):
            number += 1
            events.append(EVENT % (number % DEVICES, run, number))
        body = events[0] if each == 1 else b"[%s]" % b",".join(events)
        return (
            b"POST /v1/events HTTP/1.1\r\nHost: collector\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    return make


class Client(asyncio.Protocol):
    """One connection. An answer is complete when its body is."""

    def __init__(self, done: Callable[[Client, float], None]) -> None:
        self._done = done
        self._held = b""
        self.since = 0.0
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio.Protocol."""
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio.Protocol."""
        self.transport = None

    def send(self, request: bytes, since: float) -> None:
        """The next request; `since` is when it was due."""
        assert self.transport is not None, "the server has closed the connection"
        self.since = since
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """asyncio.Protocol."""
        held = self._held + data if self._held else data
        end = held.find(b"\r\n\r\n")
        if end >= 0:
            at = held.lower().find(b"content-length:", 0, end)
            length = int(held[at + 15 : held.index(b"\r\n", at)])
            if len(held) >= end + 4 + length:
                if not held.startswith(b"HTTP/1.1 202"):
                    raise SystemExit(f"not accepted: {held[:300]!r}")
                self._held = b""
                self._done(self, time.perf_counter())
                return
        self._held = held


async def load(
    port: int,
    connections: int,
    seconds: float,
    warm_s: float,
    make: Callable[[], bytes],
    rate: float,
) -> tuple[float, list[float]]:
    """Requests a second, and the time of each answer, behind the first `warm_s`."""  # fmt: skip
    loop = asyncio.get_running_loop()
    begin = time.perf_counter() + warm_s
    end = begin + seconds
    times: list[float] = []
    free: deque[Client] = deque()
    waiting: deque[float] = deque()
    over = loop.create_future()
    last = begin

    def done(client: Client, now: float) -> None:
        nonlocal last
        if begin <= now < end:
            times.append(now - client.since)
            last = now
        if now >= end:
            if not over.done():
                over.set_result(None)
        elif not rate:
            client.send(make(), now)
        elif waiting:
            client.send(make(), waiting.popleft())
        else:
            free.append(client)

    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: Client(done), "127.0.0.1", port)
        clients.append(client)
    if rate:
        free.extend(clients)
        due = time.perf_counter()
        while (now := time.perf_counter()) < end:
            while due <= now:
                if free:
                    free.popleft().send(make(), due)
                else:
                    waiting.append(due)
                due += 1 / rate
            # uvloop's timers count milliseconds: what is shorter would be a busy loop, which takes
            # one of the server's two cores.
            await asyncio.sleep(max(0.001, due - time.perf_counter()))
    else:
        for client in clients:
            client.send(make(), time.perf_counter())
        await over
    for client in clients:
        if client.transport is not None:
            client.transport.abort()
    # A backlog at the end is slow answers that are not there yet.
    times += [end - due for due in waiting]
    return len(times) / (last - begin), times


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    for name, kind in (("port", int), ("connections", int), ("each", int), ("rate", float),
                       ("seconds", float), ("warm", float)):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, required=True)
    args = parser.parse_args()
    per_s, times = uvloop.run(
        load(args.port, args.connections, args.seconds, args.warm,
             requests(time.time_ns(), args.each), args.rate)
    )  # fmt: skip
    times.sort()
    print(
        json.dumps(
            {
                "events_per_s": per_s * args.each,
                "p50_ms": times[len(times) // 2] * 1000,
                "p99_ms": times[len(times) * 99 // 100] * 1000,
                "longest_ms": times[-1] * 1000,
            }
        )
    )


if __name__ == "__main__":
    main()
