"""The connections to one vendor: a request out, its answer back. Belongs to one thread.

httpx's transport without its client, whose cookies, redirects and hooks nobody wants: a request
costs 1.4 ms of a core so, 2.3 with them.

httpx has a time for each read, and so none for an answer that trickles or a stream that nobody
answers on a connection that lives. So the whole answer has one, from when the request begins to
leave: connecting, before it, has its own. What has waited in vain may still be open on a connection
of HTTP/2 that others share; so these connections get no further requests, and are closed when the
last one under way on them has ended.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import Counter
from contextlib import suppress
from functools import lru_cache

import httpx

from consumers.forward.engine_settings import EngineSettings
from consumers.vendors import Answer, Request

__all__ = ["Client"]

# They log every address at INFO, and vendors want credentials in it.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

# Of an answer so much is read: Mixpanel names each event that it refuses, up to 2,000 in 400 kB.
_MOST_READ = 1024 * 1024
_GZIP = (["gzip"], ["x-gzip"])
_CONNECT_S = 10.0
_HEADERS = {"User-Agent": "headrace", "Accept": "*/*"}
# This server does not answer for that name on this connection.
_MISDIRECTED = 421
# A connection that was idle for longer is not used again: servers close theirs at some time.
_KEEP_S = 20.0
# What comes through httpx as it is, of a connection that is reset the moment it stands: anyio asks
# a socket that is gone for its peer (seen by make test), uvloop refuses a transport that is closed.
_RAW = (AttributeError, RuntimeError, OSError)


class Client:
    """Connects when it first sends. `transport` stands in for the network in tests."""

    def __init__(
        self, settings: EngineSettings, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._settings = settings
        self._stand_in = transport
        self._transport: httpx.AsyncBaseTransport | None = None
        self._encodings = "gzip"
        # Requests under way on it, and on those that get no further ones.
        self._under_way: Counter[httpx.AsyncBaseTransport] = Counter()
        timeout_s = self._timeout_s = settings.timeout_s
        self._timeouts = httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)).as_dict()

    async def send(self, request: Request) -> Answer:
        """One attempt. Raises httpx.RequestError where there is no answer."""
        transport = self._transport = self._transport or self._connect()
        self._under_way[transport] += 1
        try:
            answer = await self._answer(transport, request)
        except TimeoutError as error:
            if self._transport is transport:
                self._transport = None
            raise httpx.ReadTimeout(f"no answer within {self._timeout_s:g} s") from error
        except _RAW as error:
            raise httpx.NetworkError(f"{type(error).__name__}: {error}") from error
        else:
            if answer.status == _MISDIRECTED and self._transport is transport:
                self._transport = None
            return answer
        finally:
            self._under_way[transport] -= 1
            if transport is not self._transport and not self._under_way[transport]:
                del self._under_way[transport]
                with suppress(*_RAW):  # its answer is there
                    await transport.aclose()

    async def _answer(self, transport: httpx.AsyncBaseTransport, request: Request) -> Answer:
        """Raises TimeoutError."""
        async with asyncio.timeout(None) as limit:

            async def trace(event: str, _: object) -> None:
                if event.endswith(".send_request_headers.started"):
                    limit.reschedule(asyncio.get_running_loop().time() + self._timeout_s)

            answer = await transport.handle_async_request(
                httpx.Request(
                    request.method, _url(request.url),
                    headers={
                        **_HEADERS, "Accept-Encoding": self._encodings, **request.headers
                    },
                    content=request.body,
                    extensions={"timeout": self._timeouts, "trace": trace},
                )
            )  # fmt: skip
            try:
                body = await _body(answer)
            except zlib.error:
                # It can't be unpacked. The status says what has become of the request; who needs
                # to know more will ask again.
                body, self._encodings = b"", "identity"
            finally:
                await answer.aclose()
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Answer(answer.status_code, headers, body)

    async def close(self) -> None:
        """Close the connections."""
        if self._transport is not None:
            await self._transport.aclose()

    def _connect(self) -> httpx.AsyncBaseTransport:
        if self._stand_in is not None:
            return self._stand_in
        # Its own requests, and one clone for each.
        most = 2 * self._settings.concurrency
        return httpx.AsyncHTTPTransport(
            http2=True,
            proxy=self._settings.proxy or None,
            limits=httpx.Limits(
                max_connections=most, max_keepalive_connections=most, keepalive_expiry=_KEEP_S
            ),
        )


async def _body(answer: httpx.Response) -> bytes:
    """Its beginning, unpacked if it is gzip. Raises zlib.error where it is called so and is none.

    httpx would unpack all that has come at once before anybody sees how much it is: 2 GB of 32 kB.
    What is called otherwise is left as it came: some call plain text `utf-8` or `none`.
    """
    said = answer.headers.get("content-encoding", "").lower().split(",")
    packed = [word for one in said if (word := one.strip()) not in ("", "identity")]
    unpacker = zlib.decompressobj(wbits=31) if packed in _GZIP else None
    body = bytearray()
    assert isinstance(answer.stream, httpx.AsyncByteStream)  # noqa: S101 (an async transport's is)
    async for part in answer.stream:
        left = _MOST_READ - len(body)
        body += part[:left] if unpacker is None else unpacker.decompress(part, left)
        if len(body) >= _MOST_READ:
            break
    return bytes(body)


@lru_cache(maxsize=64)
def _url(text: str) -> httpx.URL:
    return httpx.URL(text)
