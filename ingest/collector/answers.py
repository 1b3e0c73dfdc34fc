"""Answers as values: a status, a JSON body, headers; and the one that is raised.

Every error has the same form, `{"error": {"code": "…", "reason": "…"}}`: `code` is one of a few
words, for programs; `reason` says what to do, and holds nothing of a payload or a key. With the one
that comes when records are on disk, 504, stands also what became of each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from ingest.collector.judge import Judged, Refusal

__all__ = ["JSON", "ONE_ACCEPTED", "Answer", "Refused", "error", "json", "of_records", "shown"]

JSON = b"application/json"

Header = tuple[bytes, bytes]


class Answer(NamedTuple):
    """What is sent back."""

    status: int
    body: bytes
    headers: tuple[Header, ...] = ()
    content_type: bytes = JSON


# By far the most frequent one.
ONE_ACCEPTED = Answer(202, b'{"accepted":1,"refused":[]}')


class Refused(Exception):
    """The request ends here, with this answer; `code` is for the metric.

    `unread`: its body has not been read, and may still be on its way.
    """

    unread = False

    def __init__(
        self,
        status: int,
        code: str,
        reason: str,
        *headers: Header,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.answer = error(status, code, reason, *headers, more=more)


def json(status: int, value: Any, *headers: Header) -> Answer:
    """An answer that says `value`."""
    return Answer(status, orjson.dumps(value), headers)


def error(
    status: int, code: str, reason: str, *headers: Header, more: Mapping[str, Any] | None = None
) -> Answer:
    """An answer that says what is wrong, and `more` beside it."""
    return json(status, {"error": {"code": code, "reason": reason}, **(more or {})}, *headers)


def shown(refused: Sequence[Refusal]) -> list[dict[str, Any]]:
    """Refusals as they stand in an answer."""
    return [{"index": r.index, "code": r.code, "reason": r.reason} for r in refused]


def of_records(judged: Judged) -> tuple[int, dict[str, Any]]:
    """202 with what was accepted and what was not; 422 when all was refused."""
    accepted, refused = len(judged.records), judged.refused
    status = 422 if refused and not accepted else 202
    return status, {"accepted": accepted, "refused": shown(refused)}
