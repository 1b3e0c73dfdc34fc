"""The six vendors as one ASGI application: a request from its path to its answer.

    /VENDOR/…           what the vendor has there
    /                   the operator's page
    /faults[/VENDOR]    GET; PUT sets, and what is not named is off; DELETE: none
    /stored/VENDOR      GET ?name=&key=&user=&time_from=&time_until=&came_from=&came_until=
                        &list=keys|events&offset=&limit=; DELETE forgets all
    /clock              GET; POST {"advance_s": 86400}: the vendors' time goes on by so much

A vendor's request meets its faults in this order: down, slow, revoked, the lot of its request, and
what is taken meets `drop`. A body is read whole before it is slow: what arrived is judged even if
its sender has gone, as it may be in life.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from headrace.vendors import connections, operator
from headrace.vendors.faults import Faults
from headrace.vendors.model import Call, Judged, Reply, text_reply
from headrace.vendors.place import Place, Vendors

__all__ = ["App"]

_MAX_BODY = 32 * 1024 * 1024
_MAX_UNPACKED = 64 * 1024 * 1024

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class App:
    """All of them behind one port. `clock` gives microseconds since 1970."""

    def __init__(
        self,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
        faults: Mapping[str, Faults] | None = None,
    ) -> None:
        self.vendors = Vendors(clock, faults or {})

    def stop(self) -> None:
        """What is slow is not waited for any longer: it is cut off."""
        for place in self.vendors.places.values():
            place.let_go(False)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """ASGI, without its lifespan."""
        _, vendor, rest = [*scope["path"].split("/", 2), "", ""][:3]
        place = self.vendors.places.get(vendor)
        try:
            body = await _read(receive)
        except ConnectionError:
            return
        if place is None:
            await _send(send, operator.answer(self.vendors, scope, body or b""))
            return
        path = "/" + rest if scope["path"] != "/" + vendor else ""
        await self._vendor(place, path, scope, body, send)

    async def _vendor(  # noqa: PLR0911 (one for each step, in the order above)
        self, place: Place, path: str, scope: dict[str, Any], body: bytes | None, send: Send
    ) -> None:
        faults, rules = place.faults, place.rules
        judge = place.paths.get(path)
        if faults.down == "reset":
            await self._cut(place, scope, send)
            return
        if faults.down == "503":
            await self._reply(place, _late(text_reply(503, "down"), faults), send)
            return
        if faults.slow_s and not await place.hold(faults.slow_s):
            await self._cut(place, scope, send)
            return
        if judge is None:
            await self._reply(place, text_reply(404, "there is nothing here"), send)
            return
        if scope["method"] != "POST":
            await self._reply(place, text_reply(405, "POST only"), send)
            return
        if faults.revoked:
            await self._reply(place, rules.revoked(), send)
            return
        lot = place.dice.lot()
        if lot == "throttle":
            await self._reply(place, _late(rules.throttled(), faults), send)
            return
        if lot == "fail":
            await self._reply(place, text_reply(500, "internal error"), send)
            return
        if body is None:
            await self._reply(place, text_reply(413, "the body is too large"), send)
            return
        call = self._call(place, scope, body)
        judged: Judged = judge(call)
        place.shelf.keep(judged.events, call.now_us, judged.lost, place.dice.drop())
        if lot == "fail_after":
            await self._reply(place, text_reply(500, "internal error"), send)
        elif lot == "reset_after":
            await self._cut(place, scope, send, judged.reply)
        else:
            await self._reply(place, judged.reply, send)

    def _call(self, place: Place, scope: dict[str, Any], body: bytes) -> Call:
        headers = {n.decode("latin-1").lower(): v.decode("latin-1") for n, v in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        packed = "gzip" in (headers.get("content-encoding"), query.get("compression"))
        if packed and place.rules.gzip:
            body = _unpacked(body)
        return Call(
            body, self.vendors.now_us(), query, headers,
            place.faults.over_quota, place.faults.quiet, place.faults.vague,
        )  # fmt: skip

    async def _reply(self, place: Place, reply: Reply, send: Send) -> None:
        place.shelf.answered(str(reply.status))
        await _send(send, reply)

    async def _cut(
        self, place: Place, scope: dict[str, Any], send: Send, reply: Reply | None = None
    ) -> None:
        """Break the connection; in the middle of the answer where there is one with a body."""
        place.shelf.answered("reset")
        if reply is not None and len(reply.body) > 1:
            await send(_start(reply))
            half = reply.body[: len(reply.body) // 2]
            # Less than was announced: the server can only close.
            await send({"type": "http.response.body", "body": half, "more_body": True})
            return
        connections.reset(scope["client"])


def _late(reply: Reply, faults: Faults) -> Reply:
    if not faults.retry_after_s:
        return reply
    return reply._replace(headers=(("retry-after", f"{faults.retry_after_s:g}"),))


def _unpacked(body: bytes) -> bytes:
    """Out of gzip; what can't be unpacked stays, and is no JSON then."""
    unpack = zlib.decompressobj(wbits=31)
    try:
        found = unpack.decompress(body, _MAX_UNPACKED)
    except zlib.error:
        return body
    return found if unpack.eof else body


async def _read(receive: Receive) -> bytes | None:
    """The body, None for one that is too large. Raises ConnectionError if its sender left."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        size += len(message.get("body", b""))
        if size <= _MAX_BODY:
            parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts) if size <= _MAX_BODY else None


def _start(reply: Reply) -> dict[str, Any]:
    headers = [(n.encode(), v.encode()) for n, v in reply.headers]
    if reply.status != 204:
        headers.append((b"content-type", reply.content_type.encode()))
        headers.append((b"content-length", b"%d" % len(reply.body)))
    return {"type": "http.response.start", "status": reply.status, "headers": headers}


async def _send(send: Send, reply: Reply) -> None:
    await send(_start(reply))
    await send({"type": "http.response.body", "body": reply.body})
