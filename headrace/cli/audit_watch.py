"""`headrace audit --watch`: one audit after the other, and what the last one found as metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import click

from headrace.cli import signals
from headrace.words import printable
from ingest.topics import TopicError

if TYPE_CHECKING:
    from consumers.ledger.accepted import Book
    from consumers.ledger.audit import Line
    from consumers.ledger.crossing import Crossing, Node
    from headrace.cli.audit_run import Unjudged

__all__ = ["Kept", "Watcher", "report"]

T = TypeVar("T")


def report(
    lines: Sequence[Line],
    crossings: Sequence[Crossing],
    nodes: Sequence[Node],
    unjudged: Sequence[Unjudged],
) -> None:
    """What an audit found, into the metrics."""
    from consumers import metrics

    metrics.AUDIT_DIFFERING.clear()
    for line in lines:
        metrics.AUDIT_DIFFERING.labels(line.stream, line.destination).inc(not line.holds)
    for crossing in crossings:
        metrics.AUDIT_DIFFERING.labels(crossing.stream, "kafka").inc(not crossing.holds)
    for node in nodes:
        metrics.AUDIT_DIFFERING.labels("spools", "kafka").inc(not node.holds)
    for one in unjudged:
        metrics.AUDIT_DIFFERING.labels(one.stream, one.destination).inc()
    metrics.AUDIT_AT.set(time.time())


class Kept:
    """The book of what is in Kafka, from one audit of a watch to the next: to read it takes longer
    the more there is, which is every hour of every partition.

    It is opened anew behind an audit that failed: another one may have gone on in it.
    """

    def __init__(self, open_book: Callable[[], Book]) -> None:
        self._open = open_book
        self._book: Book | None = None

    def audited(self, audit: Callable[[Book], T]) -> T:
        """What an audit by it answers. Raises what that does, and TopicError.

        Where another one has gone on in the book since, which is no failure, it is done once more.
        """
        from consumers.ledger.accepted import Overtaken

        kept, self._book = self._book, None
        if kept is not None and kept.stands():
            with suppress(Overtaken):
                found = audit(kept)
                self._book = kept
                return found
        del kept  # there is no need for both in memory
        book = self._open()
        found = audit(book)
        self._book = book
        return found


class Watcher:
    """Audits until a signal; what it is asked for its health is `consumers.health.Asked`."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._over = threading.Event()
        self.problem: str | None = "the first audit is under way"
        self.away_s = 0.0

    def run(self, once: Callable[[], bool]) -> bool:
        """Whether the last audit found that all adds up. Raises Systemic."""
        from consumers.errors import Unavailable

        signals.stop_by(self._over.set)
        holds, away_since = False, 0.0
        while not self._over.is_set():
            try:
                holds = once()
                self.problem, self.away_s, away_since = None, 0.0, 0.0
            except (TopicError, Unavailable) as away:
                away_since = away_since or time.monotonic()
                self.problem, self.away_s = str(away), time.monotonic() - away_since
                click.echo(f"headrace: trying again: {printable(str(away))}", err=True)
            self._over.wait(self._every_s)
        signals.no_more()
        return holds
