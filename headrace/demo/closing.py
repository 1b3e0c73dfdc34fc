"""The end of the demo: the closing table, how fast it was, who was killed when, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from headrace.demo.act_count import Account
from headrace.demo.model import Kill, Rates
from headrace.demo.story import Story

__all__ = ["faults", "table", "verdict"]

_HEADS = ("published", "landed", "dead letters", "duplicated", "lost")


def table(accounts: Sequence[Account], blocks: bool) -> Table:
    """A line for each stream and destination."""
    drawn = Table(
        box=box.SIMPLE_HEAD if blocks else box.ASCII2,
        header_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in ("stream", "in"):
        drawn.add_column(name, no_wrap=True)
    for name in _HEADS:
        drawn.add_column(name, justify="right", min_width=max(map(len, name.split())))
    for i, line in enumerate(accounts):
        figures = (line.published, line.landed, line.dead_letters, line.duplicated, line.lost)
        drawn.add_row(
            line.stream, line.to, *[f"{figure:,}" for figure in figures],
            style="bold red" if line.faults else "",
            end_section=i + 1 < len(accounts) and accounts[i + 1].stream != line.stream,
        )  # fmt: skip
    return drawn


def faults(accounts: Sequence[Account], kills: Sequence[Kill]) -> list[str]:
    """Everything that does not add up, each said once."""
    found = [fault for line in accounts for fault in line.faults]
    # Also where no comparison found a fault: the table itself has to add up.
    found += [
        f"{line.stream} in {line.to}: {line.published:,} published is not {line.landed:,} landed "
        f"and {line.dead_letters:,} dead letters"
        for line in accounts
        if not line.faults and line.published != line.landed + line.dead_letters
    ]
    found += [
        f"the inserter {kill.who} was not killed in the middle: {kill.landed:,} of {kill.total:,}"
        for kill in kills
        if not kill.in_the_middle
    ]
    return list(dict.fromkeys(found))


def verdict(
    story: Story, accounts: Sequence[Account], rates: Rates, kills: Sequence[Kill],
    wrong: Sequence[str],
) -> bool:  # fmt: skip
    """Say all of it; whether it adds up."""
    story.show(table(accounts, story.blocks))
    for kill in kills:
        story.say(
            f"Killed with SIGKILL after {kill.at_s:.1f} s: inserter {kill.who}, pid {kill.pid}, "
            f"with {kill.landed:,} of {kill.total:,} device logs landed."
        )
    landed = ", ".join(f"into {to} {rate:,.0f}" for to, rate in rates.landed.items())
    story.say(
        f"Records a second in the second half, all at once on this machine: published "
        f"{rates.published:,.0f}, {landed}."
    )
    for fault in wrong:
        story.say(f"Wrong: {fault}.", "bold red")
    lost = sum(line.lost for line in accounts)
    doubled = sum(line.duplicated for line in accounts)
    if wrong:
        story.say(f"It does NOT add up: lost {lost:,}, duplicated {doubled:,}.", "bold red")
        return False
    streams = {line.stream: line for line in accounts}.values()
    published = sum(line.published for line in streams)
    dead = sum(line.dead_letters for line in streams)
    story.say(
        f"It adds up: of {published:,} acknowledged records, each is in PostgreSQL and in "
        f"ClickHouse exactly once, but for {dead:,} of rubbish, which are kept as dead letters. "
        f"Lost {lost}, duplicated {doubled}.",
        "bold green",
    )
    return True
