"""The commands that mend what `headrace audit` has found, to be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from headrace.cli.audit_show import moment
from headrace.config import Config
from headrace.words import without_password
from ingest.units import HOUR_MS

if TYPE_CHECKING:
    from consumers.batch import Partition
    from consumers.ledger.audit import Line

    Place = tuple[Partition, int]

__all__ = ["explains", "repairs", "runs_of"]


def repairs(
    config: Config, urls: Mapping[str, str | None], against: str | None, lines: Sequence[Line]
) -> Iterator[str]:
    """In the order in which to run them; `urls` of databases by their names, None for vendors.

    `against` is the file of a vendor's export. Raises Unavailable.
    """
    from consumers.destinations import destination

    for line in lines:
        url = urls[line.destination]
        for removal in dict.fromkeys(one.removal for one in line.findings if one.removal):
            if url is not None and destination(url).kind == "postgres":
                yield f"psql {shlex.quote(without_password(url))} -c {shlex.quote(removal)}"
            else:
                yield f"in {line.destination}: {_in_hex(removal)}"
    places: dict[tuple[str, str], dict[int, list[Place]]] = {}
    for line in lines:
        for one in line.findings:
            # What is missing, and what a replay sees is there too often.
            if one.place is not None and not one.removal:
                hours = places.setdefault((line.destination, line.stream), {})
                hours.setdefault(line.hour, []).append(one.place)
    for (name, stream), hours in sorted(places.items()):
        what = "--only-missing" if urls[name] is None else f"--stream {stream}"
        if against:
            what += f" --against {shlex.quote(against)}"
        for run in runs_of(hours):
            found = [place for hour in run for place in hours[hour]]
            when = _when(config, run[0], run[-1] + 1, found)
            yield f"headrace replay --to {shlex.quote(name)} {what} {when}"


def explains(lines: Sequence[Line]) -> Iterator[str]:
    """What names the records of the lines that do not add up, and prints what mends it."""
    places: dict[tuple[str, str], list[int]] = {}
    for line in lines:
        # What a vendor's export lacks is named already, and its receipts lack nothing.
        if not (line.holds or line.findings):
            places.setdefault((line.destination, line.stream), []).append(line.hour)
    for (name, stream), hours in sorted(places.items()):
        when = f"--from {moment(min(hours))} --until {moment(max(hours) + 1)}"
        yield f"headrace audit --explain --to {shlex.quote(name)} --stream {stream} {when}"


def _in_hex(statement: str) -> str:
    """The same to ClickHouse, on one line: what can't be printed is in its literals, of keys."""
    return "".join(
        c if c.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in c.encode(errors="surrogateescape"))
        for c in statement
    )  # fmt: skip


def runs_of(hours: Iterable[int]) -> Iterator[list[int]]:
    """Hours that follow each other, together."""
    run: list[int] = []
    for hour in sorted(hours):
        if run and hour != run[-1] + 1:
            yield run
            run = []
        run.append(hour)
    if run:
        yield run


def _when(config: Config, begin: int, end: int, places: Sequence[Place]) -> str:
    """The options of a replay that reads these records, of the hours [begin, end).

    It looks where records were published from its beginning on, until its lateness behind its end.
    """
    first, last = _published(config, places) or (begin, begin)
    late = last - end + 2
    more = f" --lateness {late}h" if late > 1 else ""
    return f"--from {moment(min(begin, first))} --until {moment(end)}{more}"


def _published(config: Config, places: Sequence[Place]) -> tuple[int, int] | None:
    """In which hours the first and the last of these were; None if they have just expired."""
    from consumers.batch import Span
    from consumers.client import read_span

    hours = []
    for partition in {partition for partition, _ in places}:
        offsets = [offset for p, offset in places if p == partition]
        for at in {min(offsets), max(offsets)}:
            for message in read_span(config.kafka, partition, Span(at, at + 1)):
                hours.append(message.timestamp()[1] // HOUR_MS)
    return (min(hours), max(hours)) if hours else None
