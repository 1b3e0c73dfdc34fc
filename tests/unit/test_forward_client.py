"""The connections to a vendor: whatever goes wrong with one, there is just no answer."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import uvloop
import zstandard

from consumers.forward.client import Client
from consumers.forward.engine_settings import EngineSettings
from consumers.vendors import Request

TIMEOUT_S = 1.0
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def request(url: str = "http://127.0.0.1:1/") -> Request:
    return Request("POST", url, {}, b"{}", ())


def run(test: Coroutine[Any, Any, None]) -> None:
    """On the engine's loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test)


class Reset(httpx.AsyncBaseTransport):
    """A connection that is gone as soon as it stands."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [
        # The first was seen; the others are what else the same place may raise.
        AttributeError("'NoneType' object has no attribute 'getpeername'"),
        RuntimeError("unable to perform operation on <TCPTransport closed=True>"),
        OSError(107, "Transport endpoint is not connected"),
    ],
)
def test_a_connection_that_is_gone_at_once_is_one_without_an_answer(error: Exception) -> None:
    """And not one that was never there: whether the request left, nobody knows."""
    client = Client(EngineSettings(), Reset(error))
    with pytest.raises(httpx.NetworkError) as raised:
        asyncio.run(client.send(request()))
    assert not isinstance(raised.value, httpx.ConnectError)


# -- in time ---------------------------------------------------------------------------------------


class Slow(httpx.AsyncBaseTransport):
    """Takes its time to connect, and to answer; says so as httpx's own does."""

    def __init__(self, connect_s: float, answer_s: float) -> None:
        self._connect_s, self._answer_s = connect_s, answer_s

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(self._connect_s)
        await request.extensions["trace"]("http11.send_request_headers.started", {})
        await asyncio.sleep(self._answer_s)
        return httpx.Response(200)


def test_an_answers_time_begins_when_the_request_leaves() -> None:
    """A vendor that can't be reached has taken nothing: that must not be taken for no answer."""

    async def test() -> None:
        settings = EngineSettings(timeout_s=0.05)
        assert (await Client(settings, Slow(0.1, 0)).send(request())).status == 200
        with pytest.raises(httpx.ReadTimeout, match=r"no answer within 0\.05 s"):
            await Client(settings, Slow(0, 10)).send(request())

    run(test())


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[tuple[str, list[asyncio.Task[None]]]]:
    """Its address, and a task for each connection; each must have been closed by the client."""
    connections: list[asyncio.Task[None]] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.create_task(connected(reader, writer)))

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/", connections
        await asyncio.wait_for(asyncio.gather(*connections), 5)
    # What httpx leaves to be closed behind it takes a turn or two of the loop.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*left, return_exceptions=True), 5)


def test_an_answer_that_cant_be_unpacked_is_its_status() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(
            b"HTTP/1.1 202 Accepted\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok"
        )
        await reader.read()

    async def test() -> None:
        async with server(serve) as (url, _):
            client = Client(EngineSettings(timeout_s=TIMEOUT_S))
            answer = await client.send(request(url))
            assert (answer.status, answer.body) == (202, b"")
            await client.close()

    run(test())


def zeros(size: int, *wraps: Callable[[bytes], bytes]) -> bytes:
    found = bytes(size)
    for wrap in wraps:
        found = wrap(found)
    return found


ZSTD = zeros(2**26, zstandard.compress)
GZIP_TWICE = zeros(2**26, gzip.compress, gzip.compress)


@pytest.mark.parametrize(
    ("encoding", "packed", "body"),
    [
        ("gzip", zeros(2**26, gzip.compress), bytes(2**20)),
        ("X-GZIP", gzip.compress(b"well", mtime=0), b"well"),
        ("identity", b"well", b"well"),
        ("identity", bytes(2**20 + 1), bytes(2**20)),
        # Some call plain text so.
        ("utf-8", b"well", b"well"),
        ("identity, gzip", gzip.compress(b"well", mtime=0), b"well"),
        # What was not asked for is not unpacked, however well it is known.
        ("zstd", ZSTD, ZSTD),
        ("gzip, gzip", GZIP_TWICE, GZIP_TWICE),
    ],
)
def test_of_an_answer_no_more_is_unpacked_than_is_read(
    encoding: str, packed: bytes, body: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(packed)}"
        writer.write(head.encode() + b"\r\n\r\n" + packed)
        await reader.read()

    async def test() -> None:
        async with server(serve) as (url, _):
            client = Client(EngineSettings(timeout_s=10))
            tracemalloc.start()
            try:
                answer = await client.send(request(url))
                _, most = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert (answer.status, answer.body) == (200, body)
            # What came, twice over, and what is kept of it.
            assert most < 2**22
            await client.close()

    run(test())


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_answer_that_trickles_is_none_once_its_time_is_over(head: bytes) -> None:
    """httpx's own time begins anew with each byte."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        while not reader.at_eof():
            with suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"{}")
                count += 1
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n" if count > 1 else head)
            while count == 1 and not reader.at_eof():
                writer.write(b"x")
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(), TIMEOUT_S / 10)

    async def test() -> None:
        async with server(serve) as (url, connections):
            client = Client(EngineSettings(timeout_s=TIMEOUT_S))
            with pytest.raises(httpx.ReadTimeout):
                await asyncio.wait_for(client.send(request(url)), 5)
            await asyncio.wait_for(connections[0], 5)
            for _ in range(2):
                assert (await client.send(request(url))).status == 204
            assert len(connections) == 2
            await client.close()

    run(test())


class Streams:
    """A server of HTTP/2 that says all the time that it lives, and answers when it is told to."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        incoming = asyncio.ensure_future(reader.read(65_536))
        asked: list[int] = []
        while True:
            writer.write(state.data_to_send())
            await asyncio.wait([incoming], timeout=TIMEOUT_S / 10)
            if incoming.done():
                data = incoming.result()
                if not data:
                    return
                for event in state.receive_data(data):
                    if isinstance(event, h2.events.StreamEnded):
                        assert event.stream_id is not None
                        asked.append(event.stream_id)
                incoming = asyncio.ensure_future(reader.read(65_536))
            state.ping(b"I live! ")
            # The first one of a connection never is.
            while self.answer.is_set() and len(asked) > 1:
                state.send_headers(asked.pop(), [(":status", "204")], end_stream=True)


def test_a_stream_without_an_answer_ends_and_its_connection_once_the_others_have() -> None:
    """A connection that pings lives for ever, and a stream that was left stays open on it."""

    async def test() -> None:
        streams = Streams()
        async with server(streams) as (url, connections):
            # HTTP/2 without asking for it: that takes TLS.
            transport = httpx.AsyncHTTPTransport(http1=False, http2=True)
            client = Client(EngineSettings(timeout_s=TIMEOUT_S), transport)
            first = asyncio.create_task(client.send(request(url)))
            await asyncio.sleep(TIMEOUT_S / 2)
            second = asyncio.create_task(client.send(request(url)))
            with pytest.raises(httpx.ReadTimeout):
                await asyncio.wait_for(first, 5)
            assert len(connections) == 1
            assert not connections[0].done()
            streams.answer.set()
            assert (await second).status == 204
            await asyncio.wait_for(connections[0], 5)
            with pytest.raises(httpx.ReadTimeout):
                await asyncio.wait_for(client.send(request(url)), 5)
            assert len(connections) == 2

    run(test())
