"""What an audit finds in the data itself: in rows, receipts and a vendor's export."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from headrace.cli.audit_repairs import runs_of
from headrace.cli.audit_show import moment
from headrace.config import Config
from headrace.words import counted
from ingest.streams import MIN_TIME_US, Stream
from ingest.units import HOUR_US

if TYPE_CHECKING:
    from consumers.ledger.account import Account
    from consumers.ledger.audit import Line
    from consumers.ledger.finding import Finding
    from consumers.ledger.vendor import Receipted

__all__ = ["Data"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Data:
    """Of all hours of the range with `deep` or `against`, else of those that do not add up.

    `receipted` gives the account of a vendor, of a stream and its topic's id; `warnings` are added
    to.
    """

    def __init__(
        self,
        config: Config,
        places: Mapping[str, str | None],
        begin_us: int,
        end_us: int,
        receipted: Callable[[Stream, str, str], Receipted | None],
        warnings: list[str],
        *,
        deep: bool,
        against: str | None,
    ) -> None:
        self._config = config
        self._places = places
        self._begin_us = begin_us
        self._end_us = end_us
        self._receipted = receipted
        self._warnings = warnings
        self._deep = deep
        self._against = against
        # By day and event: how many a vendor has acknowledged, and how many its export holds.
        self.held: dict[tuple[str, str], tuple[int, int]] = {}

    def looked_at(
        self, stream: Stream, topic_id: str, accounts: Mapping[str, Account], lines: list[Line]
    ) -> list[Line]:
        """The lines with what was found in the data."""
        from consumers.ledger.audit import Line
        from consumers.ledger.finding import MOST

        known = {(line.destination, line.hour): line for line in lines}
        comparable_us = self._comparable_us(stream)
        whole = (self._begin_us, self._end_us)
        if not self._against:  # whole hours, as the lines are
            first, end = whole[0] // HOUR_US, -(-whole[1] // HOUR_US)
            whole = (first * HOUR_US, end * HOUR_US)
        for name, account in accounts.items():
            spans = [whole]
            if not (self._deep or self._against):
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
                if self._places[name] is not None and len(found) < MOST:
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
            self._warnings.append(
                f"{stream.name}: {differ} in the ledger alone, from {moment(min(hours))} on: what "
                f"Kafka has of that is in {name}, each record once. Rows that a replay puts back "
                "are in no ledger, and no command writes one; audit with --from behind them"
            )

    def _comparable_us(self, stream: Stream) -> int:
        """Since when records and rows are both still there: neither retention has removed any."""
        from consumers.ledger.scan import whole_since

        since_us = whole_since(self._config.kafka, stream).since_us
        if stream.retention is not None:
            kept_us = _seconds(stream.retention) * 1_000_000
            since_us = max(since_us, time.time_ns() // 1000 - kept_us)
        if since_us == 0:
            return MIN_TIME_US
        first = -(-since_us // HOUR_US)
        self._warnings.append(
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

        url = self._places[name]
        if url is None:
            receipted = self._receipted(stream, topic_id, name)
            if receipted is None:
                return []
            if self._against is not None:
                return self._lost(name, receipted, begin_us, end_us)
            return list(islice(receipted.missing(begin_us, end_us), MOST))
        asked = question(self._config.kafka, stream, topic_id, account, begin_us, end_us)
        return destination(url).compare(asked)

    def _lost(self, vendor: str, receipted: Receipted, begin_us: int, end_us: int) -> list[Finding]:
        """What the vendor has accepted and its export does not hold."""
        from consumers.ledger.finding import MOST, Finding
        from consumers.vendors.exported import Exported

        settings = self._config.vendors[vendor].table
        exported = Exported(str(self._against), self._config.trace.hash_key, settings)
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


def _seconds(interval: str) -> int:
    """Of an interval as a stream has it."""
    number, unit = interval.split()
    days = {"month": 31, "year": 366, "week": 7, "day": 1}
    name = unit.rstrip("s")
    each = {"second": 1, "minute": 60, "hour": 3600}.get(name) or days[name] * 86_400
    return int(number) * each
