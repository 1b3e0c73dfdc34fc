"""A second opinion on a share of requests, for a vendor whose answers say nothing of events."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from consumers import metrics
from consumers.forward.client import Client
from consumers.forward.tell import Teller
from consumers.vendors import Reason, Request, Validating

__all__ = ["Opinion"]


class Opinion:
    """Asks for it through the engine's connections. Belongs to one thread."""

    def __init__(self, name: str, vendor: Validating, client: Client, teller: Teller) -> None:
        self._name = name
        self._vendor = vendor
        self._client = client
        self._teller = teller
        self._owed = 0.0

    def due(self) -> bool:
        """Whether this request is of the share, evenly: with a share of 0.1 each tenth."""
        self._owed += self._vendor.validate_share
        if self._owed < 1:
            return False
        self._owed -= 1
        return True

    async def ask(self, request: Request) -> Mapping[int, Reason]:
        """What it finds wrong, by the event's place in the request, scrubbed; -1 is all of it."""
        clone = self._vendor.validation(request)
        try:
            answer = await self._client.send(clone)
        except httpx.RequestError as error:
            why = clone.masked(f"{type(error).__name__}: {error}".rstrip(": "))
            self._teller.no_answer(clone, why, 1)
            found = None
        else:
            found = self._vendor.findings(clone, answer)
            if found is None or found:
                self._teller.answered(clone, answer, 1)
        outcome = "no_answer" if found is None else "findings" if found else "clean"
        metrics.VENDOR_VALIDATED.labels(self._name, outcome).inc()
        return self._teller.reasons(found or {})
