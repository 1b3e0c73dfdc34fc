"""What is announced before it is begun, an insert above all, as it stands in an offset's metadata.

All metadata names the topic's id: a topic that was deleted and made anew keeps the group's offsets
if a writer of the old one commits late.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from consumers.batch import Partition, Span
from consumers.errors import Systemic
from consumers.ledger.owed import Owed

__all__ = ["FRESH_S", "Intent", "Newest"]

# Half of the shortest time for which ClickHouse remembers a token (an hour, for replicated tables).
FRESH_S = 1800.0


class Newest(NamedTuple):
    """The span of the rows of a batch, and the last hour of their event times (since 1970).

    With `dedupe` the span of a row of the ledger. `table` is that of clickhouse_newest.table_tag.
    """

    span: Span
    hour: int
    table: int


@dataclass(frozen=True, slots=True)
class Intent:
    """The spans of one insert, and when it was announced (Unix time, milliseconds).

    `owed`: what the ledger does not say yet of the partition that has this metadata. `newest`: what
    its table has of it, whatever else becomes of the intent.
    """

    topic_id: str
    spans: dict[Partition, Span]
    at_ms: int
    owed: Owed | None = None
    newest: Newest | None = None

    @property
    def token(self) -> str:
        """The deduplication token of its insert: the same for whoever does it."""
        spans = [(*p, *span) for p, span in sorted(self.spans.items())]
        return "headrace-" + hashlib.sha256(orjson.dumps([self.topic_id, spans])).hexdigest()

    def fresh(self, now_s: float) -> bool:
        """Whether ClickHouse still remembers its token, if it was ever used; `now_s` is Unix time."""  # noqa: E501
        return now_s - self.at_ms / 1000 < FRESH_S

    def note(self) -> str:
        """The metadata that says it."""
        topic = next((partition.topic for partition in self.spans), "")
        spans = [[p.number, *span] for p, span in self.spans.items()]
        body: dict[str, object] = {
            "v": 1, "topic": topic, "id": self.topic_id, "at_ms": self.at_ms, "spans": spans,
        }  # fmt: skip
        if self.owed is not None:
            body["owed"] = self.owed.body()
        if self.newest is not None:
            body["newest"] = [*self.newest.span, self.newest.hour]
            body["table"] = self.newest.table
        return orjson.dumps(body).decode()

    @staticmethod
    def at_rest(topic_id: str, owed: Owed | None = None, newest: Newest | None = None) -> Intent:
        """What is said of a position at which nothing is announced."""
        return Intent(topic_id, {}, 0, owed, newest)

    @staticmethod
    def read(note: str) -> Intent | None:
        """The intent in an offset's metadata, maybe of no spans; None where there is no metadata.

        Raises Systemic for metadata that is not ours.
        """
        if not note:
            return None
        try:
            body = orjson.loads(note)
            spans = {Partition(body["topic"], n): Span(s, e) for n, s, e in body["spans"]}
            if body["v"] != 1:
                raise ValueError
            owed = Owed.of(body["owed"]) if "owed" in body else None
            start, end, hour = body.get("newest", (0, 0, 0))
            newest = Newest(Span(start, end), hour, body.get("table", 0)) if end else None
            return Intent(body["id"], spans, body["at_ms"], owed, newest)
        except (ValueError, TypeError, KeyError) as error:
            raise Systemic(
                f"the group's offsets carry metadata that is not ours: {note[:80]!r}; is another "
                "program using this consumer group? Choose another with --group."
            ) from error
