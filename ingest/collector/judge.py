"""What a door says of a request's body: which records are good, which are refused and why.

A door is a pure function, so that every one of them is tested and fuzzed without a socket:

    judge(body, content_type, caller, limits, now_us) -> Judged        # raises BadBody
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ingest.spool.frames import Record

__all__ = ["BadBody", "Caller", "Judged", "Limits", "Refusal"]


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
    """The body as a whole can't be read, so nothing of it is taken: `status` 400, 413 or 415."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends. Ids are `source`'s own: a record's id in the spool is `source:id`."""

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
