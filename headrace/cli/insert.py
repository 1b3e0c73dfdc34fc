"""`headrace insert`: land streams in a database, exactly once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from headrace.cli import signals
from headrace.cli.options import config_options, destination_url, stream_option, streams_of
from headrace.config import load
from headrace.words import counted

__all__ = ["insert"]


@click.command()
@click.option("--to", required=True, metavar="URL", help="Where to, as above.")
@stream_option
@click.option("--drain", is_flag=True, help="End when all that was in Kafka at the start is in.")
@click.option(
    "--group",
    metavar="NAME",
    help="Consumer group. Processes with the same one share the partitions. "
    "[default: headrace-insert-KIND:WHERE, one for each database]",
)
@click.option("--max-rows", type=click.IntRange(1), help="A batch closes at this many records.")
@click.option("--max-bytes", type=click.IntRange(1024), help="… at this many bytes, decoded.")
@click.option("--max-age", type=click.FloatRange(0.01), metavar="SECONDS", help="… at this age.")
@click.option(
    "--lanes", type=click.IntRange(1, 16), help="Connections that write at the same time."
)
@click.option(
    "--max-dead-share",
    type=click.FloatRange(0, 1),
    help="Stop when more than this share of records would be dead letters. [default: 0.1]",
)
@click.option(
    "--skip-lost",
    is_flag=True,
    help="Go on behind records that Kafka's retention removed before they landed.",
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve /metrics, /healthz and /readyz here, e.g. 127.0.0.1:9464. [default: off]",
)
@config_options
def insert(
    to: str,
    stream_names: tuple[str, ...],
    drain: bool,
    group: str | None,
    max_rows: int | None,
    max_bytes: int | None,
    max_age: float | None,
    lanes: int | None,
    max_dead_share: float | None,
    skip_lost: bool,
    metrics: str | None,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Land streams in PostgreSQL, TimescaleDB or ClickHouse, each record exactly once.

    \b
    URL is one of
      postgres://user:password@host:5432/database      PostgreSQL, TimescaleDB
      clickhouse://user:password@host:8123/database    ClickHouse over HTTP (clickhouses:// TLS)
      chdb:DIRECTORY                                   ClickHouse's engine in this process
      postgres, chdb                                   those of the local stack, or what
                                                       HEADRACE_POSTGRES, HEADRACE_CHDB say

    Rows and positions are committed together: killing this process at any moment neither loses nor
    doubles a row. Start as many as there are partitions; they share the work and take over from
    each other. While the database is away the process waits, without growing, and goes on by
    itself. A record that can't land goes to TOPIC.dlq, alone, with the reason.

    SIGTERM and Ctrl-C finish the batch under way and leave within 10 seconds. The exit code is 0
    after --drain or a signal, 1 when a person has to act; the message says how.

    \b
    Examples:
      headrace insert --to postgres --stream device_state
      headrace insert --to clickhouse://default@ch1:8123/logs --drain
    """
    from dataclasses import replace

    from consumers.deadletters import DeadLetters
    from consumers.destinations import asked_itself, destination, inserter_group
    from consumers.fetch import calm_gc
    from consumers.group import GroupSource
    from consumers.health import Starting, serve
    from consumers.preflight import check_topics
    from consumers.run import Runner
    from headrace.logs import configure

    configure()
    signals.end_at_once()
    config = load(config_path, kafka=kafka)
    streams = streams_of(config, stream_names)
    target = destination(destination_url(config, to))
    overrides: dict[str, Any] = {
        "max_rows": max_rows,
        "max_bytes": max_bytes,
        "max_age_s": max_age,
        "lanes": lanes,
        "max_dead_share": max_dead_share,
    }
    limits = replace(target.limits, **{k: v for k, v in overrides.items() if v is not None})
    starting = Starting()
    with serve(metrics, starting):
        check_topics(config.kafka, streams)
        starting.loop = runner = Runner(
            lambda listener: GroupSource(
                config.kafka,
                group or inserter_group(target),
                [stream.topic for stream in streams],
                listener,
            ),
            DeadLetters(config.kafka, target.kind),
            streams,
            lambda log: target.open(streams, log),
            destination=target.kind,
            limits=limits,
            skip_lost=skip_lost,
            landed=asked_itself(target, config.kafka, streams),
        )
        calm_gc()
        signals.stop_by(runner.stop)
        totals = runner.run(drain=drain)
    signals.no_more()
    dead = f", {counted(totals.dead_letters, 'dead letter')}" if totals.dead_letters else ""
    batches = counted(totals.batches, "batch", "batches")
    click.echo(f"landed {counted(totals.rows, 'row')} in {batches}{dead}")
    sys.exit(0)
