"""`headrace dlq redrive` and `purge`: letters back to where they came from, or gone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.dlq_filters import filters
from headrace.cli.options import config_options, require_topics
from headrace.cli.when import TIME
from headrace.config import load
from headrace.words import counted, printable

if TYPE_CHECKING:
    from consumers.dlq.letters import Wanted
    from consumers.dlq.redrive import Outcome
    from ingest.streams import Stream

__all__ = ["purge", "redrive"]


@click.command()
@click.argument("stream_name", metavar="STREAM")
@filters
@click.option(
    "--through", metavar="EDIT",
    help="'python module:function', or a command: what makes of each value the one to send.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be sent and what would stay.")
@config_options
def redrive(
    stream_name: str,
    wanted: Wanted,
    through: str | None,
    dry_run: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Send dead letters of STREAM back to the topic that they came from, each exactly once.

    Whoever reads the topic gets them as new records: every destination, also one that had taken the
    record before. Killing the command at any moment neither loses nor doubles one; the same command
    goes on. A second redrive of the same stream stops the first. What can't be decoded as things
    are stays a dead letter, and is not sent. A record that fails once more comes back as another
    letter, which `headrace dlq ls` counts under AGAIN.

    --through edits on the way. A function gets the value's bytes and returns the new bytes, or None
    to leave the letter. A command is run by the shell for each letter, with the value on standard
    input and the new one on standard output; another exit code than 0 leaves the letter. If
    anything goes wrong with one it stays, the others go, and the exit code is 1.

    \b
    Examples:
      headrace dlq redrive device_state --at 0:1234
      headrace dlq redrive device_state --reason undecodable --from -2h --dry-run
      headrace dlq redrive device_state --through 'python mend:without_nul'
      headrace dlq redrive device_state --through './mend --from-v1'
    """
    from consumers.dlq.edit import edit_of
    from consumers.dlq.letters import Letters
    from consumers.dlq.redrive import Exchange
    from consumers.dlq.redrive import redrive as run

    config = load(config_path, kafka=kafka)
    stream = config.stream(stream_name)
    require_topics(config, [stream])
    edit = edit_of(through) if through else None
    # Before the letters are read: see consumers/dlq/redrive.py.
    send = (lambda _pairs: None) if dry_run else Exchange(config.kafka, stream, through).send
    try:
        outcome = run(Letters(config.kafka, stream), stream, wanted, edit, send)
    except KeyboardInterrupt:
        click.echo("stopped; what was sent is settled, and the same command goes on", err=True)
        sys.exit(130)
    _report(stream, outcome, dry_run=dry_run)
    sys.exit(1 if outcome.failed else 0)


def _report(stream: Stream, outcome: Outcome, *, dry_run: bool) -> None:
    did = "would redrive" if dry_run else "redrove"
    click.echo(f"{did} {counted(outcome.sent, 'record')} to {stream.topic}")
    if outcome.rejected:
        click.echo(
            f"{counted(outcome.rejected, 'record')} had been rejected by a "
            "destination; another one that has them gets them a second time",
            err=True,
        )
    for stay in sorted(outcome.stay.values(), key=lambda stay: -stay.count):
        reason = printable(stay.reason)
        click.echo(f"left {stay.count:,}, such as {stay.example}: {reason}", err=True)
    if not outcome.sent and not outcome.stay:
        click.echo("no such dead letters; `headrace dlq ls` lists those there are", err=True)


@click.command()
@click.argument("stream_name", metavar="STREAM")
@click.option("--until", "end_us", type=TIME, metavar="TIME", help="Only those of before.")
@click.option("--yes", is_flag=True, help="Without asking.")
@config_options
def purge(
    stream_name: str, end_us: int | None, yes: bool, config_path: Path | None, kafka: str | None
) -> None:
    """Remove the dead letters of STREAM for good; asks before it does.

    Kafka removes only from the beginning of a log, so --until is the one filter there is, and
    without it all go. To keep some, redrive them first.

    \b
    Examples:
      headrace dlq purge device_state --until -7d
      headrace dlq purge device_state --yes
    """
    from consumers.dlq.letters import Letters
    from consumers.dlq.purge import cut, remove

    config = load(config_path, kafka=kafka)
    stream = config.stream(stream_name)
    require_topics(config, [stream])
    found = cut(Letters(config.kafka, stream), end_us)
    if not found.letters:
        click.echo("nothing to remove")
        return
    open_ = counted(len(found.open), "record")
    what = f"{counted(found.letters, 'letter')} of {stream.dlq}, {open_} not redriven"
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"this would remove {what}; add --yes")
        click.confirm(f"Remove {what}?", abort=True)
    remove(config.kafka, stream, found)
    click.echo(f"removed {what}")
