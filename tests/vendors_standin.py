"""The stand-in vendors for tests: without sockets and with a clock of one's own.

    standing = Standing()
    reply = standing.post("/amplitude/batch", {"api_key": "k", "events": [...]})
    standing.now_us += DAY_US
    assert standing.stored("amplitude")["repeated"] == 1

As a process of their own they are the fixture `stand_ins` of the integration tests.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import orjson

from headrace.vendors.app import App
from headrace.vendors.faults import Faults

__all__ = ["NOW_US", "Answer", "Standing"]

NOW_US = 1_750_000_000_000_000


class Answer:
    """What came back; `whole` is False where the answer broke off."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        start, *rest = messages
        self.status: int = start["status"]
        self.headers = {n.decode(): v.decode() for n, v in start["headers"]}
        self.body = b"".join(message["body"] for message in rest)
        self.whole = not rest[-1].get("more_body", False)

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Standing:
    """All six in this process. `now_us` is their time."""

    def __init__(self, **faults: Faults) -> None:
        self.now_us = NOW_US
        self.app = App(clock=lambda: self.now_us, faults=faults)

    def post(
        self,
        path: str,
        body: Any = b"",
        headers: Mapping[str, str] | None = None,
        *,
        packed: bool = False,
        method: str = "POST",
    ) -> Answer:
        """A request; what is not bytes is sent as JSON, `packed` with gzip."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        fields = {"content-type": "application/json", **(headers or {})}
        if packed:
            data, fields["content-encoding"] = gzip.compress(data), "gzip"
        path, _, query = path.partition("?")
        scope = {
            "type": "http", "method": method, "path": path, "query_string": query.encode(),
            "client": ("127.0.0.1", "1"),
            "headers": [(n.encode(), v.encode()) for n, v in fields.items()],
        }  # fmt: skip
        messages: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        asyncio.run(self.app(scope, receive, send))
        return Answer(messages)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.post(path, b"", headers, method="GET")

    def stored(self, vendor: str, **wanted: Any) -> dict[str, Any]:
        answer = self.get(f"/stored/{vendor}?{urlencode(wanted)}")
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json
        return found

    def keys(self, vendor: str) -> list[str]:
        return list(self.stored(vendor, list="keys")["list"])

    def break_(self, vendor: str, **faults: Any) -> None:
        self.app.vendors.places[vendor].set(Faults(**faults))
