"""`headrace replay --dry-run`: the figures, a line an hour, and their sums."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from headrace.cli.places import Place
from headrace.cli.replay_raw import open_raw
from headrace.cli.when import utc
from headrace.config import Config
from headrace.words import counted, printable

if TYPE_CHECKING:
    from confluent_kafka import Message

    from consumers.batch import Partition
    from consumers.replay.dry import Figures
    from consumers.replay.dry_rows import RowFigures
    from consumers.replay.job import Job
    from consumers.replay.table import RawTable

__all__ = ["lines", "row_lines", "show_dry_run", "with_other_values"]

_WIDTH = 30
_AGAIN_S = 1.0


def show_dry_run(config: Config, where: Place, job: Job) -> None:
    """Read all of the job, and say what it would do."""
    shown = _to_vendor(config, job) if where.url is None else _to_database(config, where.url, job)
    for line in shown:
        click.echo(line)


def _to_database(config: Config, url: str, job: Job) -> Iterator[str]:
    from consumers.bounds import read
    from consumers.limits import Limits
    from consumers.replay.dry import TableRecords
    from consumers.replay.dry_rows import NoKafka, RowFigures, dry_run_rows
    from consumers.replay.legs import legs
    from consumers.replay.run import selection_of
    from consumers.replay.target import database_sink

    stream, figures = config.stream(job.stream), RowFigures()
    first, last = legs(job)
    for leg in filter(None, (first, last)):
        meant = selection_of(config.kafka, config.streams, leg)
        with ExitStack() as stack:
            records: Iterable[tuple[Partition, Sequence[Message]]]
            if leg is first:
                table = open_raw(config, job).open()
                stack.callback(table.close)
                records = TableRecords(table, stream.topic, leg, with_receipts=False)
            else:
                records = read(config.kafka, stream.topic, leg.spans)
            log = NoKafka(job.topic_id)
            sink = database_sink(
                url, stream, leg, log, of_rows=leg is first, on_back=figures.count_left
            )
            stack.callback(sink.close)
            dry_run_rows(stream, records, meant, sink.lacking, Limits().max_rows, figures)
    return row_lines(figures)


def row_lines(figures: RowFigures) -> Iterator[str]:
    """The histogram and the sums of a replay to a database, a line each."""
    most = max(figures.rows.values(), default=1)
    yield f"{'hour (UTC)':17} {'rows':>12} {'there':>12} {'to put back':>12}"
    for begin_us, rows in sorted(figures.rows.items()):
        missing = figures.missing[begin_us]
        yield (
            f"{utc(begin_us)[:16]:17} {rows:12,} {rows - missing:12,} {missing:12,}  "
            f"{'█' * max(1, round(rows / most * _WIDTH))}"
        )
    rows, missing = figures.rows.total(), figures.missing.total()
    yield f"{'all':17} {rows:12,} {rows - missing:12,} {missing:12,}"
    if figures.left:
        yield with_other_values(figures.left)
    if figures.refused:
        yield _dead(figures.refused, "row", "the database does not take")
    if figures.undecodable:
        yield _dead(figures.undecodable, "record", "can't be decoded")


def _to_vendor(config: Config, job: Job) -> Iterator[str]:
    from consumers.forward.live import limits_of
    from consumers.replay.dry import Figures, KafkaRecords, TableRecords, dry_run
    from consumers.replay.legs import legs
    from consumers.replay.missing import Accepted
    from consumers.vendors.exported import Exported

    stream, vendor = config.stream(job.stream), config.vendors[job.to].vendor()
    most, figures = limits_of(vendor).max_rows, Figures()
    exported = None
    if job.against is not None:
        exported = Exported(job.against, config.trace.hash_key, config.vendors[job.to].table)
    first, last = legs(job)
    if first is not None:
        first = replace(first, only_missing=job.only_missing)
        source = open_raw(config, job)
        table = source.open()
        try:
            if source.lacking is not None:
                _wait_for_receipts(config, table)
            rows = TableRecords(table, stream.topic, first)
            dry_run(stream, config.trace, vendor, first, rows, most, figures, exported)
        finally:
            table.close()
    accepted = Accepted(last.spans_of(stream.topic))
    # It asks for open replays of outages: before receipts are read, see left_to_outages.
    records = KafkaRecords(config.kafka, stream.topic, last, accepted)
    receipts = config.stream("receipts").topic
    accepted.load(config.kafka, receipts, job.to, last.begin_us, last.end_us)
    dry_run(stream, config.trace, vendor, last, records, most, figures, exported)
    return lines(figures, figures.seconds(vendor, job.rate))


def _wait_for_receipts(config: Config, table: RawTable) -> None:
    """As the replay itself does: what is accepted would be shown as to be sent."""
    from consumers.errors import Unavailable
    from consumers.replay.run import ReceiptsLanded

    landed, said = ReceiptsLanded(config.kafka), False
    while True:
        try:
            return landed(table)
        except Unavailable as behind:
            if not said:
                click.echo(f"headrace: waiting: {behind}", err=True)
            said = True
            time.sleep(_AGAIN_S)


def lines(figures: Figures, seconds: float) -> Iterator[str]:
    """The histogram and the sums, a line each. `seconds`: how long a rate makes it last."""
    hours = figures.hours
    most = max((hour.events for hour in hours.values()), default=1)
    yield f"{'hour (UTC)':17} {'events':>12} {'accepted':>12} {'to send':>12} {'refused':>12}"
    refused: Counter[str] = Counter()
    for begin_us, hour in hours.items():
        refused += hour.refused
        yield (
            f"{utc(begin_us)[:16]:17} {hour.events:12,} {hour.accepted:12,} {hour.sent:12,} "
            f"{hour.refused.total():12,}  {'█' * max(1, round(hour.events / most * _WIDTH))}"
        )
    events, accepted, sent = (
        sum(getattr(hour, name) for hour in hours.values())
        for name in ("events", "accepted", "sent")
    )
    yield f"{'all':17} {events:12,} {accepted:12,} {sent:12,} {refused.total():12,}"
    for reason, count in refused.most_common():
        yield f"{count:,} × {printable(reason)}"
    if figures.undecodable:
        yield _dead(figures.undecodable, "record", "can't be decoded")
    requests = counted(
        figures.requests, "request, if it is as full as it may be",
        "requests, if each is as full as it may be",
    )  # fmt: skip
    yield f"{requests}; {_span(seconds)}" if seconds else requests


def with_other_values(rows: int) -> str:
    """Of rows that a replay leaves, for to put them back would double them."""
    are, their = ("is", "its record gives") if rows == 1 else ("are", "their records give")
    return (
        f"{counted(rows, 'row')} {are} there by key and time with other values than {their} now, "
        "and left so: has the message changed?"
    )


def _dead(count: int, what: str, why: str) -> str:
    """What it does not take or can't be decoded, and where that is."""
    are = "it is" if count == 1 else "they are"
    return f"{counted(count, what)} {why}; {are} in the dead letters"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"at least {seconds:.0f} s at its rate"
    if seconds < 7200:
        return f"at least {seconds / 60:.0f} min at its rate"
    return f"at least {seconds / 3600:.1f} h at its rate"
