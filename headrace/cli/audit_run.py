"""An audit as the command line asks for it: destinations, the range of time, and what to mend."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from headrace.cli.audit_repairs import runs_of
from headrace.cli.audit_show import moment
from headrace.config import Config
from headrace.words import counted
from ingest.streams import MAX_TIME_US, MIN_TIME_US, Stream
from ingest.units import HOUR_US

if TYPE_CHECKING:
    from consumers.batch import Partition, Span
    from consumers.ledger.accepted import Book
    from consumers.ledger.account import Account
    from consumers.ledger.audit import Line
    from consumers.ledger.crossing import Crossing, Node
    from consumers.ledger.finding import Finding
    from consumers.ledger.vendor import Receipted

__all__ = ["Audit", "Unjudged"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_STRANGE = (
    "has nothing of these streams, as far as it and its readers' group say. Is it the one that is "
    "meant? The inserters' group, if they have one of another name, is given with --group"
)
_NOT_BEGUN = (
    "is not judged: nobody has begun to forward to it, or not for a week, and Kafka has no receipt "
    "of what it has had"
)


class Unjudged(NamedTuple):
    """A destination of which it can't be said whether all is there."""

    stream: str
    destination: str
    why: str

    def __str__(self) -> str:
        return f"{self.destination} {self.why}"


class Audit:
    """`places` are URLs of databases by their names, None for vendors; `warnings` for people.

    With `waiting` all of a stream waits for a database that has nothing of it; otherwise it is left
    out, for not every stream goes everywhere. With `strangers` who has nothing at all is unjudged.
    """

    def __init__(
        self,
        config: Config,
        places: Mapping[str, str | None],
        group: str | None,
        begin_us: int | None,
        end_us: int | None,
        *,
        deep: bool,
        explain: bool,
        waiting: bool,
        strangers: bool,
        edge: bool,
        against: str | None = None,
    ) -> None:
        self.config = config
        self.places = places
        self._group = group
        self._begin_us = MIN_TIME_US if begin_us is None else begin_us
        self._end_us = MAX_TIME_US + 1 if end_us is None else end_us
        self._deep = deep
        self._explain = explain
        self._waiting = waiting
        self._strangers = strangers
        self._edge = edge
        self.against = against
        # By day and event: how many a vendor has acknowledged, and how many its export holds.
        self.held: dict[tuple[str, str], tuple[int, int]] = {}
        # What came into Kafka through collectors and spools.
        self.crossings: list[Crossing] = []
        self.nodes: list[Node] = []
        self.warnings: list[str] = []
        self.unjudged: list[Unjudged] = []
        # Destinations that say something of a stream.
        self._known: set[str] = set()
        self._vendors: dict[str, Receipted | None] = {}

    def lines(self, streams: Sequence[Stream]) -> list[Line]:
        """Of all streams whose topic is there. Raises Unavailable, Systemic."""
        from consumers.forward.live import allowed
        from consumers.ledger.accepted import Book
        from ingest.topics import topic_ids

        book = Book(self.config.kafka)
        if self._edge:
            self._look_at_edge(book, streams)
        if not self.places:
            return []
        ids = topic_ids(self.config.kafka, [stream.topic for stream in streams])
        lines = [
            line
            for stream in streams
            if stream.topic in ids
            for line in self._of_stream(book, stream, ids[stream.topic])
        ]
        unknown = {name: url for name, url in self.places.items() if name not in self._known}
        if self._strangers:
            self.unjudged += [Unjudged("all", name, _STRANGE) for name in unknown]
        elif any(stream.name == "raw_events" and stream.topic in ids for stream in streams):
            self.warnings += [
                f"{name} {_NOT_BEGUN}"
                for name, url in unknown.items()
                if url is None and allowed(self.config.trace, name)
            ]
        return lines

    def _look_at_edge(self, book: Book, streams: Sequence[Stream]) -> None:
        from consumers.ledger.edge import Edge

        edge = Edge(self.config.kafka, book)
        first, end = self._begin_us // HOUR_US, -(-self._end_us // HOUR_US)
        self.crossings = [
            line for line in edge.audit(streams, recount=self._deep) if first <= line.hour < end
        ]
        self.nodes = edge.nodes(first, end)
        self.warnings += _expired(edge.lost)
        self.unjudged += [
            Unjudged(one.stream, "kafka", one.why)
            for one in edge.doubts
            if one.hours is None or any(first <= hour < end for hour in one.hours)
        ]

    def _of_stream(self, book: Book, stream: Stream, topic_id: str) -> list[Line]:
        from consumers.ledger.accepted import Truncated
        from consumers.ledger.account import Account
        from consumers.ledger.audit import audit

        kafka = self.config.kafka
        asked = {name: self._account(stream, topic_id, name) for name in self.places}
        # Of a database that has nothing all waits; of one that has something unknown nobody knows.
        unjudged = {one.destination for one in self.unjudged if one.stream == stream.name}
        empty = {
            name
            for name, url in self.places.items()
            if self._waiting and url is not None and name not in unjudged
        }
        accounts = {
            name: account or Account({}, {})
            for name, account in asked.items()
            if account is not None or name in empty
        }
        try:
            lines, lost = audit(kafka, book, stream, topic_id, accounts, recount=self._deep)
        except Truncated as error:
            self.unjudged.append(Unjudged(stream.name, "kafka", str(error)))
            return []
        self.warnings += _expired(lost)
        lines = [
            line
            for line in lines
            if (line.hour + 1) * HOUR_US > self._begin_us and line.hour * HOUR_US < self._end_us
        ]
        if accounts and (self._deep or self._explain or self.against):
            lines = self._looked_at(stream, topic_id, accounts, lines)
        return lines

    def _account(self, stream: Stream, topic_id: str, name: str) -> Account | None:
        """What a destination says of a stream, if it has anything of it."""
        from consumers.destinations import destination
        from consumers.ledger.account import CantBeJudged

        url = self.places[name]
        try:
            if url is not None:
                asked = destination(url)
                account = asked.account(self.config.kafka, stream, topic_id, self._group)
            else:
                receipted = self._receipted(stream, topic_id, name)
                account = receipted.account() if receipted else None
        except CantBeJudged as why:
            self.unjudged.append(Unjudged(stream.name, name, str(why)))
            self._known.add(name)
            return None
        if account is not None:
            self._known.add(name)
        return account

    def _receipted(self, stream: Stream, topic_id: str, name: str) -> Receipted | None:
        from consumers.ledger.vendor import Receipted
        from consumers.replay.jobs import Jobs

        if stream.name != "raw_events":
            return None
        if name not in self._vendors:
            kafka = self.config.kafka
            self._vendors[name] = Receipted.read(
                kafka, self.config.streams, name, topic_id, Jobs(kafka, look=True).all
            )
        return self._vendors[name]

    # -- the data itself ---------------------------------------------------------------------------

    def _looked_at(
        self, stream: Stream, topic_id: str, accounts: Mapping[str, Account], lines: list[Line]
    ) -> list[Line]:
        """The lines with what was found in the data."""
        from consumers.ledger.audit import Line
        from consumers.ledger.finding import MOST

        known = {(line.destination, line.hour): line for line in lines}
        comparable_us = self._comparable_us(stream)
        whole = (self._begin_us, self._end_us)
        if not self.against:  # whole hours, as the lines are
            first, end = whole[0] // HOUR_US, -(-whole[1] // HOUR_US)
            whole = (first * HOUR_US, end * HOUR_US)
        for name, account in accounts.items():
            spans = [whole]
            if not (self._deep or self.against):
                wrong = {line.hour for line in lines if line.destination == name and not line.holds}
                spans = [(run[0] * HOUR_US, (run[-1] + 1) * HOUR_US) for run in runs_of(wrong)]
            for first_us, end_us in spans:
                begin_us = max(first_us, comparable_us)
                if begin_us >= end_us:
                    continue
                found = self._found(stream, topic_id, name, account, begin_us, end_us)
                for finding in found:
                    at = (name, finding.hour)
                    line = known.get(at) or Line(stream.name, name, finding.hour, 0, 0, 0, 0, 0)
                    known[at] = replace(line, findings=(*line.findings, finding))
                # Where there are more than are named, an hour without one says nothing.
                if self.places[name] is not None and len(found) < MOST:
                    self._say_ledger_alone(known.values(), stream, name, begin_us, end_us)
        return sorted(known.values(), key=lambda line: (line.hour, line.destination))

    def _say_ledger_alone(
        self, lines: Iterable[Line], stream: Stream, name: str, begin_us: int, end_us: int
    ) -> None:
        """Of hours in a range whose rows are as they should be, and which do not add up."""
        hours = [
            line.hour
            for line in lines
            if line.destination == name
            and not (line.holds or line.findings)
            and begin_us <= line.hour * HOUR_US < end_us
        ]
        if hours:
            differ = counted(len(hours), "hour differs", "hours differ")
            self.warnings.append(
                f"{stream.name}: {differ} in the ledger alone, from {moment(min(hours))} on: what "
                f"Kafka has of that is in {name}, each record once. Rows that a replay puts back "
                "are in no ledger, and no command writes one; audit with --from behind them"
            )

    def _comparable_us(self, stream: Stream) -> int:
        """Since when records and rows are both still there: neither retention has removed any."""
        from consumers.ledger.scan import whole_from_us

        since_us = whole_from_us(self.config.kafka, stream)
        if stream.retention is not None:
            kept_us = _seconds(stream.retention) * 1_000_000
            since_us = max(since_us, time.time_ns() // 1000 - kept_us)
        if since_us == 0:
            return MIN_TIME_US
        first = -(-since_us // HOUR_US)
        self.warnings.append(
            f"{stream.name}: rows are compared with Kafka's records from {moment(first)} on; what "
            "is older has expired in part"
        )
        return first * HOUR_US

    def _found(
        self,
        stream: Stream,
        topic_id: str,
        name: str,
        account: Account,
        begin_us: int,
        end_us: int,
    ) -> list[Finding]:
        from consumers.destinations import destination
        from consumers.ledger.audit import question
        from consumers.ledger.finding import MOST

        url = self.places[name]
        if url is None:
            receipted = self._receipted(stream, topic_id, name)
            if receipted is None:
                return []
            if self.against is not None:
                return self._lost(name, receipted, begin_us, end_us)
            return list(islice(receipted.missing(begin_us, end_us), MOST))
        asked = question(self.config.kafka, stream, topic_id, account, begin_us, end_us)
        return destination(url).compare(asked)

    def _lost(self, vendor: str, receipted: Receipted, begin_us: int, end_us: int) -> list[Finding]:
        """What the vendor has accepted and its export does not hold."""
        from consumers.ledger.finding import MOST, Finding
        from consumers.vendors.exported import Exported

        settings = self.config.vendors[vendor].table
        exported = Exported(str(self.against), self.config.trace.hash_key, settings)
        findings: list[Finding] = []
        for one in receipted.acknowledged(begin_us, end_us):
            holds = exported.holds(one.event_id)
            at = (f"{_EPOCH + timedelta(microseconds=one.happened_us):%Y-%m-%d}", one.event)
            acknowledged, held = self.held.get(at, (0, 0))
            self.held[at] = (acknowledged + 1, held + holds)
            if not holds and len(findings) < MOST:
                hour, name = one.taken_us // HOUR_US, f"event_id {one.event_id}"
                findings.append(Finding(hour, -1, name, one.place, acknowledged=True))
        return findings


def _expired(lost: Mapping[Partition, Span]) -> list[str]:
    return [
        f"{partition}: {_gone(end - start)}, from {start:,} on; run the audit more often than "
        "Kafka's retention removes records"
        for partition, (start, end) in lost.items()
    ]


def _gone(offsets: int) -> str:
    return counted(
        offsets, "offset expired before it was counted", "offsets expired before they were counted"
    )


def _seconds(interval: str) -> int:
    """Of an interval as a stream has it."""
    number, unit = interval.split()
    days = {"month": 31, "year": 366, "week": 7, "day": 1}
    name = unit.rstrip("s")
    each = {"second": 1, "minute": 60, "hour": 3600}.get(name) or days[name] * 86_400
    return int(number) * each
