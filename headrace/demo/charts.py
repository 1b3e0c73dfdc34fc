"""Drawings of a fleet's figures: bars and sparklines as text, without knowing where they came from.

Block characters where the terminal has them, ASCII otherwise; colours tell nothing that the
characters don't.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

__all__ = ["STATUSES", "by_colo", "by_status", "over_time", "sparkline"]

# status -> colour, block, ASCII
STATUSES = {
    "connected": ("green", "█", "#"),
    "paused": ("yellow", "▒", "="),
    "disconnected": ("red", "░", "-"),
}
_LEVELS = ("▁▂▃▄▅▆▇█", "_.-=+*#@")
_COLOS = 12
_BAR = 40


def by_colo(latest: Mapping[tuple[str, str], int], blocks: bool) -> Table:
    """The largest data centres, a bar each, parted by status; the others in one line."""
    totals: dict[str, int] = {}
    for (colo, _status), devices in latest.items():
        totals[colo] = totals.get(colo, 0) + devices
    ranked = sorted(totals, key=lambda colo: (-totals[colo], colo))
    longest = max(totals.values(), default=1)
    grid = _grid()
    for colo in ranked[:_COLOS]:
        parts = {status: latest.get((colo, status), 0) for status in STATUSES}
        grid.add_row(colo, f"{totals[colo]:,}", _stacked(parts, longest, blocks))
    rest = ranked[_COLOS:]
    if rest:
        others = sum(totals[colo] for colo in rest)
        grid.add_row("", f"{others:,}", Text(f"in {len(rest)} others", style="dim"))
    return grid


def by_status(latest: Mapping[tuple[str, str], int], blocks: bool) -> Table:
    """A bar and a share for each status; it is the legend of the other drawings too."""
    totals = _by_status(latest)
    every = max(sum(totals.values()), 1)
    grid = _grid()
    for status in [*STATUSES, *sorted(set(totals) - set(STATUSES))]:
        devices = totals.get(status, 0)
        bar = _stacked({status: devices}, every, blocks)
        bar.append(f" {devices / every:.1%}")
        grid.add_row(status, f"{devices:,}", bar)
    return grid


def over_time(history: Mapping[tuple[int, str], int], blocks: bool) -> Table:
    """The share of each status among the reports of an interval, each on a scale of its own."""
    begins = sorted({begin for begin, _status in history})
    grid = _grid()
    for status, (colour, _block, _plain) in STATUSES.items():
        shares = []
        for begin in begins:
            every = sum(history.get((begin, other), 0) for other in STATUSES)
            shares.append(history.get((begin, status), 0) / max(every, 1))
        line = Text(sparkline(shares, blocks, width=_wide(begins)), style=colour)
        line.append(f"  {min(shares, default=0):.1%} to {max(shares, default=0):.1%}", "dim")
        grid.add_row(status, "", line)
    if begins:
        first, last = (f"{datetime.fromtimestamp(s, UTC):%H:%M}" for s in (begins[0], begins[-1]))
        gap = max(_wide(begins) * len(begins) - len(first) - len(last), 1)
        grid.add_row("", "", Text(first + " " * gap + last + "  UTC", style="dim"))
    return grid


def sparkline(values: Sequence[float], blocks: bool, width: int = 1) -> str:
    """Each value as one of eight levels between the least and the largest, `width` characters."""
    levels = _LEVELS[0] if blocks else _LEVELS[1]
    low, high = min(values, default=0.0), max(values, default=0.0)
    span = (high - low) or 1.0
    return "".join(levels[round((v - low) / span * (len(levels) - 1))] * width for v in values)


def _wide(begins: Sequence[int]) -> int:
    return max(1, min(2, _BAR // max(len(begins), 1)))


def _by_status(latest: Mapping[tuple[str, str], int]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for (_colo, status), devices in latest.items():
        totals[status] = totals.get(status, 0) + devices
    return totals


def _stacked(parts: Mapping[str, int], longest: int, blocks: bool) -> Text:
    """Parts of one bar, each end rounded, so that the whole is as long as the sum says."""
    bar, done, drawn = Text(), 0, 0
    for status, count in parts.items():
        colour, block, plain = STATUSES.get(status, ("white", "█", "#"))
        done += count
        end = round(done / max(longest, 1) * _BAR)
        bar.append((block if blocks else plain) * (end - drawn), colour)
        drawn = end
    return bar


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(min_width=12)
    grid.add_column(justify="right", min_width=6)
    grid.add_column(no_wrap=True)
    return grid
