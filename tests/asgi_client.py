"""A tiny ASGI client without sockets, and a spool that answers when a test says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from ingest.collector.acks import Acks
from ingest.collector.app import App
from ingest.collector.doors import doors
from ingest.collector.intake import Intake
from ingest.collector.keys import Keys
from ingest.collector.pages import Page
from ingest.collector.quota import Quota
from ingest.collector.settings import CollectSettings
from ingest.spool.errors import SpoolError
from ingest.spool.frames import Record
from ingest.spool.reader import State
from ingest.spool.writer import Ticket
from ingest.streams import BUILT_IN

__all__ = ["Collector", "FakeSpool", "Reply"]


class Reply(NamedTuple):
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return orjson.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error."""
        return str(self.json["error"]["code"])


@dataclass
class FakeSpool:
    """Appends wait for `commit()`; without `holds` each is committed at once.

    A commit in the caller's thread takes `disk_s`. `refuse` is what an append of these records is
    answered with; an id is stored once.
    """

    holds: bool = False
    disk_s: float = 0.0
    # Appends that were committed in the caller's own thread.
    now: int = 0
    refuse: Callable[[Sequence[Record]], SpoolError | None] = lambda _: None
    tickets: list[Ticket] = field(default_factory=list)
    appends: list[Sequence[Record]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    ids: set[str | None] = field(default_factory=set)

    @property
    def state(self) -> State:
        return State("node", 0, len(self.records), 0, 0)

    def append(
        self, records: Sequence[Record], on_done: Callable[[Ticket], object] | None = None
    ) -> Ticket:
        ticket = Ticket(records, on_done)
        self.appends.append(list(records))
        self.tickets.append(ticket)
        if not self.holds:
            self.commit()
        return ticket

    def append_now(self, records: Sequence[Record]) -> int | None:
        if self.holds:
            return None
        self.now += 1
        time.sleep(self.disk_s)
        return self.append(records).result()

    def commit(self) -> None:
        """All that was appended is on disk, or refused."""
        tickets, self.tickets = self.tickets, []
        for ticket in tickets:
            if (error := self.refuse(ticket.records)) is not None:
                ticket.answer(error)
                continue
            new = []
            for record in ticket.records:
                if record.id is None or record.id not in self.ids:
                    self.ids.add(record.id)
                    new.append(record)
            self.records += new
            ticket.answer(len(new))


class Collector:
    """An App over a fake spool, in the running loop."""

    def __init__(
        self,
        spool: FakeSpool | None = None,
        *,
        keys: Keys | None = None,
        quota: Quota | None = None,
        pages: Mapping[str, Page] | None = None,
        relay_error: SpoolError | None = None,
        **settings: Any,
    ) -> None:
        self.spool = spool or FakeSpool()
        # Where requests come from.
        self.address = "127.0.0.1"
        self.settings = CollectSettings(spool=Path("spool")).with_options(**settings)
        self.acks = Acks(self.spool, asyncio.get_running_loop())
        found = doors(BUILT_IN)
        self.intake = Intake(
            self.settings, found, self.acks,
            keys=keys, quota=quota, relay_error=lambda: relay_error,
        )  # fmt: skip
        self.app = App(found, self.intake, pages or {})

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        *,
        length: int | None = -1,
        never_ends: bool = False,
        gone: bool = False,
    ) -> Reply:
        """One request. `body` may come in parts; `length` -1 is the true Content-Length, None none.

        `never_ends`: the rest of the body never comes. `gone`: the client leaves instead.
        """
        parts = [body] if isinstance(body, bytes) else list(body)
        fields = {name.lower(): value for name, value in (headers or {}).items()}
        if length is not None:
            fields["content-length"] = str(length if length >= 0 else sum(map(len, parts)))
        path, _, query = path.partition("?")
        scope = {
            "type": "http", "method": method, "path": path, "query_string": query.encode(),
            "scheme": "http", "client": (self.address, 1),
            "headers": [(n.encode(), v.encode("latin-1")) for n, v in fields.items()],
        }  # fmt: skip
        self.received = 0

        async def receive() -> dict[str, Any]:
            self.received += 1
            if parts:
                more = len(parts) > 1 or never_ends or gone
                return {"type": "http.request", "body": parts.pop(0), "more_body": more}
            if never_ends:
                await asyncio.get_running_loop().create_future()
            if gone:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": b"", "more_body": False}

        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        if not sent:
            return Reply(0, {}, b"")
        start, *rest = sent
        answered = {n.decode(): v.decode("latin-1") for n, v in start["headers"]}
        content = b"".join(message["body"] for message in rest)
        if method != "HEAD":
            assert int(answered["content-length"]) == len(content)
        return Reply(start["status"], answered, content)

    async def post(self, path: str, body: Any, **more: Any) -> Reply:
        """A POST; what is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {"Content-Type": "application/json", **more.pop("headers", {})}
        return await self.request("POST", path, data, headers, **more)
