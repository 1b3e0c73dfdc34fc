"""What a stand-in is: calls in, judgements out, the clock an argument.

A stand-in knows its vendor's rules and nothing of sockets, faults or storage. `judge` is what is
found at its paths; what it returns is stored by app.py, under the vendor's own deduplication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

import orjson

__all__ = [
    "Call", "Event", "Judge", "Judged", "Reply", "StandIn", "cut", "iso_us", "json_reply",
    "text_reply",
]  # fmt: skip

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Call:
    """One request. Header names in lower case; `body` unpacked where the vendor takes gzip."""

    body: bytes
    now_us: int
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    # Faults that are the vendor's own behaviour, see faults.py.
    over_quota: bool = False
    quiet: bool = False
    vague: bool = False

    def document(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return orjson.loads(self.body)


class Event(NamedTuple):
    """What is kept of one event.

    `key` is the sender's, "" for none; `identity` is what the vendor knows a copy by, "" for
    nothing.
    """

    key: str
    name: str
    user: str
    time_us: int
    identity: str


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Judged(NamedTuple):
    """An answer, what was taken, and what was lost without a word in the answer, by reason."""

    reply: Reply
    events: Sequence[Event] = ()
    lost: Mapping[str, int] = {}


Judge = Callable[[Call], Judged]


class StandIn(Protocol):
    """One vendor."""

    name: str
    # Whether it unpacks Content-Encoding: gzip.
    gzip: bool
    # How long an identity is remembered; None for ever.
    window_us: int | None

    def paths(self) -> Mapping[str, Judge]:
        """POST to each of these, below /NAME."""
        ...

    def throttled(self) -> Reply:
        """Too many requests, in its words."""
        ...

    def revoked(self) -> Reply:
        """The credentials are not, or no longer, good."""
        ...


def json_reply(status: int, document: Any) -> Reply:
    return Reply(status, orjson.dumps(document))


def text_reply(status: int, text: str) -> Reply:
    return Reply(status, text.encode(), "text/plain; charset=utf-8")


def cut(events: Iterable[Any], most: int) -> dict[str, int]:
    """For `Judged.lost`: how many of them hold text of more characters, and lose some of it."""
    count = sum(_is_longer(event, most) for event in events)
    return {"text cut": count} if count else {}


def _is_longer(value: Any, most: int) -> bool:
    # Without recursion: JSON may be nested deeper than Python calls.
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if len(value) > most:
                return True
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False


def iso_us(text: object) -> int | None:
    """An ISO 8601 time, UTC where it has no offset, as microseconds; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)
