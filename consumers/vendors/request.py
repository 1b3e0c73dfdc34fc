"""What goes to a vendor and what comes back, as values: nothing in here touches a socket.

A `Request` holds credentials where the vendor wants them (URL, header or body), so it has two
faces: its fields are for the wire, `shown()` and `repr` are for people, logs and receipts.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import quote

from consumers.trace.event import Event
from consumers.vendors.settings import Secret

__all__ = [
    "UNKNOWN", "WHOLE", "Answer", "Code", "Outgoing", "Reason", "Refused", "Request", "Sending",
    "Shown", "Unfit", "json_post",
]  # fmt: skip

# A body below is not worth packing.
_PACK_FROM_BYTES = 1024
_HIDDEN = "…"


# In the place of an event's position: all of the request, and none that is known.
WHOLE, UNKNOWN = -1, -2


class Code(StrEnum):
    """Why an event is not with a vendor. Few and fixed: they are labels of metrics and receipts."""

    # Refused before sending.
    TOO_OLD = "too_old"
    TIME_INVALID = "time_invalid"
    DUPLICATE_POSSIBLE = "duplicate_possible"
    NAME_INVALID = "name_invalid"
    NAME_RESERVED = "name_reserved"
    PROPERTY_INVALID = "property_invalid"
    PROPERTY_RESERVED = "property_reserved"
    TOO_MANY_PROPERTIES = "too_many_properties"
    VALUE_TOO_LONG = "value_too_long"
    VALUE_INVALID = "value_invalid"
    ID_MISSING = "id_missing"
    ID_INVALID = "id_invalid"
    EVENT_TOO_LARGE = "event_too_large"
    # Said by the vendor.
    REJECTED = "rejected"
    SILENCED = "silenced"
    DAILY_QUOTA = "daily_quota"


class Reason(NamedTuple):
    """A code for machines and a sentence for people, without credentials."""

    code: Code
    text: str


class Unfit(Exception):
    """An event can't be sent to this vendor as it is."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.reason = Reason(code, text)


@dataclass(frozen=True, slots=True)
class Sending:
    """On what terms events are sent: the clock, and what the operator has said."""

    # Microseconds since 1970.
    now_us: int
    # What was missed, not what has just come in: the vendor's endpoint for it, and its limits.
    backfill: bool = False
    # Some of them may have reached the vendor before: a replay, or an attempt without an answer.
    repeated: bool = False
    # No copy that may be there left before this (microseconds since 1970); 0 where nobody knows.
    first_us: int = 0
    # An operator's explicit word: events that the vendor will date anew, or count twice, may go.
    allow_redate: bool = False
    allow_duplicates: bool = False


class Shown(NamedTuple):
    """A request for people: whole, and without credentials."""

    method: str
    url: str
    headers: Mapping[str, str]
    # Unpacked.
    body: str


@dataclass(frozen=True, slots=True, repr=False)
class Request:
    """One HTTP request, ready for the wire, and the events in it in their order."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    events: tuple[Event, ...]
    # All that must not be shown of it, in the forms in which it stands there.
    secrets: tuple[Secret, ...] = ()

    def __repr__(self) -> str:
        size = f"{len(self.events)} events, {len(self.body)} bytes"
        return f"<{self.method} {self.masked(self.url)}: {size}>"

    def masked(self, text: str) -> str:
        """The text with "…" in place of each credential of this request."""
        for secret in self.secrets:
            said = secret.reveal()
            # As it is, in an address, and in an answer whose JSON escapes slashes.
            for form in (said, quote(said, safe=""), said.replace("/", "\\/")):
                text = text.replace(form, _HIDDEN)
        return text

    def shown(self) -> Shown:
        """What may be logged, put into a receipt, or printed by `headrace trace check`."""
        body = self.body
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return Shown(
            self.method,
            self.masked(self.url),
            {name: self.masked(value) for name, value in self.headers.items()},
            self.masked(body.decode(errors="replace")),
        )


class Refused(NamedTuple):
    """An event that is not sent, and why."""

    event: Event
    reason: Reason


class Outgoing(NamedTuple):
    """What becomes of events: each is in exactly one request, or refused."""

    requests: tuple[Request, ...]
    refused: tuple[Refused, ...]


class Answer(NamedTuple):
    """An answer as it came. Names of headers in lower case; the body unpacked, maybe cut short."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def json_post(
    url: str,
    body: bytes,
    events: tuple[Event, ...],
    secrets: tuple[Secret, ...],
    *,
    pack: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Request:
    """A POST of JSON; with `pack` gzip, where that is worth it."""
    told = {"Content-Type": "application/json", **(headers or {})}
    if pack and len(body) >= _PACK_FROM_BYTES:
        # Level 1: most of what there is to gain, in a third of the time. No time in it, so that
        # the same events make the same bytes.
        body = gzip.compress(body, 1, mtime=0)
        told["Content-Encoding"] = "gzip"
    return Request("POST", url, told, body, events, secrets)
