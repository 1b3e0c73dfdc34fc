"""What `headrace replay` shows while it works: on a terminal a bar with the time that is left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from headrace.words import printable

__all__ = ["Progress"]

_EVERY_S = 0.2


class Progress:
    """Offsets done of `total`, looked at while the block runs; nothing where there is no terminal.

    They are known when their batch has landed, so the bar goes in steps.
    """

    def __init__(self, name: str, total: int, done: Callable[[], int]) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._name, self._total, self._done = printable(name), total, done
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if self._console.is_terminal and self._total:
            self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        columns: list[Any] = [
            TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
            MofNCompleteColumn(), TimeRemainingColumn(),
        ]  # fmt: skip
        with Bar(*columns, console=self._console) as bar:
            task = bar.add_task(self._name, total=self._total, completed=self._done())
            while not self._over.wait(_EVERY_S):
                bar.update(task, completed=self._done())
            bar.update(task, completed=self._done())
