"""The end of the demo: the closing table, how fast it was, who was killed when, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from headrace.demo.act_count import Account
from headrace.demo.model import Kill, Rates
from headrace.demo.story import Story
from headrace.demo.vendor_count import Delivered, VendorLine

__all__ = ["delivery_faults", "faults", "table", "vendor_table", "verdict"]

_HEADS = ("published", "landed", "dead letters", "duplicated", "lost")
_VENDOR_HEADS = ("sent", "accepted", "dropped by allowlist", "missing", "duplicated", "gap closed")


def table(accounts: Sequence[Account], blocks: bool) -> Table:
    """A line for each stream and destination."""
    drawn = _drawn(("stream", "in"), _HEADS, blocks)
    for i, line in enumerate(accounts):
        figures = (line.published, line.landed, line.dead_letters, line.duplicated, line.lost)
        drawn.add_row(
            line.stream, line.to, *[f"{figure:,}" for figure in figures],
            style="bold red" if line.faults else "",
            end_section=i + 1 < len(accounts) and accounts[i + 1].stream != line.stream,
        )  # fmt: skip
    return drawn


def vendor_table(lines: Sequence[VendorLine], blocks: bool) -> Table:
    """A line for each vendor; `gap closed` is from its recovery on."""
    drawn = _drawn(("vendor",), _VENDOR_HEADS, blocks)
    for line in lines:
        figures = (line.sent, line.accepted, line.dropped, line.missing, line.duplicated)
        drawn.add_row(
            line.vendor, *[f"{figure:,}" for figure in figures],
            "never down" if line.gap_s is None else f"{line.gap_s:.1f} s",
            style="bold red" if line.faults else "",
        )  # fmt: skip
    return drawn


def _drawn(names: Sequence[str], heads: Sequence[str], blocks: bool) -> Table:
    drawn = Table(
        box=box.SIMPLE_HEAD if blocks else box.ASCII2,
        header_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in names:
        drawn.add_column(name, no_wrap=True)
    for name in heads:
        drawn.add_column(name, justify="right", min_width=max(map(len, name.split())))
    return drawn


def delivery_faults(found: Delivered) -> list[str]:
    """Everything at the vendors that does not add up, each said once."""
    wrong = [fault for line in found.lines for fault in line.faults]
    # Also where no comparison found a fault: the table itself has to add up.
    wrong += [
        f"{line.vendor}: {line.accepted:,} accepted and {line.dropped:,} dropped are not the "
        f"{found.sent:,} events that were sent"
        for line in found.lines
        if not line.faults
        and (line.accepted != line.sent or line.accepted + line.dropped != found.sent)
    ]
    if not found.kill.in_the_middle:
        wrong.append(
            f"the forwarder was not killed in the middle: {found.kill.stored:,} of "
            f"{found.kill.total:,}, requests under way: {found.kill.under_way}"
        )
    return list(dict.fromkeys(wrong))


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
    delivered: Delivered, wrong: Sequence[str],
) -> bool:  # fmt: skip
    """Say all of it; whether it adds up."""
    story.show(table(accounts, story.blocks))
    story.show(vendor_table(delivered.lines, story.blocks))
    for kill in kills:
        story.say(
            f"Killed with SIGKILL after {kill.at_s:.1f} s: inserter {kill.who}, pid {kill.pid}, "
            f"with {kill.landed:,} of {kill.total:,} device logs landed."
        )
    _say_of_vendors(story, delivered)
    landed = ", ".join(f"into {to} {rate:,.0f}" for to, rate in rates.landed.items())
    story.say(
        f"Records a second in the second half, all at once on this machine: published "
        f"{rates.published:,.0f}, {landed}."
    )
    for fault in wrong:
        story.say(f"Wrong: {fault}.", "bold red")
    lost = sum(line.lost for line in accounts) + sum(line.missing for line in delivered.lines)
    doubled = sum(line.duplicated for line in accounts)
    doubled += sum(line.duplicated for line in delivered.lines)
    if wrong:
        story.say(f"It does NOT add up: lost {lost:,}, duplicated {doubled:,}.", "bold red")
        return False
    streams = {line.stream: line for line in accounts}.values()
    published = sum(line.published for line in streams)
    dead = sum(line.dead_letters for line in streams)
    story.say(
        f"It adds up: of {published:,} acknowledged records, each is in PostgreSQL and in "
        f"ClickHouse exactly once, but for {dead:,} of rubbish, which are kept as dead letters; of "
        f"{delivered.sent:,} product events, each vendor has those that may leave exactly once. "
        f"Lost {lost}, duplicated {doubled}.",
        "bold green",
    )
    return True


def _say_of_vendors(story: Story, delivered: Delivered) -> None:
    kill, outage = delivered.kill, delivered.outage
    story.say(
        f"Killed with SIGKILL after {kill.at_s:.1f} s: the forwarder, pid {kill.pid}, with "
        f"{kill.stored:,} of {kill.total:,} events in the vendors."
    )
    for line in delivered.lines:
        if line.gap_s is not None and line.fresh_s is not None:
            story.say(
                f"{line.vendor} was down for {outage.seconds:.1f} s. From its recovery it took "
                f"{line.fresh_s:.1f} s to the first fresh event, {line.gap_s:.1f} s to the gap "
                f"closed, by the replay {outage.replay} beside fresh events."
            )
