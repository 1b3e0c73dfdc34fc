"""`headrace schema` and `headrace migrate`: from a stream's declaration to topics and tables."""

from __future__ import annotations

from pathlib import Path

import click

from consumers.destinations import destination
from headrace.cli.options import config_options, destination_url, stream_option, streams_of
from headrace.config import Config, load
from headrace.logs import configure
from ingest.topics import TopicError, ensure, retentions

__all__ = ["migrate", "schema"]

# A dead-letter topic takes the largest record that an inserter reads (8 MiB, consumers.decode) with
# its headers, and keeps it for 30 days: a letter waits for a person, and is the only copy once its
# record has left Kafka.
_DLQ = {"retention.ms": str(30 * 24 * 60 * 60 * 1000)}
# Confluent Cloud and MSK Serverless take no more than 8 MiB of any topic.
_DLQ_SIZES = [{"max.message.bytes": str(n * 1024 * 1024)} for n in (9, 8)]


@click.group()
def schema() -> None:
    """Show what a stream becomes in a database.

    \b
    Example:
      headrace schema sql device_state --for clickhouse
    """


@schema.command("sql")
@click.argument("stream")
@click.option(
    "--for",
    "dialect",
    type=click.Choice(["postgres", "timescale", "clickhouse"]),
    default="postgres",
    show_default=True,
    help="The database.",
)
@config_options
def schema_sql(stream: str, dialect: str, config_path: Path | None, kafka: str | None) -> None:
    """Print the SQL that makes STREAM's table, and the view that comes with raw_events.

    `headrace migrate` applies the same. The type that each kind of protobuf field gets is listed in
    docs/streams.md.

    \b
    Example:
      headrace schema sql device_state --for timescale | psql "$DATABASE_URL"
    """
    found = load(config_path, kafka=kafka, need_kafka=False).stream(stream)
    from consumers.decode import Decoder
    from consumers.sinks import raw_normalized

    # What it refuses would never land.
    Decoder(found)

    if dialect == "clickhouse":
        from consumers.sinks import clickhouse_ledger
        from consumers.sinks.clickhouse_types import ddl as clickhouse_ddl

        made = clickhouse_ledger.LEDGER_DDL + clickhouse_ddl(found)
        view = raw_normalized.clickhouse(found)
    else:
        from consumers.sinks.postgres_ledger import LEDGER_DDL
        from consumers.sinks.postgres_types import OFFSETS_DDL, ddl

        made = OFFSETS_DDL + LEDGER_DDL + ddl(found, timescale=dialect == "timescale")
        view = raw_normalized.postgres(found)
    click.echo(made + (view.sql if view else ""), nl=False)


def _kept_as_events(config: Config) -> dict[str, str]:
    """What a new topic of receipts is made with: it keeps them for as long as raw events are kept.

    Where that may not be asked it is the broker's default.
    """
    topic = config.stream("raw_events").topic
    try:
        (limits,) = retentions(config.kafka, [topic]).values()
    except TopicError:
        return {}
    kept_ms = -1 if limits.seconds is None else round(limits.seconds * 1000)
    return {"retention.ms": str(kept_ms)}


@click.command()
@click.option(
    "--to",
    multiple=True,
    metavar="URL",
    help="A database to make tables in, as for `headrace insert`; may be given several times.",
)
@stream_option
@config_options
def migrate(
    to: tuple[str, ...], stream_names: tuple[str, ...], config_path: Path | None, kafka: str | None
) -> None:
    """Create the topics and tables that are missing. What is there stays as it is.

    Makes each stream's topic and its dead-letter topic in Kafka, which keeps letters for 30 days,
    and with --to its table, indexes and view, and the table of positions. In a database with the
    TimescaleDB extension a new table becomes a hypertable. Run it again after any change of
    headrace.toml, and after an upgrade; a table whose columns no longer fit its stream is reported,
    never altered.

    \b
    Examples:
      headrace migrate --to postgres                          # of the local stack
      headrace migrate --to postgres://me:pw@db/prod --stream device_state
    """
    configure()
    config = load(config_path, kafka=kafka)
    streams = streams_of(config, stream_names)
    urls = [destination_url(config, url) for url in to]
    targets = [destination(url) for url in urls]
    from consumers.decode import Decoder

    # Before there is a topic: what could be published to it would never land.
    for stream in streams:
        Decoder(stream)
    # Last, so that what it is to keep can be seen.
    receipts = [stream for stream in streams if stream.name == "receipts"]
    others = [stream for stream in streams if stream not in receipts]
    made = ensure(config.kafka, {s.topic: s.partitions for s in others})
    for stream in receipts:
        made += ensure(config.kafka, {stream.topic: stream.partitions}, _kept_as_events(config))
    made += ensure(config.kafka, {s.dlq: 1 for s in streams}, _DLQ, better=_DLQ_SIZES)
    done = [f"topic {name}" for name in made]
    for target in targets:
        done += [f"{what} ({target.kind})" for what in target.migrate(streams)]
    for line in done:
        click.echo(f"created {line}")
    if not done:
        click.echo("nothing to do: all topics and tables are there")
