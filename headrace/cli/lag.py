"""`headrace lag`: how far behind each destination is, and whether somebody reads."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.options import (
    config_options,
    group_option,
    require_topics,
    stream_option,
    streams_of,
)
from headrace.cli.places import places
from headrace.cli.typed import as_given
from headrace.config import Config, ConfigError, load
from headrace.words import counted, lasting, printable
from ingest.topics import TopicError

if TYPE_CHECKING:
    from rich.text import Text

    from headrace.readers import Standing

__all__ = ["lag"]

_EVERY_S = 2.0
# In a note, where the streams of a command will stand.
_STREAMS = " --stream …"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the answer."""

    destination: str
    stream: str
    replay: str | None
    # None for all of them: position and end are sums then.
    partition: int | None
    position: int | None = None
    end: int | None = None
    behind: int | None = None
    # By when it was published.
    oldest_s: float | None = None
    members: int | None = None
    # What a person has to know, and do.
    note: str | None = None


@click.command()
@click.option(
    "--to", multiple=True, metavar="URL|VENDOR",
    help="A database, as for `headrace insert`, or a vendor of [vendors.NAME]; several times. "
    "[default: postgres and chdb where there are such, and all vendors]",
)  # fmt: skip
@stream_option
@click.option("--partitions", is_flag=True, help="A line for each partition.")
@group_option
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each line of the table.")
@click.option("--watch", is_flag=True, help="Look again every 2 s, until Ctrl-C.")
@config_options
def lag(
    to: tuple[str, ...],
    stream_names: tuple[str, ...],
    partitions: bool,
    group: str | None,
    as_json: bool,
    watch: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Show how far behind each database, vendor and open replay is, and whether somebody reads.

    A line for each destination and stream. Position is the offset to read next, and behind how many
    there are from it to the end; transaction markers count, so they are a few more than records.
    Without --partitions both are sums. Oldest is how long ago the first record that waits was
    published, by Kafka's timestamp: the one by which retention removes it.

    PostgreSQL is asked where it is. ClickHouse's and vendors' positions are those of their consumer
    groups in Kafka, so they are known also while these are away. A stream that a destination has
    never begun with has no line, unless --stream names it.

    \b
    The exit code is
      0   all could be asked, however far behind it is
      1   something could not; its line says why
      2   a wrong call

    \b
    Examples:
      headrace lag
      headrace lag --to postgres --stream device_state --partitions
      headrace lag --watch
      headrace lag --json | jq -c 'select(.behind > 0)'
    """
    config = load(config_path, kafka=kafka)
    streams = streams_of(config, stream_names)
    where = places(config, to)
    if not where:
        raise ConfigError(
            "there is no local stack, no HEADRACE_POSTGRES, no HEADRACE_CHDB, no vendor: say --to "
            "URL"
        )
    if stream_names:
        require_topics(config, streams)

    def once() -> bool:
        from headrace.readers import standings

        found = list(standings(config, where, streams, group, only=bool(to)))
        if watch and sys.stdout.isatty() and not as_json:
            click.clear()
        shown = [one for one in found if one.begun or one.problem or stream_names]
        rows = [row for one in shown for row in _rows(config, one, partitions)]
        if rows or as_json:
            _show(rows, as_json, len(config.streams))
        else:
            _tell_nobody(found)
        if not as_json:
            _tell_unbegun([one for one in found if one not in shown])
        return all(one.problem is None for one in found)

    known = _again(once) if watch else once()
    sys.exit(0 if known else 1)


def _again(once: Callable[[], bool]) -> bool:
    """Until Ctrl-C; whether all could be asked the last time."""
    from consumers.errors import Unavailable

    known = False
    try:
        while True:
            try:
                known = once()
            except (TopicError, Unavailable) as away:
                known = False
                click.echo(f"headrace: trying again: {printable(str(away))}", err=True)
            time.sleep(_EVERY_S)
    except KeyboardInterrupt:
        return known


def _rows(config: Config, one: Standing, partitions: bool) -> Iterator[Row]:
    reader = one.reader
    replay = None if reader.job is None else reader.job.id
    if one.problem is not None:
        yield Row(reader.to, reader.stream.name, replay, None, note=one.problem)
        return
    parts = [[part] for part in one.partitions] if partitions else [list(one.partitions)]
    for some in parts:
        oldest = min((part.oldest_ms for part in some if part.oldest_ms), default=None)
        yield Row(
            reader.to,
            reader.stream.name,
            replay,
            some[0].partition.number if partitions else None,
            sum(part.position or 0 for part in some) if one.begun else None,
            sum(part.there.end for part in some),
            sum(part.behind for part in some),
            None if oldest is None else max(0.0, round(time.time() - oldest / 1000, 1)),
            one.members,
            _note(config, one, sum(part.lost for part in some), sum(part.beyond for part in some)),
        )


def _note(config: Config, one: Standing, lost: int, beyond: int) -> str | None:
    from headrace.cli.replay_run import share_done
    from headrace.readers import removed

    notes = []
    job = one.reader.job
    if job is not None:
        notes.append(f"{job.state}, {share_done(config, job):.0%} done")
    if lost:
        notes.append(removed(lost))
    if beyond:
        read = counted(beyond, "offset was", "offsets were")
        notes.append(f"{read} read that Kafka has lost since")
    if not one.members and not lost:
        among = "" if one.begun else one.reader.among
        notes.append(f"nobody{among} reads, type: {as_given(one.reader.start)}")
    return "; ".join(notes) or None


def _show(rows: Sequence[Row], as_json: bool, every: int = 0) -> None:
    """`every` is how many streams there are: a command for all of them names none."""
    if as_json:
        for row in rows:
            click.echo(json.dumps(asdict(row)))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown.add_column("destination", overflow="fold")
    shown.add_column("stream", no_wrap=True)
    of_one = any(row.partition is not None for row in rows)
    if of_one:
        shown.add_column("partition", justify="right", no_wrap=True)
    for heading in ("position", "end", "behind", "oldest"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for row in rows:
        shown.add_row(
            # As Text, for in a string [fe80::1] would be markup.
            Text(printable(_name(row))),
            Text(printable(row.stream)),
            *([_number(row.partition)] if of_one else []),
            *map(_number, (row.position, row.end, row.behind)),
            "" if row.oldest_s is None else lasting(row.oldest_s),
            _reads(row.members),
        )
    out = Console(highlight=False)
    # A file has no width.
    (out if out.is_terminal else Console(width=200, highlight=False)).print(shown)
    # Below, and not in the table, where a command could not be copied from. What is the same of
    # several streams is said once, and one command starts a process for all of them.
    notes: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row.note:
            alike = row.note.replace(f" --stream {row.stream}", _STREAMS)
            notes.setdefault((_name(row), alike), {})[row.stream] = None
    if notes:
        click.echo()
    for (name, note), streams in notes.items():
        some = "" if len(streams) == every else "".join(f" --stream {one}" for one in streams)
        click.echo(printable(f"{name}, {', '.join(streams)}: {note.replace(_STREAMS, some)}"))


def _name(row: Row) -> str:
    return row.destination if row.replay is None else f"replay {row.replay} to {row.destination}"


def _reads(members: int | None) -> Text:
    from rich.text import Text

    if members is None:
        return Text("can't be asked", "bold red")
    if not members:
        return Text("nobody reads", "yellow")
    return Text(counted(members, "process reads", "processes read"))


def _tell_nobody(found: Sequence[Standing]) -> None:
    from headrace.readers import in_groups

    groups = [one.reader.groups[0] for one in found if one.reader.by_group]
    among = in_groups(groups) if groups else ""
    vendors = all(one.reader.of_vendor for one in found)
    begin = as_given("headrace forward" if found and vendors else "headrace insert --to …")
    text = f"nobody{among} reads any of this, nor has for a week: begin with `{begin}`"
    click.echo(printable(text))


def _tell_unbegun(idle: Sequence[Standing]) -> None:
    """Of each destination what it would find in Kafka, had somebody begun with it."""
    streams: dict[tuple[str, str], list[str]] = {}
    for one in idle:
        if one.behind and one.reader.of_vendor:
            begin = as_given(one.reader.start)
            click.echo(printable(
                f"{one.reader.name}: nobody has begun with {one.reader.stream.name}, or not for a "
                f"week, and there are records: `{begin}` sends those that it has not accepted yet"
            ))  # fmt: skip
        elif one.behind:
            at = (one.reader.name, one.reader.among)
            streams.setdefault(at, []).append(one.reader.stream.name)
    for (name, among), some in streams.items():
        what = f"{', '.join(some)}, of which there are records"
        click.echo(printable(f"{name}: nobody{among} has begun with {what}"))


def _number(n: int | None) -> str:
    return "" if n is None else f"{n:,}"
