"""What a vendor must do: two pure functions and what they need to be known; this is their contract.

A vendor is a frozen dataclass: its fields are the settings of [vendors.NAME], checked when it is
made (settings.py). It does no I/O, reads no clock, keeps no state. One file holds all that is known
of a vendor; the class and one line in `VENDORS` are all that it takes to add one
(docs/adding-a-vendor.md), and tests/conformance/test_vendors.py holds it to what follows.

`requests(events, sending)`  answers what to send, in this order. Each event is in exactly one
    request, or refused with a reason; what the vendor would spoil without saying so is refused.
    Every request is within `limits`. Its `events` are those of its body in the same order, and
    events that share one of their `users` never overtake each other. Nothing of an event leaves but
    `key`, name, time, ids and properties. A request is good for one attempt: ages and signatures
    depend on `sending.now_us`, so for another attempt the events are given in anew.

`verdict(request, answer, now_us)`  answers what became of its events, for any answer whatever, and
    never raises. It accounts for each event once (`account`). `Split` is never said of one event.

`users(event)`  names whose event it is, as far as the vendor counts or orders by user; the names in
    `SlowDown` are these. `limits(backfill=…)`  says how much it takes, at once and over time.

A vendor that can say what it thinks of a request without taking it is also `Validating`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast, runtime_checkable

from consumers.trace.event import Event
from consumers.vendors.packing import Limits, Rate
from consumers.vendors.request import (
    UNKNOWN,
    WHOLE,
    Answer,
    Code,
    Outgoing,
    Reason,
    Refused,
    Request,
    Sending,
    Shown,
)
from consumers.vendors.settings import Secret, VendorError, build
from consumers.vendors.verdicts import (
    Accepted,
    Account,
    PartlyRejected,
    RetryAfter,
    SlowDown,
    Split,
    Stop,
    Verdict,
    account,
)

__all__ = [
    "UNKNOWN", "VENDORS", "WHOLE", "Accepted", "Account", "Answer", "Code", "Limits", "Outgoing",
    "PartlyRejected", "Rate", "Reason", "Refused", "Request", "RetryAfter", "Secret", "Sending",
    "Shown", "SlowDown", "Split", "Stop", "Validating", "Vendor", "VendorError", "Verdict",
    "account", "vendor",
]  # fmt: skip


class Vendor(Protocol):
    """See the module's comment."""

    def requests(self, events: Sequence[Event], sending: Sending) -> Outgoing: ...

    def verdict(self, request: Request, answer: Answer, now_us: int) -> Verdict: ...

    def users(self, event: Event) -> tuple[str, ...]: ...

    def limits(self, *, backfill: bool) -> Limits: ...


@runtime_checkable
class Validating(Protocol):
    """A vendor with a second endpoint that judges requests and keeps nothing of them."""

    @property
    def validate_share(self) -> float:
        """Of how many requests a clone goes there, 0 to 1."""
        ...

    def validation(self, request: Request) -> Request:
        """The clone. It has the same events in the same order."""
        ...

    def findings(self, request: Request, answer: Answer) -> Mapping[int, Reason] | None:
        """What is wrong, by the event's position; None if it doesn't say.

        WHOLE (-1) is the request. UNKNOWN (-2) is told and counted, and changes no receipt: it is
        of no event that is known, and the vendor has the others.
        """
        ...


# A module of this package, and its class: one line a vendor.
VENDORS: Mapping[str, str] = {
    "amplitude": "Amplitude",
    "ga4": "Ga4",
    "heap": "Heap",
    "mixpanel": "Mixpanel",
    "posthog": "PostHog",
    "webhook": "Webhook",
}


def vendor(name: str, table: Mapping[str, Any], environ: Mapping[str, str]) -> Vendor:
    """The vendor of [vendors.NAME]; `kind` in it says which, where the name does not.

    Credentials are taken from `environ`. Raises VendorError.
    """
    settings = dict(table)
    kind = settings.pop("kind", name)
    if not isinstance(kind, str) or kind not in VENDORS:
        known = ", ".join(VENDORS)
        raise VendorError(f"vendors.{name}: {kind!r} is no vendor; give kind = one of {known}")
    found = getattr(import_module(f"consumers.vendors.{kind}"), VENDORS[kind])
    return cast("Vendor", build(found, name, settings, environ))
