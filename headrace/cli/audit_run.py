"""An audit as the command line asks for it: destinations, the range of time, and what to mend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from headrace.cli.audit_data import Data
from headrace.cli.typed import as_given
from headrace.config import Config
from headrace.words import counted
from ingest.streams import MAX_TIME_US, MIN_TIME_US, Stream
from ingest.units import HOUR_US

if TYPE_CHECKING:
    from consumers.batch import Partition, Span
    from consumers.ledger.accepted import Book
    from consumers.ledger.account import Account, CantBeJudged
    from consumers.ledger.audit import Line
    from consumers.ledger.crossing import Crossing, Node
    from consumers.ledger.vendor import Receipted

__all__ = ["Audit", "Unjudged"]

_STRANGE = (
    "has nothing of these streams, as far as it and its readers' group say: nobody has begun to "
    "{do}, or it is not the one that is meant. To begin: `{begin}`{group}"
)
_OF_GROUP = ". The inserters' group, if they have one of another name, is given with --group"
_NOT_BEGUN = (
    "is not judged: nobody has begun to forward to it, or not for a week, and Kafka has no receipt "
    "of what it has had"
)
_NO_RECEIPTS = (
    "a partition of the topic of receipts has none left, and had some: what became of events that "
    "were published before the next receipt there can't be judged. They may all have been accepted"
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
    out, for not every stream goes everywhere. With `strangers` who has nothing at all is unjudged;
    with `unnamed` so are all databases where none has anything of what Kafka has.
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
        unnamed: bool = False,
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
        self._unnamed = unnamed
        # Whether Kafka has, or had when it was counted, a record of a stream.
        self._any = False
        # Whether records of lines that do not add up are looked for.
        self.names = deep or explain
        self.against = against
        # What came into Kafka through collectors and spools.
        self.crossings: list[Crossing] = []
        self.nodes: list[Node] = []
        self.warnings: list[str] = []
        self.unjudged: list[Unjudged] = []
        # Destinations that say something of a stream.
        self._known: set[str] = set()
        self._vendors: dict[str, Receipted | None] = {}
        self._data = Data(
            config, places, self._begin_us, self._end_us, self._receipted, self.warnings,
            deep=deep, against=against,
        )  # fmt: skip
        self.held = self._data.held

    def lines(self, streams: Sequence[Stream], book: Book) -> list[Line]:
        """Of all streams whose topic is there. Raises Unavailable, Systemic."""
        from consumers.forward.live import allowed
        from consumers.together import together
        from ingest.topics import topic_ids

        if self._edge:
            self._look_at_edge(book, streams)
        if not self.places:
            return []
        ids = topic_ids(self.config.kafka, [stream.topic for stream in streams])
        there = [stream for stream in streams if stream.topic in ids]
        pairs = [(stream, name) for stream in there for name in self.places]
        answers = together(lambda pair: self._account(pair[0], ids[pair[0].topic], pair[1]), pairs)
        lines = []
        for stream in there:
            asked = {name: self._judged(stream, name, next(answers)) for name in self.places}
            lines += self._of_stream(book, stream, ids[stream.topic], asked)
        unknown = {name: url for name, url in self.places.items() if name not in self._known}
        if self._strangers:
            self.unjudged += [_stranger(name, url) for name, url in unknown.items()]
        elif self._unnamed and self._any and not self._known:
            # A wrong HEADRACE_POSTGRES would else be a proof of nothing, with exit code 0.
            self.unjudged += [_stranger(name, url) for name, url in unknown.items() if url]
        if not self._strangers and any(
            one.name == "raw_events" and one.topic in ids for one in streams
        ):
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

    def _of_stream(
        self, book: Book, stream: Stream, topic_id: str, asked: Mapping[str, Account | None]
    ) -> list[Line]:
        """`asked` is what each destination has said."""
        from consumers.ledger.account import Account
        from consumers.ledger.audit import audit
        from consumers.ledger.truncated import Overwritten, Truncated

        kafka = self.config.kafka
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
            if not (self._deep and isinstance(error, Overwritten)):
                return []
            # Which records that are is what --deep is asked for then.
            lines, lost = audit(
                kafka, book, stream, topic_id, accounts, recount=True, as_counted=True
            )
        self.warnings += _expired(lost)
        if self._unnamed and any(one.records for one in book.totals(topic_id).values()):
            self._any = True
        lines = [
            line
            for line in lines
            if (line.hour + 1) * HOUR_US > self._begin_us and line.hour * HOUR_US < self._end_us
        ]
        if accounts and (self._deep or self._explain or self.against):
            lines = self._data.looked_at(stream, topic_id, accounts, lines)
        return lines

    def _account(self, stream: Stream, topic_id: str, name: str) -> Account | CantBeJudged | None:
        """What a destination says of a stream, if it has anything of it. From any thread."""
        from consumers.destinations import destination
        from consumers.ledger.account import CantBeJudged

        url = self.places[name]
        try:
            if url is not None:
                asked = destination(url)
                return asked.account(self.config.kafka, stream, topic_id, self._group)
            receipted = self._receipted(stream, topic_id, name)
            return receipted.account() if receipted else None
        except CantBeJudged as why:
            return why

    def _judged(
        self, stream: Stream, name: str, said: Account | CantBeJudged | None
    ) -> Account | None:
        """The account, if there is one to believe."""
        from consumers.ledger.account import CantBeJudged

        if said is not None:
            self._known.add(name)
        if isinstance(said, CantBeJudged):
            self.unjudged.append(Unjudged(stream.name, name, str(said)))
            return None
        return said

    def _receipted(self, stream: Stream, topic_id: str, name: str) -> Receipted | None:
        from consumers.ledger.vendor import Receipted
        from consumers.replay.jobs import Jobs

        if stream.name != "raw_events":
            return None
        if name not in self._vendors:
            kafka = self.config.kafka
            receipted = Receipted.read(
                kafka, self.config.streams, name, topic_id, Jobs(kafka, look=True).all
            )
            # The table says "expired", and all of its events may be there.
            if receipted is not None and receipted.receipts.emptied:
                self.warnings.append(f"{name}: {_NO_RECEIPTS}")
            self._vendors[name] = receipted
        return self._vendors[name]


def _stranger(name: str, url: str | None) -> Unjudged:
    if url is None:
        begin = as_given(f"headrace forward --vendor {quote(name)}")
        why = _STRANGE.format(do="forward to it", begin=begin, group="")
    else:
        begin = as_given(f"headrace insert --to {quote(name)}")
        why = _STRANGE.format(do="insert into it", begin=begin, group=_OF_GROUP)
    return Unjudged("all", name, why)


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
