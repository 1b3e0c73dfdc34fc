"""`headrace forward`: raw events to the analytics vendors, with a receipt for each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli import signals
from headrace.cli.options import config_options
from headrace.cli.replay_raw import named
from headrace.config import Config, ConfigError, load
from headrace.words import counted, printable

if TYPE_CHECKING:
    from consumers.lanes import Totals

__all__ = ["done", "forward", "prepare"]


@click.command()
@click.option(
    "--vendor",
    "chosen",
    multiple=True,
    metavar="NAME",
    help="A vendor of [vendors.NAME]; may be given several times. Without it, all there are.",
)
@click.option("--drain", is_flag=True, help="End when all that was in Kafka at the start is final.")
@click.option(
    "--skip-lost",
    is_flag=True,
    help="Go on behind events that Kafka's retention removed before they were sent.",
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve /metrics, /healthz and /readyz here, e.g. 127.0.0.1:9465. [default: off]",
)
@config_options
def forward(
    chosen: tuple[str, ...],
    drain: bool,
    skip_lost: bool,
    metrics: str | None,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Send product events to the vendors that headrace.toml configures and [trace] allows.

    Each vendor has a consumer group and a loop of its own: one that is away, slow or refuses our
    key holds up no other. An event is done once its answer is final and a receipt for it is in the
    stream receipts: accepted, rejected, dropped or expired, with the reason. Killing this process
    at any moment loses no event; what was under way is sent again under the vendor's own key.

    A vendor that was away for longer than its outage_s gets fresh events first. What it missed is a
    replay, which this process runs beside them; `headrace replay ls` shows it.

    Start as many as there are partitions; they share the work. SIGTERM and Ctrl-C finish what is
    under way and leave within 10 seconds. The exit code is 0 after --drain or a signal, 1 when a
    person has to act for one of the vendors; the message says how.

    \b
    Examples:
      headrace forward
      headrace forward --vendor amplitude --vendor ga4 --drain
    """
    prepare()
    from consumers.deadletters import DeadLetters
    from consumers.fetch import calm_gc
    from consumers.forward.host import Host
    from consumers.health import Starting, serve
    from consumers.preflight import check_topics, waited_for
    from consumers.replay.beside import beside
    from consumers.replay.jobs import Jobs
    from consumers.replay.outage import Board
    from headrace.sentry import attach

    config = load(config_path, kafka=kafka)
    attach(config.sentry_dsn)
    names = _wanted(config, chosen)
    starting = Starting()
    with serve(metrics, starting):
        check_topics(config.kafka, [config.stream("raw_events"), config.stream("receipts")])
        jobs = waited_for(lambda: Jobs(config.kafka))
        letters, board, raw = DeadLetters(config.kafka, "forward"), Board(jobs), named(config)
        starting.loop = host = Host(
            {
                name: beside(
                    config.kafka, config.streams, config.trace, config.vendors[name], letters, jobs,
                    board, skip_lost=skip_lost, raw_url=raw,
                )
                for name in names
            }
        )  # fmt: skip
        calm_gc()
        signals.stop_by(host.stop)
        with board.following():
            host.run(drain=drain)
    signals.no_more()
    for name, totals in host.totals.items():
        click.echo(f"{name}: {done(totals)}")
    for name, why in host.failed.items():
        click.echo(f"headrace: {name}: {printable(str(why))}", err=True)
    sys.exit(1 if host.failed else 0)


def done(totals: Totals) -> str:
    """What one vendor's loop has done, for people."""
    final = f"{counted(totals.rows, 'event is', 'events are')} final"
    if not totals.dead_letters:
        return final
    return f"{final}, {counted(totals.dead_letters, 'dead letter')}: headrace dlq ls raw_events"


def _wanted(config: Config, chosen: Sequence[str]) -> list[str]:
    """The vendors to host. Raises ConfigError for what is missing."""
    from consumers.forward.live import allowed

    if not config.vendors:
        raise ConfigError(
            "no vendor is configured: add a section such as [vendors.amplitude] with api_key_env "
            "to headrace.toml; see docs/forwarding.md"
        )
    for name in chosen:
        if name not in config.vendors:
            raise ConfigError(
                f"--vendor {name}: there is no [vendors.{name}]; there are: "
                f"{', '.join(config.vendors)}"
            )
    names = list(dict.fromkeys(chosen)) or list(config.vendors)
    shut = [name for name in names if not allowed(config.trace, name)]
    if shut and (chosen or len(shut) == len(names)):
        raise ConfigError(
            f"[trace] lets no event leave for {', '.join(shut)}, so there is nothing to send: list "
            "events under [trace.events]; `headrace trace suggest` proposes some"
        )
    for name in shut:
        click.echo(f"headrace: [trace] lets no event leave for {name}: not started", err=True)
    return [name for name in names if name not in shut]


def prepare() -> None:
    """What sending to vendors needs, so that its absence is said at once; logs and signals."""
    import httpx  # noqa: F401 - see above
    import msgspec  # noqa: F401 - see above
    import uvloop  # noqa: F401 - see above

    from headrace.logs import configure

    configure()
    signals.end_at_once()
