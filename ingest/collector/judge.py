"""What a door says of a request's body: which records are good, which are refused and why.

A door is a pure function, so that every one of them is tested and fuzzed without a socket:

    judge(body, content_type, caller, limits, now_us) -> Judged        # raises BadBody
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ingest.spool.frames import Record

__all__ = [
    "BadBody", "Caller", "Judged", "Limits", "Refusal", "check_values", "too_many_values", "values",
]  # fmt: skip

# Fewer bytes hold no crowd of values that matters.
_SMALL = 64 * 1024


@dataclass(frozen=True, slots=True)
class Refusal:
    """One record that is not taken. `code` is one of a few words, for a metric; `reason` is for the
    sender, and holds nothing of the payload but the names of fields."""

    index: int
    code: str
    reason: str


class Judged(NamedTuple):
    """A body, record by record; `refused` in the order of the body."""

    records: list[Record]
    refused: list[Refusal]


class BadBody(Exception):
    """The body as a whole can't be read, so nothing of it is taken: `status` 400, 413 or 415.

    `unread`: some of it may still be on its way.
    """

    def __init__(self, status: int, code: str, reason: str, *, unread: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason
        self.unread = unread


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends. Ids are `source`'s own, of each kind: a record's id in the spool is `source:e:id`
    of an event, `source:l:…` of a log."""

    source: str
    # Only where the operator asked for it, and truncated then: a network, chosen headers.
    network: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may hold. A record's limit leaves room in Kafka's message.max.bytes."""

    body_bytes: int = 4 * 1024 * 1024
    decoded_bytes: int = 16 * 1024 * 1024
    record_bytes: int = 900_000
    records: int = 10_000
    depth: int = 64
    # In a whole body, by its commas and brackets: 3 bytes of JSON are 184 once they are parsed. Of
    # protobuf the texts and messages in lists and maps: 2 bytes are about 60.
    values: int = 500_000


def values(body: bytes) -> int:
    """No JSON in the body has more values than that: its commas, and the brackets that open."""
    # replace() searches with memchr, and takes half of count()'s time.
    return 3 * len(body) - sum(len(body.replace(mark, b"")) for mark in (b",", b"{", b"["))


def check_values(body: bytes, limits: Limits) -> None:
    """A small body may unpack to 16 MiB of nothing but empty objects: refused before it is parsed.

    Raises BadBody(413).
    """
    if len(body) > _SMALL and values(body) > limits.values:
        raise too_many_values(limits)


def too_many_values(limits: Limits) -> BadBody:
    """What is wrong with a body that holds more values than that."""
    return BadBody(
        413,
        "too_many",
        f"a request may have {limits.values} values in all its records; send less at once",
    )
