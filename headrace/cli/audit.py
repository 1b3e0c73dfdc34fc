"""`headrace audit`: whether all that was accepted is accounted for, hour by hour."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.audit_edge import edge_documents, edge_tables
from headrace.cli.audit_repairs import explains, repairs
from headrace.cli.audit_show import document, explained, export_table, table
from headrace.cli.audit_watch import Kept, Watcher, report
from headrace.cli.options import config_options, require_topics, stream_option, streams_of
from headrace.cli.places import places
from headrace.cli.typed import as_given
from headrace.cli.when import DURATION, TIME, check_range
from headrace.config import Config, ConfigError, load
from headrace.words import printable

if TYPE_CHECKING:
    from consumers.ledger.audit import Line
    from headrace.cli.audit_run import Audit

__all__ = ["audit"]

# The destination that stands in front of all others.
KAFKA = "kafka"


@click.command()
@click.option(
    "--to", multiple=True, metavar="URL|VENDOR",
    help="A database, as for `headrace insert`, a vendor of [vendors.NAME], or kafka: what came "
    "through collectors and spools; several times. [default: kafka, postgres and chdb where there "
    "are such, and all vendors]",
)  # fmt: skip
@stream_option
@click.option("--from", "begin_us", type=TIME, metavar="TIME", help="Hours from then on.")
@click.option("--until", "end_us", type=TIME, metavar="TIME", help="Hours before then.")
@click.option(
    "--deep", is_flag=True,
    help="Don't trust the ledger: count Kafka's records anew, and compare all rows with them.",
)  # fmt: skip
@click.option(
    "--explain", is_flag=True,
    help="Name the records of hours that do not add up, and say how to mend it.",
)  # fmt: skip
@click.option(
    "--against", metavar="FILE", type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    help="A vendor's own export: what it has accepted must be in there.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, for each hour.")
@click.option("--watch", is_flag=True, help="Audit again and again, until Ctrl-C.")
@click.option("--every", type=DURATION, default="1m", show_default=True, metavar="SPAN",
              help="How long --watch waits between two audits.")  # fmt: skip
@click.option("--metrics", metavar="HOST:PORT",
              help="With --watch, serve /metrics here. [default: off]")  # fmt: skip
@click.option("--group", metavar="NAME", help="The consumer group of ClickHouse's inserters.")
@config_options
def audit(
    to: tuple[str, ...],
    stream_names: tuple[str, ...],
    begin_us: int | None,
    end_us: int | None,
    deep: bool,
    explain: bool,
    against: str | None,
    as_json: bool,
    watch: bool,
    every: float,
    metrics: str | None,
    group: str | None,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Prove that nothing is missing: accepted = landed + dead-lettered + dropped + in flight.

    For every hour of event time, stream and destination. Each term is counted where the records
    are moved, with a hash of which they are; so one that is lost is seen although another is there
    twice. See docs/ledger.md.

    What was acknowledged by a collector, or by a Publisher with a spool, is to be in Kafka or still
    in the spool: for every hour in which it entered Kafka, and for every spool (--to kafka).

    With --deep the ledger is not believed: what Kafka still has is counted anew and held against
    every row that is there. --explain does the same for the hours that do not add up. Both name
    the records that are missing or there too often, and print the command that mends it.

    --against FILE holds an export of a vendor (JSON lines, as for `headrace replay --against`)
    against what it has accepted by its receipts: the only way to see a vendor that drops silently.

    Kafka is counted by this command, from where its last run stopped: the first one reads all there
    is. Run it more often than Kafka's retention removes records, or they can't be audited.

    \b
    The exit code is
      0   the equation holds
      1   it does not, or the audit could not be done
      2   a wrong call

    \b
    Examples:
      headrace audit
      headrace audit --to postgres --stream device_state --from -24h --json
      headrace audit --to kafka
      headrace audit --deep --from -24h
      headrace audit --to amplitude --from -2d --against export.json.gz
      headrace audit --watch --metrics 127.0.0.1:9469
    """
    from consumers.fetch import calm_gc
    from consumers.health import serve
    from consumers.ledger.accepted import Book
    from headrace.cli.audit_run import Audit

    if metrics is not None and not watch:
        raise click.UsageError("--metrics is for --watch")
    if against is not None and (len(to) != 1 or watch):
        raise click.UsageError("--against is the export of one vendor: give --to VENDOR")
    check_range(begin_us, end_us)
    config = load(config_path, kafka=kafka)
    streams = streams_of(config, stream_names)
    edge = not to or KAFKA in to
    places = _places(config, to)
    if against is not None and None not in places.values():
        raise click.UsageError("--against is a vendor's export, and --to names a database")

    # Sums are objects without cycles: to look for some takes a third of the time to read a book.
    calm_gc()
    kept = Kept(lambda: Book(config.kafka))

    def audited(book: Book) -> tuple[Audit, list[Line]]:
        run = Audit(
            config, places, group, begin_us, end_us, deep=deep, explain=explain,
            waiting=bool(to and stream_names),
            # To have nothing yet is a mistake of who names it once, and the beginning of a watch.
            strangers=bool(to) and not stream_names and not watch,
            edge=edge, unnamed=not to and not watch, against=against,
        )  # fmt: skip
        return run, run.lines(streams, book)

    def once() -> bool:
        if stream_names:
            require_topics(config, streams)
        run, lines = kept.audited(audited)
        _show(run, lines, as_json, databases=bool(places), spools=KAFKA in to)
        report(lines, run.crossings, run.nodes, run.unjudged)
        return (
            not run.unjudged
            and all(line.holds for line in lines)
            and all(line.holds for line in run.crossings)
            and all(node.holds for node in run.nodes)
        )

    if not watch:
        sys.exit(0 if once() else 1)
    watcher = Watcher(every)
    with serve(metrics, watcher):
        sys.exit(0 if watcher.run(once) else 1)


def _show(run: Audit, lines: list[Line], as_json: bool, *, databases: bool, spools: bool) -> None:
    """`databases` and `spools` are asked for by name, or known: of those also none is said."""
    for warning in (*run.warnings, *map(str, run.unjudged)):
        click.echo(f"headrace: {printable(warning)}", err=True)
    if as_json:
        unjudged = ({**one._asdict(), "holds": False} for one in run.unjudged)
        edge = edge_documents(run.crossings, run.nodes)
        for one in (*map(document, lines), *edge, *unjudged):
            click.echo(json.dumps(one))
        return
    doubted = any(one.destination == KAFKA for one in run.unjudged)
    if not edge_tables(run.crossings, run.nodes, unjudged=doubted) and spools and not doubted:
        click.echo("nothing has come through collectors or spools in that time")
    if databases and (lines or not run.unjudged):
        table(lines, unjudged=bool(run.unjudged))
    if run.held:
        export_table(run.held)
    for line in lines:
        for sentence in explained(line):
            click.echo(sentence)
    for command in repairs(run.config, run.places, run.against, lines):
        click.echo(f"repair: {as_given(command)}")
    for command in () if run.names else explains(lines):
        click.echo(f"which records, and what mends it: {as_given(command)}")


def _places(config: Config, to: tuple[str, ...]) -> dict[str, str | None]:
    """URLs of the destinations, None for a vendor, by what they are called in the answer."""
    named = tuple(name for name in to if name != KAFKA)
    found = places(config, named) if named or not to else {}
    if not to and not found:
        raise ConfigError(
            "there is no local stack, no HEADRACE_POSTGRES, no HEADRACE_CHDB, "
            "no vendor: say --to URL, or --to kafka for what came through collectors alone"
        )
    return found
