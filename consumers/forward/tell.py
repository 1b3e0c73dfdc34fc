"""Every answer that is no plain yes is in the log: with the request, without credentials.

That is what is not 2xx, and a 2xx by which not all events are taken.

A field for each of vendor, status, attempt, events, request and response. What is shown of request
and response goes through the scrubber of [trace] once more. Sentry is told by a handler of this
log (headrace/sentry.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from consumers.trace.scrub import MAX_TEXT, Scrubber
from consumers.vendors import (
    Accepted,
    Answer,
    PartlyRejected,
    Reason,
    Request,
    RetryAfter,
    SlowDown,
    Split,
    Stop,
    Verdict,
)

__all__ = ["Teller"]

log = logging.getLogger(__name__)

# Characters of a body that are shown.
_MOST_REQUEST, _MOST_RESPONSE = 1000, 300
# Bytes of an answer that are looked through for it.
_MOST_READ = 65_536


class Teller:
    """Tells of one vendor. Belongs to one thread."""

    def __init__(self, vendor: str, scrubber: Scrubber) -> None:
        self._vendor = vendor
        self._scrubber = scrubber

    def answered(self, request: Request, answer: Answer, attempt: int) -> None:
        """A vendor's answer that is more than yes."""
        body = request.masked(answer.body[:_MOST_READ].decode(errors="replace"))
        self._tell(request, str(answer.status), attempt, self._clean(body, _MOST_RESPONSE))

    def no_answer(self, request: Request, why: str, attempt: int) -> None:
        """There was none."""
        self._tell(request, "none", attempt, why)

    def cleaned(self, verdict: Verdict) -> Verdict:
        """The same, with what the vendor said through the scrubber: receipts and logs have it."""
        match verdict:
            case PartlyRejected(rejected):
                return replace(verdict, rejected=self.reasons(rejected))
            case SlowDown(rejected=rejected, why=why):
                return replace(
                    verdict, rejected=self.reasons(rejected), why=self._clean(why, MAX_TEXT)
                )
            case RetryAfter(why=why) | Split(why=why) | Stop(why=why):
                return replace(verdict, why=self._clean(why, MAX_TEXT))
            case Accepted():
                return verdict

    def reasons(self, reasons: Mapping[int, Reason]) -> dict[int, Reason]:
        """The same of reasons, by the positions of their events."""
        return {n: Reason(r.code, self._clean(r.text, MAX_TEXT)) for n, r in reasons.items()}

    def _tell(self, request: Request, status: str, attempt: int, response: str) -> None:
        shown = request.shown()
        body = self._clean(shown.body, _MOST_REQUEST)
        log.warning(
            "%s answers %s", self._vendor, status,
            extra={
                "vendor": self._vendor, "status": status, "attempt": attempt,
                "events": len(request.events), "request": f"{shown.method} {shown.url} {body}",
                "response": response,
            },
        )  # fmt: skip

    def _clean(self, text: str, most: int) -> str:
        # Cut only then: half of a card is none to the scrubber.
        seen = text[:MAX_TEXT]
        hit = self._scrubber(seen)
        found = seen if hit is None else hit[0]
        return found[:most] + "…" if len(text) > most else found
