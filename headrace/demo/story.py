"""What the demo shows: numbered acts, sentences with the time they were said at, a progress meter.

Rules: on a terminal the meter is drawn over itself and leaves nothing behind; elsewhere (a pipe, a
file, TERM=dumb) it is a plain line every few seconds, and no control character is ever written.
Sentences are ASCII, so that they can be read everywhere; drawings ask `blocks`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["Meter", "Story"]

_LINE_EVERY_S = 3.0  # of a meter that is not drawn
_BAR = 40
_WIDTH = 96


class Story:
    """Tells the demo to one stream; the clock starts when it is made."""

    def __init__(self, out: TextIO) -> None:
        self._began = time.monotonic()
        self._acts = 0
        self.console = Console(file=out, highlight=False, markup=False)
        self.console.width = min(self.console.width, _WIDTH)
        self._drawn = self.console.is_terminal and not self.console.is_dumb_terminal

    @property
    def elapsed_s(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self._began

    @property
    def blocks(self) -> bool:
        """Whether block characters can be shown."""
        return not self.console.options.ascii_only

    def act(self, title: str) -> None:
        """A heading."""
        self._acts += 1
        self.show(Text(f"\n{self._acts}. {title}", style="bold"))

    def say(self, sentence: str, style: str = "", at_s: float | None = None) -> None:
        """A sentence, with the time; `at_s` when it was true, if that is not now."""
        self.show(self._stamped(sentence, style, self.elapsed_s if at_s is None else at_s))

    def show(self, what: RenderableType, indent: int = 0) -> None:
        """Anything that rich can draw."""
        shown = Padding(what, (0, 0, 0, indent)) if indent else what
        if self._drawn:
            self.console.print(shown)
            return
        # rich fills every line up with blanks, which a log has no use for.
        with self.console.capture() as capture:
            self.console.print(shown)
        for line in capture.get().splitlines():
            self.console.file.write(line.rstrip() + "\n")
        self.console.file.flush()

    @contextmanager
    def meter(self, total: int) -> Iterator[Meter]:
        """A meter of some figures that all go to `total`."""
        if self._drawn:
            with Live(console=self.console, transient=True, refresh_per_second=8) as live:
                yield Meter(self, total, live)
        else:
            yield Meter(self, total, None)

    def _stamped(self, sentence: str, style: str, at_s: float) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(justify="right", min_width=8, no_wrap=True)
        grid.add_column()
        grid.add_row(Text(f"{at_s:.1f} s", style="dim"), Text(sentence, style=style))
        return grid


class Meter:
    """Shows how far things are; see `Story.meter`."""

    def __init__(self, story: Story, total: int, live: Live | None) -> None:
        self._story, self._total, self._live = story, total, live
        self._said = time.monotonic()

    def update(self, figures: dict[str, int]) -> None:
        """The newest figures by name."""
        if self._live is not None:
            self._live.update(self._bars(figures))
        elif time.monotonic() - self._said > _LINE_EVERY_S:
            self._said = time.monotonic()
            said = ", ".join(f"{name} {figure:,}" for name, figure in figures.items())
            self._story.say(f"... {said} (of {self._total:,})", "dim")

    def _bars(self, figures: dict[str, int]) -> Table:
        full, empty = ("━", "─") if self._story.blocks else ("#", ".")
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(min_width=8)
        for name, figure in figures.items():
            filled = _BAR * min(figure, self._total) // max(self._total, 1)
            bar = Text(full * filled, style="cyan") + Text(empty * (_BAR - filled), style="dim")
            grid.add_row("", name, bar, Text(f"{figure:>9,}"))
        return grid
