"""`headrace dlq show`: letters as they are, decoded as far as they go, and their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.dlq_filters import filters
from headrace.cli.options import config_options, require_topics
from headrace.cli.when import utc
from headrace.config import load
from headrace.words import counted, printable

if TYPE_CHECKING:
    from consumers.dlq.letters import Letter, Wanted
    from ingest.streams import Stream

__all__ = ["show"]

# What is shown of a value as hexadecimal.
_MOST_BYTES = 64 * 1024
# What is shown of one field.
_MOST_TEXT = 300


@click.command()
@click.argument("stream_name", metavar="STREAM")
@filters
@click.option(
    "--limit", type=click.IntRange(1), default=5, show_default=True, help="Show so many at most."
)
@click.option("--hex", "as_hex", is_flag=True, help="Also the value's bytes.")
@config_options
def show(
    stream_name: str,
    wanted: Wanted,
    limit: int,
    as_hex: bool,
    config_path: Path | None,
    kafka: str | None,
) -> None:
    """Show dead letters of STREAM: where each came from, why it did not land, what is in it.

    The value is decoded field by field, as far as that goes; where it ends the field is named, and
    the byte. What decodes and was refused all the same has its reason above.

    \b
    Examples:
      headrace dlq show device_state --at 0:1234 --hex
      headrace dlq show device_state --reason 'not UTF-8' --limit 20
    """
    from consumers.dlq.letters import Letters

    config = load(config_path, kafka=kafka)
    stream = config.stream(stream_name)
    require_topics(config, [stream])
    letters = Letters(config.kafka, stream)
    shown = 0
    for letter in islice(letters.open(wanted), limit):
        if shown:
            click.echo()
        for line in _lines(letter, stream, as_hex=as_hex):
            click.echo(line)
        shown += 1
    if not shown:
        click.echo("no such dead letters; `headrace dlq ls` lists those there are", err=True)


def _lines(letter: Letter, stream: Stream, *, as_hex: bool) -> Iterator[str]:
    from consumers.dlq.wire import Broken, walk

    published, attempted = (
        utc(ms * 1000, "milliseconds") for ms in (letter.origin.timestamp_ms, letter.attempted_ms)
    )
    yield f"{stream.topic} {letter.origin}, published {published}"
    by = f" by {letter.destination}" if letter.destination else ""
    yield printable(f"  {letter.kind}{by}, {attempted}: {letter.reason}")
    if letter.redriven:
        yield f"  redriven before: {letter.redriven:,}"
    yield f"  key      {'none' if letter.key is None else _text(letter.key)}"
    for name, value in letter.headers:
        yield f"  header   {printable(name)}: {'none' if value is None else _text(value)}"
    if letter.value is None:
        yield "  value    none (a tombstone)"
        return
    yield f"  value    {counted(len(letter.value), 'byte')} of {stream.descriptor.full_name}"
    try:
        for field in walk(letter.value, stream.descriptor):
            cut = "…" if len(field.value) > _MOST_TEXT else ""
            yield f"    {field.path}: {field.value[:_MOST_TEXT]}{cut}"
    except Broken as broken:
        yield f"    ✗ {broken}"
    if as_hex:
        yield from (f"  {line}" for line in _hex(letter.value))


def _hex(value: bytes) -> Iterator[str]:
    """As xxd has it."""
    for at in range(0, min(len(value), _MOST_BYTES), 16):
        row = value[at : at + 16]
        pairs = " ".join(row[i : i + 2].hex() for i in range(0, len(row), 2))
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{at:08x}: {pairs:39}  {text}"
    if len(value) > _MOST_BYTES:
        yield f"and {counted(len(value) - _MOST_BYTES, 'byte')} more"


def _text(value: bytes) -> str:
    """As text where it is text."""
    try:
        return printable(value.decode())
    except UnicodeDecodeError:
        return repr(value)
