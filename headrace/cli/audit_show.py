"""What `headrace audit` found, as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from headrace.words import counted, printable

if TYPE_CHECKING:
    from consumers.ledger.audit import Line

__all__ = ["document", "explained", "export_table", "moment", "runs", "table"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WHERE_JUDGED = "each accounted for once where it could be judged"
_NUMBERS = ("accepted", "landed", "dropped", "dead", "in flight")


def moment(hour: int) -> str:
    """An hour since 1970 as it is written everywhere else."""
    return f"{_EPOCH + timedelta(hours=hour):%Y-%m-%dT%H:%M:%SZ}"


class _OfHour(Protocol):
    @property
    def hour(self) -> int: ...


L = TypeVar("L", bound=_OfHour)


def runs(lines: Iterable[L], alike: Callable[[L], Hashable]) -> list[list[L]]:
    """Hours that follow each other and are `alike`, told together; those with None by themselves.

    A year is thousands of hours, among which the one that matters would be looked for.
    """
    found: list[list[L]] = []
    last: dict[Hashable, list[L]] = {}
    for line in lines:
        kind = alike(line)
        if kind is not None and kind in last and last[kind][-1].hour + 1 == line.hour:
            last[kind].append(line)
        else:
            last[kind] = [line]
            found.append(last[kind])
    return found


def table(lines: Sequence[Line], *, unjudged: bool = False) -> None:
    """Hours that add up as runs, each other one alone, and a sentence that says what it means.

    `unjudged` are other destinations, of which something else was said.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("from", no_wrap=True)
    shown.add_column("hours", justify="right", no_wrap=True)
    shown.add_column("stream", no_wrap=True)
    shown.add_column("destination", overflow="fold")
    for heading in _NUMBERS:
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for run in runs(lines, _alike):
        line = run[0]
        terms = ((x.accepted, x.landed, x.dropped, x.dead, x.in_flight) for x in run)
        numbers = map(sum, zip(*terms, strict=True))
        shown.add_row(
            # As Text, for in a string [fe80::1] would be markup.
            moment(line.hour)[:16], f"{len(run):,}", Text(line.stream),
            Text(printable(line.destination)),
            *(f"{n:,}" if n else Text("0", "dim") for n in numbers),
            Text(_verdict(line), _colour(line)),
        )  # fmt: skip
    if lines:
        out = Console()
        # A file has no width.
        (out if out.is_terminal else Console(width=200)).print(shown)
    click.echo(_sentence(lines, unjudged=unjudged))


def _alike(line: Line) -> Hashable:
    return (line.stream, line.destination, line.partial) if line.holds else None


def _sentence(lines: Sequence[Line], *, unjudged: bool) -> str:
    wrong = sum(not line.holds for line in lines)
    if not lines:
        return "nothing has landed in that time: there is nothing to audit"
    if wrong:
        many = counted(len(lines), "hour")
        return f"{wrong:,} of {many} {'does' if wrong == 1 else 'do'} not add up"
    whole = [line for line in lines if not line.partial]
    if not whole:
        none = "1 hour can't" if len(lines) == 1 else f"none of {len(lines):,} hours can"
        said = f"{none} be judged: records had expired before they were counted"
        return f"{said}; nor can what else was asked for" if unjudged else said
    # At each of its destinations the same records of an hour are accounted for.
    accepted = {(line.stream, line.hour): line.accepted for line in whole}
    all_judged = len(whole) == len(lines) and not unjudged
    where = _where(whole) if all_judged else _WHERE_JUDGED
    said = f"{counted(sum(accepted.values()), 'record')} accepted, {where}"
    many = counted(len(lines), "hour")
    if len(whole) < len(lines):
        many = f"{len(whole):,} of {many}"
        said += "; of the others records had expired before they were counted"
    elif not unjudged and len(lines) > 1:
        many = f"all {many}"
    if unjudged:
        said += "; what else was asked for can't be judged"
    return f"{many} {'adds' if len(whole) == 1 else 'add'} up: {said}"


def _where(lines: Sequence[Line]) -> str:
    """Where each record is accounted for; these lines are all there are."""
    hours: dict[tuple[str, int], set[str]] = {}
    streams: dict[str, set[str]] = {}
    for line in lines:
        hours.setdefault((line.stream, line.hour), set()).add(line.destination)
        streams.setdefault(line.stream, set()).add(line.destination)
    if any(places != streams[stream] for (stream, _), places in hours.items()):
        # Of an hour that one of them has no line of nothing is known there.
        return _WHERE_JUDGED
    most = {len(places) for places in streams.values()}
    if most == {1}:
        return "each accounted for once"
    if len(most) == 1:
        return f"at each of {most.pop()} destinations accounted for once"
    return "each accounted for once at every destination of its stream"


def export_table(held: Mapping[tuple[str, str], tuple[int, int]]) -> None:
    """Of each day and event how many a vendor has acknowledged, and how many its export holds."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("day", "event"):
        shown.add_column(heading)
    for heading in ("acknowledged", "in the export", "missing"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for (day, event), (acknowledged, stored) in sorted(held.items()):
        missing = acknowledged - stored
        shown.add_row(
            day, Text(printable(event)), f"{acknowledged:,}", f"{stored:,}", f"{missing:,}",
            style="bold red" if missing else "",
        )  # fmt: skip
    Console().print(shown)


def _colour(line: Line) -> str:
    if not line.holds:
        return "bold red"
    return "yellow" if line.partial else "green"


def _verdict(line: Line) -> str:
    if line.holds:
        return "expired before it was counted" if line.partial else "ok"
    where = ", ".join(f"{p.number}" for p in line.differing)
    difference = line.difference
    what = f"{difference:,} missing" if difference > 0 else f"{-difference:,} too many"
    if line.moved:
        return f"the same records in other hours (partition {where}): has `time` changed?"
    if line.findings and (line.partial or not line.differing):
        many = sum(one.changed or 1 for one in line.findings)
        return counted(many, "differs from Kafka", "differ from Kafka")
    if not difference:
        what = "other records than those accepted"
    return f"{what} (partition {where})"


def explained(line: Line) -> Iterator[str]:
    """A sentence for each record that was found: what is wrong, and where it was last seen."""
    for one in line.findings:
        where = f"Kafka, {one.place[0]} at {one.place[1]:,}" if one.place else "nowhere in Kafka"
        if one.changed:
            rows = counted(one.changed, "row")
            their = "its record gives" if one.changed == 1 else "their records give"
            yield printable(
                f"{line.stream} {moment(line.hour)[:16]}: {line.destination} has {rows} of other "
                f"values than {their} now, neither missing nor too many: has the message changed?"
            )
            continue
        if not one.name:
            rows = counted(one.surplus, "row")
            yield (
                f"{line.stream} {moment(line.hour)[:16]}: {line.destination} has {rows} too many; "
                "it can't be told which, beside rows of which Kafka no longer has the records"
            )
            continue
        if one.acknowledged:
            what = f"was accepted by {line.destination}, and its export does not hold it"
        elif one.surplus < 0:
            what = f"is not in {line.destination}; last seen in {where}"
        elif one.place is None and not one.known:
            what = (
                f"is in {line.destination}, and no record in Kafka has its values; it may be of "
                "another topic, or somebody's own, so no command is printed that deletes it"
            )
        elif one.place is None:
            what = f"is in {line.destination} once more than in Kafka"
            if not one.removal:
                what += "; no command can take it out of the columnstore by its place"
        else:
            often = f"{counted(one.surplus, 'time')} too often"
            what = f"is in {line.destination} {often}; it stands in {where}"
        # Below it there are commands to be pasted into a shell: no name may add another.
        yield printable(f"{line.stream} {moment(line.hour)[:16]}: {one.name} {what}")


def document(line: Line) -> dict[str, Any]:
    """All that is known of a line."""
    return {
        "hour": moment(line.hour),
        "stream": line.stream,
        "destination": line.destination,
        "accepted": line.accepted,
        "landed": line.landed,
        "dropped": line.dropped,
        "dead": line.dead,
        "in_flight": line.in_flight,
        "difference": line.difference,
        "holds": line.holds,
        "partial": line.partial,
        "moved": line.moved,
        "partitions": [p.number for p in line.differing],
        "findings": [
            {
                "record": one.name,
                "surplus": one.surplus,
                "changed": one.changed,
                "partition": one.place[0].number if one.place else None,
                "offset": one.place[1] if one.place else None,
            }
            for one in line.findings
        ],
    }
