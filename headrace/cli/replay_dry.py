"""`headrace replay --dry-run`: the figures, a line an hour, and their sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from headrace.cli.replay_raw import open_raw
from headrace.config import Config

if TYPE_CHECKING:
    from consumers.replay.dry import Figures
    from consumers.replay.jobs import Job

__all__ = ["lines", "show_dry_run"]

_WIDTH = 30


def show_dry_run(config: Config, job: Job) -> None:
    """Read all of the job, and say what it would do."""
    from consumers.forward.live import limits_of
    from consumers.replay.dry import Figures, KafkaRecords, TableRecords, dry_run
    from consumers.replay.legs import legs
    from consumers.replay.missing import Accepted
    from consumers.replay.run import spans_of
    from consumers.vendors.exported import Exported

    stream, vendor = config.stream(job.stream), config.vendors[job.to].vendor()
    most, figures = limits_of(vendor).max_rows, Figures()
    exported = Exported(job.against) if job.against is not None else None
    first, last = legs(job)
    if first is not None:
        first = replace(first, only_missing=job.only_missing)
        table = open_raw(config, job).open()
        try:
            rows = TableRecords(table, stream.topic, first)
            dry_run(stream, config.trace, vendor, first, rows, most, figures, exported)
        finally:
            table.close()
    accepted = Accepted(spans_of(last, stream))
    accepted.load(config.kafka, config.stream("receipts").topic, job.to, last.begin_us)
    records = KafkaRecords(config.kafka, stream.topic, last, accepted)
    dry_run(stream, config.trace, vendor, last, records, most, figures, exported)
    for line in lines(figures, figures.seconds(vendor, job.rate)):
        click.echo(line)


def lines(figures: Figures, seconds: float) -> Iterator[str]:
    """The histogram and the sums, a line each. `seconds`: how long a rate makes it last."""
    hours = figures.hours
    most = max((hour.events for hour in hours.values()), default=1)
    yield f"{'hour (UTC)':17} {'events':>12} {'accepted':>12} {'to send':>12} {'refused':>12}"
    refused: Counter[str] = Counter()
    for begin_us, hour in hours.items():
        refused += hour.refused
        moment = datetime.fromtimestamp(begin_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")
        yield (
            f"{moment:17} {hour.events:12,} {hour.accepted:12,} {hour.sent:12,} "
            f"{hour.refused.total():12,}  {'█' * max(1, round(hour.events / most * _WIDTH))}"
        )
    events, accepted, sent = (
        sum(getattr(hour, name) for hour in hours.values())
        for name in ("events", "accepted", "sent")
    )
    yield f"{'all':17} {events:12,} {accepted:12,} {sent:12,} {refused.total():12,}"
    for reason, count in refused.most_common():
        yield f"{count:,} × {reason}"
    if figures.undecodable:
        yield f"{figures.undecodable:,} records can't be decoded; they are in the dead letters"
    requests = f"{figures.requests:,} requests, if each is as full as it may be"
    yield f"{requests}; {_span(seconds)}" if seconds else requests


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"at least {seconds:.0f} s at its rate"
    if seconds < 7200:
        return f"at least {seconds / 60:.0f} min at its rate"
    return f"at least {seconds / 3600:.1f} h at its rate"
