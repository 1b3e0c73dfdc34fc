"""What `headrace audit` found between spools and Kafka, as tables for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.audit_show import moment, runs
from headrace.words import counted, printable

if TYPE_CHECKING:
    from consumers.ledger.crossing import Crossing, Node

__all__ = ["edge_documents", "edge_tables"]


def edge_tables(
    crossings: Sequence[Crossing], nodes: Sequence[Node], *, unjudged: bool = False
) -> bool:
    """What came through spools, by hours; and the spools that hold something or lack it.

    Whether there was anything to say. `unjudged` is something else, of which it was said.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Console()
    # A file has no width.
    out = out if out.is_terminal else Console(width=200)
    if crossings:
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        shown.add_column("into Kafka from", no_wrap=True)
        shown.add_column("hours", justify="right", no_wrap=True)
        shown.add_column("stream", no_wrap=True)
        shown.add_column("sources", overflow="fold")
        for heading in ("from spools", "in Kafka", "direct"):
            shown.add_column(heading, justify="right", no_wrap=True)
        shown.add_column("", no_wrap=True)
        for run in runs(crossings, _alike):
            line, of = run[0], Counter[str]()
            for one in run:
                of.update(one.sources)
            sources = ", ".join(f"{printable(name or '-')} {n:,}" for name, n in of.items())
            terms = ((one.accepted.records, one.entered.records, one.direct) for one in run)
            numbers = map(sum, zip(*terms, strict=True))
            shown.add_row(
                moment(line.hour)[:16], f"{len(run):,}", Text(line.stream), Text(sources),
                *(f"{n:,}" if n else Text("0", "dim") for n in numbers),
                Text(_verdict(line), _colour(line)),
            )  # fmt: skip
        out.print(shown)
    for node in nodes:
        name = printable(node.node)
        if node.missing or node.twice:
            click.echo(
                f"spool {name}: of the records that it acknowledged "
                f"{counted(node.missing, 'was', 'were')} never sent, {node.twice:,} sent twice"
            )
        elif node.waiting:
            when = "" if node.heard is None else f", in the hour of {moment(node.heard)[:16]}"
            click.echo(f"spool {name}: {node.waiting:,} waited in it when it sent last{when}")
    if said := _sentence(crossings, nodes, unjudged=unjudged):
        click.echo(f"into Kafka: {said}")
    return bool(said) or any(node.waiting for node in nodes)


def _sentence(crossings: Sequence[Crossing], nodes: Sequence[Node], *, unjudged: bool) -> str:
    """What it comes to; nothing where nothing crossed, and nothing is wrong."""
    hours = sum(not line.holds for line in crossings)
    spools = sum(not node.holds for node in nodes)
    if hours or spools:
        known = ((hours, len(crossings), "hour"), (spools, len(nodes), "spool"))
        wrong = " and ".join(f"{n:,} of {counted(of, one)}" for n, of, one in known if n)
        return f"{wrong} {'does' if hours + spools == 1 else 'do'} not add up"
    if not crossings:
        return ""
    whole = [line for line in crossings if line.judged]
    if not whole:
        return "no hour can be judged"
    accepted = sum(line.accepted.records for line in whole)
    partial = f"{len(crossings) - len(whole):,} of {counted(len(crossings), 'hour')}"
    rest = [partial] if len(whole) < len(crossings) else []
    rest += ["what else was asked for"] if unjudged else []
    if not rest:
        return f"all {accepted:,} from spools, each once"
    where = "each once where it could be judged"
    return f"{accepted:,} from spools, {where}; {' and '.join(rest)} can't be"


def edge_documents(
    crossings: Sequence[Crossing], nodes: Sequence[Node]
) -> Iterator[dict[str, Any]]:
    """All that is known of each."""
    for line in crossings:
        yield {
            "hour": moment(line.hour),
            "stream": line.stream,
            "destination": "kafka",
            "accepted": line.accepted.records,
            "sources": dict(line.sources),
            "entered": line.entered.records,
            "direct": line.direct,
            "difference": line.difference,
            "holds": line.holds,
            "partial": not line.judged,
        }
    for node in nodes:
        yield {
            "node": node.node,
            "sent": node.sent,
            "waiting": node.waiting,
            "missing": node.missing,
            "twice": node.twice,
            "heard": None if node.heard is None else moment(node.heard),
            "holds": node.holds,
        }


def _alike(line: Crossing) -> Hashable:
    return (line.stream, _verdict(line)) if line.holds else None


def _verdict(line: Crossing) -> str:
    if line.partial:
        return "expired before it was counted, or not all of it can be read yet"
    if line.holds:
        return "ok" if line.judged else "what relays said of it had expired before it was heard"
    if line.difference:
        return f"{line.difference:,} missing"
    return "other records than those sent"


def _colour(line: Crossing) -> str:
    if not line.holds:
        return "bold red"
    return "green" if line.judged else "yellow"
