"""The collector as an ASGI application: one request from its headers to its answer.

In this order, and the first that fails is the answer:

    1. path and method                404, 405
    2. a page's origin                403
    3. the key, the stream it is for  401, 403
    4. is there room: quota, memory   429, 503
    5. the body, unpacked             413, 408, 415, 400
    6. the door's judgement           400, 413, 415; of single records: refused, with index
    7. the quota for the records      429
    8. on disk                        503
    9. in Kafka, for ?ack=kafka       504

What 1 to 5 refuse is answered when the rest of the body was read and dropped, within limits: many a
client sends all of it before it listens, and one that can't send breaks off, or waits for ever, and
never hears how long to wait or to send less.

Routes that are read (healthz, metrics, …) are in pages.py. Nothing is logged of what was sent.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ingest.collector import answers, cors, metrics
from ingest.collector.answers import ONE_ACCEPTED, Answer, Refused
from ingest.collector.body import ENCODINGS, Gone, Receive
from ingest.collector.doors import LOGS, Door
from ingest.collector.intake import Intake
from ingest.collector.judge import BadBody
from ingest.collector.pages import PROJECTS, Page, settings_page

__all__ = ["App", "start_of"]

_log = logging.getLogger("headrace.collect")

Send = Callable[[dict[str, Any]], Awaitable[None]]


def start_of(answer: Answer) -> dict[str, Any]:
    """The first message of an answer, for ASGI."""
    status, body, headers, content_type = answer
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            *headers,
        ],
    }


# The most frequent answer is made once.
_ONE_START = start_of(ONE_ACCEPTED)
_ONE_BODY = {"type": "http.response.body", "body": ONE_ACCEPTED.body}


class App:
    """Doors and pages behind one ASGI callable."""

    def __init__(
        self, doors: Mapping[str, Door], intake: Intake, pages: Mapping[str, Page]
    ) -> None:
        self._doors = doors
        self._intake = intake
        self._pages = pages

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """ASGI. Lifespan is the server's affair."""
        unread = False
        try:
            door = self._doors.get(scope["path"])
            if door is not None and scope["method"] == "POST":
                answer = await self._intake.take(door, scope, receive)
            else:
                answer = await self._answer(door, scope)
        except Refused as refused:
            answer = self._refuse(scope, refused.code, refused.answer)
            unread = refused.unread or answer.status in (404, 405)
        except BadBody as bad:
            unread = bad.unread
            more = ((b"accept-encoding", ", ".join(ENCODINGS).encode()),)
            answer = self._refuse(
                scope,
                bad.code,
                answers.error(
                    bad.status, bad.code, bad.reason, *(more if bad.code == "encoding" else ())
                ),
            )
        except Gone:
            # Who sent chunks that are none, or ended its side early, may still listen; the server
            # would say 500 for us, and the same would be sent again.
            answer = self._refuse(
                scope, "gone",
                answers.error(400, "gone", "the body broke off, or its chunks can't be read"),
            )  # fmt: skip
        except Exception as error:
            # Neither the error's text nor its values: they may hold what was sent.
            _log.error(
                "a request could not be answered: %s\n%s",
                type(error).__name__, "".join(traceback.format_tb(error.__traceback__)),
            )  # fmt: skip
            answer = self._refuse(
                scope,
                "internal",
                answers.error(500, "internal", "a fault of the collector; see its log"),
            )
        if answer is ONE_ACCEPTED:
            await send(_ONE_START)
            await send(_ONE_BODY)
            return
        if unread:
            await self._intake.drop(scope, receive)
        await send(start_of(answer))
        body = answer.body
        await send(
            {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body}
        )

    # -- 1. path and method

    async def _answer(self, door: Door | None, scope: Mapping[str, Any]) -> Answer:
        path, method = scope["path"], scope["method"]
        if door is not None:
            methods = "POST, OPTIONS"
        elif (
            path.startswith(PROJECTS)
            and (settings := settings_page(scope, self._intake.senders.scheme(scope))) is not None
        ):
            if method in ("GET", "HEAD"):
                return settings
            methods = "GET, HEAD, OPTIONS"
        elif (page := self._pages.get(path)) is not None:
            if method in ("GET", "HEAD"):
                return await page(scope)
            methods = "GET, HEAD, OPTIONS"
        else:
            raise self._not_found(path)
        if method == "OPTIONS":
            return self._options(scope, methods)
        raise Refused(405, "method", f"{path} takes {methods}", (b"allow", methods.encode()))

    def _not_found(self, path: str) -> Refused:
        if path.startswith(LOGS):
            streams = ", ".join(
                sorted(p.removeprefix(LOGS) for p in self._doors if p.startswith(LOGS))
            )
            return Refused(404, "stream", f"there is no such stream; there are: {streams}")
        known = ", ".join(sorted({*self._doors, *self._pages}))
        return Refused(404, "path", f"there is nothing at this path; there are: {known}")

    # -- 2. origins

    def _options(self, scope: Mapping[str, Any], methods: str) -> Answer:
        asked = dict(scope["headers"])
        allow = (b"allow", methods.encode())
        if b"origin" in asked and b"access-control-request-method" in asked:
            private = asked.get(b"access-control-request-private-network") == b"true"
            origin = asked[b"origin"].decode("latin-1")
            answer = cors.preflight(origin, self._intake.origins(), methods, private)
            return answer._replace(headers=(*answer.headers, allow))
        return Answer(204, b"", (allow,))

    def _refuse(self, scope: Mapping[str, Any], code: str, answer: Answer) -> Answer:
        """The answer to a request that is refused as a whole; readable for an allowed page."""
        metrics.REFUSED_REQUESTS.labels(code).inc()
        for name, value in scope["headers"]:
            if name == b"origin" and scope["path"] in self._doors:
                origin = value.decode("latin-1")
                if cors.allowed(origin, self._intake.origins()):
                    return answer._replace(headers=(*answer.headers, *cors.exposed(origin)))
        return answer
