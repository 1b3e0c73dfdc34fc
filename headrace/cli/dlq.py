"""`headrace dlq`: dead letters, what there is, what is in one, sending them back, removing them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.dlq_filters import filters
from headrace.cli.dlq_send import purge, redrive
from headrace.cli.dlq_show import show
from headrace.cli.options import config_options, streams_of
from headrace.cli.typed import as_given
from headrace.cli.when import rfc3339, utc
from headrace.config import Config, load
from headrace.words import counted, json_line, printable

if TYPE_CHECKING:
    from consumers.dlq.letters import Letter, Wanted
    from ingest.streams import Stream

__all__ = ["dlq"]

# Lines of one stream. A trigger of the user's may name each record in a way through which
# `class_of` does not see, and then each is a line.
_MOST_LINES = 50


@click.group()
def dlq() -> None:
    """Look after dead letters: the records that could not land, whole and with the reason.

    Each stream's are in a topic of their own, TOPIC.dlq. See docs/dead-letters.md.

    \b
    Examples:
      headrace dlq ls
      headrace dlq show device_state --at 0:1234 --hex
      headrace dlq redrive device_state --reason undecodable --dry-run
    """


dlq.add_command(show)
dlq.add_command(redrive)
dlq.add_command(purge)


@dataclass(slots=True)
class Group:
    """Records of one stream that could not land for one reason, whatever the values in it."""

    stream: str
    kind: str
    reason: str
    destinations: list[str]
    records: int
    # How many of them had been redriven before.
    again: int
    first_ms: int
    last_ms: int
    # One of them, PARTITION:OFFSET.
    example: str

    def add(self, letter: Letter) -> None:
        from consumers.dlq.letters import class_of

        self.records += 1
        self.again += bool(letter.redriven)
        self.first_ms = min(self.first_ms, letter.attempted_ms)
        self.last_ms = max(self.last_ms, letter.attempted_ms)
        if letter.destination not in self.destinations:
            self.destinations.append(letter.destination)
        if letter.reason != self.reason:
            self.reason = class_of(self.reason)

    def document(self) -> dict[str, Any]:
        known = asdict(self)
        return known | {
            name: rfc3339(known.pop(f"{name}_ms") * 1000, "milliseconds")
            for name in ("first", "last")
        }


@dlq.command()
@click.argument("stream_names", metavar="[STREAM]...", nargs=-1)
@filters
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each line of the table.")
@config_options
def ls(
    stream_names: tuple[str, ...],
    wanted: Wanted,
    as_json: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """List dead letters by stream and reason: how many records, since when, and an example.

    Reasons that differ only in their values are one line. A record counts once, however many
    destinations have refused it; AGAIN is how many of them had been redriven before. What was
    redriven and landed is not listed. Of each stream the 50 most frequent reasons are shown; --json
    has all.

    \b
    Examples:
      headrace dlq ls
      headrace dlq ls device_state --from -1h --reason undecodable
    """
    from consumers.deadletters import KINDS

    config = load(config_path, kafka=kafka)
    found = list(_groups(config, streams_of(config, stream_names), wanted))
    if as_json:
        for group in found:
            click.echo(json_line(group.document()))
        return
    if not found:
        click.echo("no dead letters")
        return
    shown = {name: list(groups) for name, groups in groupby(found, key=lambda group: group.stream)}
    _table([group for groups in shown.values() for group in groups[:_MOST_LINES]])
    for name, groups in shown.items():
        if rest := groups[_MOST_LINES:]:
            records = counted(sum(group.records for group in rest), "record")
            others = counted(len(rest), "other reason")
            click.echo(f"and {records} of {name} for {others}; --json has all of them")
    most = max(found, key=lambda group: group.records)
    name, at = most.stream, f"--at {most.example}"
    look, redrive_it = f"headrace dlq show {name}", f"headrace dlq redrive {name}"
    click.echo(f"\nlook at one:            {as_given(f'{look} {at} --hex')}")
    click.echo(f"the cause is mended:    {as_given(f'{redrive_it} {at}    # one first')}")
    # An empty one would mean all there are, and any but ours is what a stranger chose.
    reason = _to_be_typed(most.reason) or (most.kind if most.kind in KINDS else "")
    if reason:
        # Behind what is added: it may look like the remark, or the option, that is looked for.
        click.echo(f"                        {as_given(redrive_it)} --reason {quote(reason)}")


def _groups(config: Config, streams: list[Stream], wanted: Wanted) -> Iterator[Group]:
    from consumers.dlq.letters import Letters, class_of
    from ingest.topics import topic_ids

    there = topic_ids(config.kafka, [stream.dlq for stream in streams])
    for stream in streams:
        if stream.dlq not in there:
            continue
        groups: dict[tuple[str, str], Group] = {}
        letters = Letters(config.kafka, stream)
        for letter in letters.open(wanted):
            key = (letter.kind, class_of(letter.reason))
            if key not in groups:
                groups[key] = Group(
                    stream.name, letter.kind, letter.reason, [], 0, 0,
                    letter.attempted_ms, letter.attempted_ms, str(letter.origin),
                )  # fmt: skip
            groups[key].add(letter)
        if letters.foreign:
            one = f"record of {stream.dlq} is no dead letter of {stream.topic} and is left out"
            many = f"records of {stream.dlq} are no dead letters of {stream.topic} and are left out"
            click.echo(f"headrace: {counted(letters.foreign, one, many)}", err=True)
        yield from sorted(groups.values(), key=lambda group: -group.records)


def _to_be_typed(reason: str) -> str:
    """What to give as --reason: all of it, or its longest part that a shell's prompt takes.

    A part of what it is without values: one that ended within a value would mean no reason at all.
    """
    from consumers.dlq.letters import class_of

    known = reason if reason.isprintable() else class_of(reason)
    parts = "".join(c if c.isprintable() else "\n" for c in known).split("\n")
    return max(parts, key=len)


def _table(groups: list[Group]) -> None:
    rows = [("STREAM", "KIND", "RECORDS", "AGAIN", "FIRST", "LAST", "EXAMPLE", "REASON")]
    for g in groups:
        by = f" ({', '.join(sorted(filter(None, g.destinations)))})".replace(" ()", "")
        rows.append(
            (g.stream, printable(g.kind), f"{g.records:,}", f"{g.again:,}" if g.again else "",
             utc(g.first_ms * 1000), utc(g.last_ms * 1000), g.example, printable(g.reason + by))
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if i in (2, 3) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
