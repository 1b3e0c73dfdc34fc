"""Events to requests within a vendor's limits.

Each event is made into JSON alone, once; requests are those bytes joined. An event goes into the
first request that has room, but never before one with an earlier event of the same user: so a user
with more events than one request may hold of him spreads over several, and others fill them up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from consumers.trace.event import Event
from consumers.vendors.request import Code, Outgoing, Reason, Refused, Request, Unfit

__all__ = ["Limits", "Packed", "Rate", "outgoing", "pack"]


class Rate(NamedTuple):
    """At most so many events in so many seconds, for all of the project or for each user."""

    events: int
    seconds: float
    scope: Literal["project", "user"] = "project"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a vendor takes. Sizes in bytes of JSON before gzip."""

    max_events: int
    max_bytes: int
    # One event alone; never more than max_bytes.
    max_event_bytes: int
    # Of one user in one request.
    max_user_events: int
    # What the sender has to keep to over time.
    rates: tuple[Rate, ...] = ()


class Packed(NamedTuple):
    """Events of one request, and its body."""

    events: tuple[Event, ...]
    body: bytes


class _Open:
    """A request that is being filled."""

    __slots__ = ("events", "parts", "size")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.parts: list[bytes] = []
        self.size = 0


def outgoing(
    events: Iterable[Event],
    encode: Callable[[Event], bytes],
    limits: Limits,
    *,
    head: bytes,
    tail: bytes,
    request: Callable[[Packed], Request],
    users: Callable[[Event], tuple[str, ...]] | None = None,
) -> Outgoing:
    """Each event in a request or refused; bodies are `head`, events with commas between, `tail`.

    `encode` raises Unfit. `users` is needed where a request may hold fewer events of a user than
    in all.
    """
    refused: list[Refused] = []
    fit: list[tuple[Event, bytes]] = []
    most = min(limits.max_event_bytes, limits.max_bytes - len(head) - len(tail))
    for event in events:
        try:
            data = encode(event)
        except Unfit as unfit:
            refused.append(Refused(event, unfit.reason))
            continue
        if len(data) > most:
            text = f"the event is {len(data):,} bytes of JSON; the limit is {most:,}"
            refused.append(Refused(event, Reason(Code.EVENT_TOO_LARGE, text)))
        else:
            fit.append((event, data))
    packed = pack(fit, limits, head, tail, users)
    return Outgoing(tuple(map(request, packed)), tuple(refused))


def pack(
    fit: Iterable[tuple[Event, bytes]],
    limits: Limits,
    head: bytes,
    tail: bytes,
    users: Callable[[Event], tuple[str, ...]] | None = None,
) -> list[Packed]:
    """Events that each fit, in as few requests as is simple."""
    room = limits.max_bytes - len(head) - len(tail)
    most, most_of_user = limits.max_events, limits.max_user_events
    filled: list[_Open] = []
    first = 0
    # Of each user: the last request that has events of theirs, and how many.
    last: dict[str, tuple[int, int]] = {}
    for event, data in fit:
        who = users(event) if users is not None else ()
        at = first
        for user in who:
            of_user = last.get(user)
            if of_user is not None:
                at = max(at, of_user[0] + (of_user[1] >= most_of_user))
        # A comma for each, the first one's counted too.
        size = len(data) + 1
        while at < len(filled) and (
            len(filled[at].parts) >= most or filled[at].size + size > room + 1
        ):
            if at == first:
                # Full, or nearly: closed, so that no event looks at many requests.
                first += 1
            at += 1
        if at == len(filled):
            filled.append(_Open())
        into = filled[at]
        into.events.append(event)
        into.parts.append(data)
        into.size += size
        for user in who:
            of_user = last.get(user)
            count = of_user[1] + 1 if of_user is not None and of_user[0] == at else 1
            last[user] = (at, count)
    return [
        Packed(tuple(one.events), b"".join((head, b",".join(one.parts), tail))) for one in filled
    ]
