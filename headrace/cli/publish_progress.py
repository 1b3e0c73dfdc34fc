"""What `headrace publish` shows while it works: a bar on a terminal, and lines above it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from headrace.words import printable
from ingest.publisher import Publisher
from ingest.records import Source

__all__ = ["Progress"]


class Progress:
    """The bar on a terminal: bytes read of total, records a second, acknowledged."""

    def __init__(self, paths: Iterable[str], *, on: bool) -> None:
        self._bar: Any = None
        if not on:
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[rate]} records/s, {task.fields[acked]} acknowledged"),
        ]
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        sizes = [0 if path == "-" else Path(path).stat().st_size for path in paths]
        total = None if 0 in sizes else sum(sizes)
        self._task = self._bar.add_task("", total=total, rate="–", acked="0")
        self._done: dict[int, int] = {}
        self._since = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.stop()

    def say(self, text: str) -> None:
        """A line on standard error, above the bar; lost where nobody can read it any more.

        After SIGHUP the terminal is gone, and what was published is still to be waited for.
        """
        text = printable(text)
        with suppress(OSError):
            if self._bar is None:
                click.echo(text, err=True)
            else:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, source: Source, read: int, publisher: Publisher) -> None:
        """Ten times a second at most."""
        if self._bar is None:
            return
        now = time.monotonic()
        self._done[id(source)] = source.consumed
        if now - self._shown < 0.1:
            return
        self._shown = now
        self._bar.update(
            self._task,
            description=printable(source.name),
            completed=sum(self._done.values()),
            rate=f"{read / (now - self._since):,.0f}",
            acked=f"{publisher.acknowledged:,}",
        )
