"""`headrace spool`: what is in a spool, whether it is sound, writing it out, sending it."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.options import config_options
from headrace.cli.when import utc
from headrace.words import counted, lasting, printable

if TYPE_CHECKING:
    from headrace.config import Config
    from ingest.spool.care import Overview

__all__ = ["spool"]

_DIR = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@click.group()
def spool() -> None:
    """Look after a spool: the directory of a Publisher or collector that keeps what it accepted.

    A collector has one for each worker in the directory that it was given: DIR/0, DIR/1, and so on.

    \b
    Example:
      headrace spool ls /var/lib/headrace/spool/0
    """


@spool.command()
@_DIR
def ls(folder: Path) -> None:
    """Show what waits in the spool in DIR: by topic, since when, how much; and whose it is.

    A spool that is in use can be looked into too. Of a collector's directory all are shown.

    \b
    Examples:
      headrace spool ls /var/lib/headrace/spool
      headrace spool ls /var/lib/headrace/spool/0
    """
    from ingest.spool.care import look, of_workers
    from ingest.spool.errors import SpoolError

    spools = of_workers(folder)
    if not spools:
        sys.exit(_show(look(folder)))
    code = 0
    for one in spools:
        click.echo(printable(str(one)))
        try:
            code |= _show(look(one))
        except SpoolError as error:
            # The others are there all the same.
            click.echo(f"headrace: {error}", err=True)
            code = 1
    sys.exit(code)


def _show(found: Overview) -> int:
    """Print it; the exit code."""
    state = found.state
    use = f"in use by process {found.user}" if found.user is not None else "not in use"
    click.echo(f"node        {printable(state.node)}, since {utc(state.created_us)}, {use}")
    click.echo(f"position    {state.position:,}: all below is in Kafka; next is {state.next_seq:,}")
    waits = counted(found.records, "record")
    if (oldest := found.oldest_us) is not None:
        waits += f", the oldest since {utc(oldest)} ({_age(oldest)})"
    click.echo(f"waiting     {waits}")
    click.echo(f"bytes       {state.bytes:,} of records, {found.bytes_on_disk:,} on disk")
    for topic, line in sorted(found.topics.items()):
        click.echo(
            f"  {printable(topic)}: {counted(line.records, 'record')}, "
            f"{counted(line.bytes, 'byte')}, "
            f"{utc(line.oldest_us)} to {utc(line.newest_us)}"
        )
    if not found.damaged:
        return 0
    click.echo(f"damaged     {counted(found.damaged, 'record')}; see headrace spool fsck", err=True)
    return 1


@spool.command()
@_DIR
@click.option("--repair", "mend", is_flag=True, help="Set damaged records aside; keep the others.")
def fsck(folder: Path, mend: bool) -> None:
    """Verify the checksum of every record in DIR, and the file that holds them.

    With --repair what is damaged is written to DIR/damaged-TIME.ndjson (with the numbers of the
    records and what is left of their bytes) and taken out; nothing else is lost. Where the file
    itself is damaged it is kept as DIR/damaged-TIME.db and written anew. For that no other process
    may have it open, so stop the whole collector; and the disk needs room for three times as much.

    The exit code is 1 where something is damaged and was not repaired. The spool must not be in
    use.

    \b
    Examples:
      headrace spool fsck /var/lib/headrace/spool/0
      headrace spool fsck /var/lib/headrace/spool/0 --repair
    """
    from ingest.spool.care import fsck as check

    found = check(folder, mend=mend)
    if found.unopened:
        click.echo("the file can't be opened: its beginning or its end is damaged. --repair keeps "
                   "it, gives a copy a new beginning and saves what that holds")  # fmt: skip
    else:
        click.echo(counted(found.records, "record is sound", "records are sound"))
    for line in found.structure:
        click.echo(f"the file: {printable(line)}")
    for line in found.contradicted:
        click.echo(f"the table state: {printable(line)}")
    for damage in found.damaged:
        if damage.first > damage.last:
            click.echo(f"damaged: no record, but what belongs to those around {damage.first:,}")
        elif damage.first == damage.last:
            click.echo(f"damaged: record {damage.first:,}")
        else:
            click.echo(f"damaged: records {damage.first:,} to {damage.last:,}")
    for first, last in found.missing:
        which = f"record {first:,}" if first == last else f"records {first:,} to {last:,}"
        them, are = ("it", "it is") if first == last else ("them", "they are")
        click.echo(f"missing: {which}; an earlier repair has set {them} aside, or {are} lost")
    if found.ids_lost:
        click.echo("ids that were taken can't all be read: some may be taken a second time")
    for path in found.set_aside:
        click.echo(f"set aside: {path}")
    if not found.sound and not mend:
        sys.exit(1)


@spool.command()
@_DIR
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help="Where to; - is standard output. A file that is there is not overwritten.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["ndjson", "protobuf"]),
    default="ndjson",
    show_default=True,
    help="An object a line with key and value in base64, or bare values behind their lengths.",
)
@click.option("--topic", metavar="NAME", help="Only the records of this topic.")
def export(folder: Path, target: str, form: str, topic: str | None) -> None:
    """Write out what waits in DIR; the spool stays as it is, and must not be in use.

    FILE is on disk, synced, when this ends. To send what waits use `headrace spool drain`, which
    doubles nothing: records of a batch that was under way may be in Kafka already.

    \b
    Examples:
      headrace spool export /var/lib/headrace/spool/0 --to waiting.ndjson
      headrace spool export DIR --to states.bin --format protobuf --topic device_state
    """
    from ingest.spool import care
    from ingest.spool.errors import SpoolError
    from ingest.spool.store import sync

    if target == "-":
        out = sys.stdout.buffer
        written, damaged = care.export(folder, out, form=form, topic=topic)
    else:
        try:
            # For this user only, as the spool is.
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                try:
                    written, damaged = care.export(folder, file, form=form, topic=topic)
                    # Before anybody deletes the spool because of it.
                    file.flush()
                    os.fsync(file.fileno())
                    try:
                        sync(Path(target).resolve().parent)
                    except OSError as error:
                        # A share may have no such thing (SMB), or it is for writing only.
                        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
                            raise
                except BaseException:
                    # Half of it is no export, and the next try would not overwrite it.
                    Path(target).unlink()
                    raise
        except FileExistsError:
            raise SpoolError(f"{target} exists; name a file that does not") from None
        except OSError as error:
            raise SpoolError(f"{target} can't be written: {error.strerror}") from error
    click.echo(f"wrote {counted(written, 'record')}", err=True)
    if damaged:
        left_out = counted(damaged, "record is damaged and was", "records are damaged and were")
        click.echo(f"{left_out} left out", err=True)
        sys.exit(1)


@spool.command()
@_DIR
@config_options
def drain(folder: Path, config_path: Path | None, kafka: str | None) -> None:
    """Send what waits in DIR to Kafka, each record exactly once, and leave when all of it is there.

    For the spool of a node that is dead: bring its disk or a copy of its directory here. If that
    node still lives, it is fenced and sends nothing more. What it had sent is not sent again. Waits
    for Kafka as long as it takes; Ctrl-C leaves, and loses nothing.

    \b
    Example:
      headrace spool drain /mnt/dead-node/spool/0 --kafka kafka:9092
    """
    from headrace.config import load
    from headrace.logs import configure
    from ingest.spool.care import look
    from ingest.spool.errors import SpoolInUse
    from ingest.spool.lane import SpoolLane

    configure()
    config = load(config_path, kafka=kafka)
    found = look(folder)
    if found.user is not None:
        raise SpoolInUse(
            f"the spool {folder} is in use by process {found.user}, which sends it or looks into "
            "it. Stop that process first, or leave it alone"
        )
    _require_topics(config, list(found.topics))
    settings = {"message.max.bytes": 1_000_000, **config.kafka}
    lane = SpoolLane(folder, settings)
    try:
        lane.flush(None)
        position = lane.relay.position
    except KeyboardInterrupt:
        click.echo(f"left with up to {counted(lane.outstanding(), 'record')} waiting", err=True)
        sys.exit(130)
    finally:
        lane.abandon()
    click.echo(
        f"sent {counted(lane.relay.sent, 'record')}; all below {position:,} of node "
        f"{printable(lane.spool.node)} is in Kafka"
    )


def _require_topics(config: Config, topics: list[str]) -> None:
    """Say at once what would otherwise be tried again and again."""
    from headrace.config import ConfigError
    from ingest.topics import topic_ids

    missing = sorted(set(topics) - topic_ids(config.kafka, topics).keys()) if topics else []
    if missing:
        raise ConfigError(
            f"topic {', '.join(map(repr, missing))} does not exist on Kafka at "
            f"{config.kafka['bootstrap.servers']}; create it first, then drain again"
        )


def _age(at_us: int) -> str:
    return f"{lasting(time.time() - at_us / 1e6)} ago"
