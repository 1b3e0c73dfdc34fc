"""The inserters: `headrace insert` processes, started, killed, stopped, and always gone at the end.

Rules: a process that ends without having been told to ends the demo, with the last lines of its
log. Only processes that were started here are signalled, through the handle that started them.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace.demo.model import CLICKHOUSE, POSTGRES, DemoError
from headrace.demo.place import Place, end

__all__ = ["GROUPS", "Crew", "Inserter"]

# As `--to` names them: those of the local stack.
_TO = {POSTGRES: "postgres", CLICKHOUSE: "chdb"}
# Consumer groups, which `watch` looks at too.
GROUPS = {POSTGRES: "demo-postgres", CLICKHOUSE: "demo-clickhouse"}

_STOP_S = 15.0
_DRAIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Inserter:
    """One process; `name` is for people."""

    name: str
    to: str
    streams: tuple[str, ...]
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def tail(self) -> str:
        """The end of what it has written."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])


class Crew:
    """All inserters. As a context manager it leaves no process behind."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._running: list[Inserter] = []
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for inserter in self._running:
            end(inserter.process)
        self._running.clear()

    def start(self, name: str, to: str, streams: Sequence[str], *args: str) -> Inserter:
        """Start one; does not wait until it has joined its group."""
        self._started += 1
        log = self._place.folder / f"insert-{self._started}.log"
        named = [part for stream in streams for part in ("--stream", stream)]
        argv = ["insert", "--to", _TO[to], *named, "--group", GROUPS[to], *args]
        inserter = Inserter(name, to, tuple(streams), self._place.start(argv, log), log)
        self._running.append(inserter)
        return inserter

    def again(self, killed: Inserter) -> Inserter:
        """Start a killed one anew."""
        return self.start(killed.name, killed.to, killed.streams)

    def check(self) -> None:
        """Raise DemoError if one has ended by itself."""
        for inserter in self._running:
            code = inserter.process.poll()
            if code is not None:
                raise DemoError(
                    f"the inserter {inserter.name} (pid {inserter.pid}) ended by itself with "
                    f"{code}:\n{inserter.tail()}"
                )

    def kill(self, inserter: Inserter) -> None:
        """SIGKILL; gone when this returns."""
        self.check()
        self._running.remove(inserter)
        end(inserter.process)

    def drain(self, inserters: Sequence[Inserter]) -> list[str]:
        """Wait for those started with --drain; the last line of each. Raises DemoError."""
        give_up = time.monotonic() + _DRAIN_S
        return [self._finish(inserter, give_up) for inserter in inserters]

    def stop(self) -> None:
        """SIGTERM to all: they finish their batch, commit and leave. Raises DemoError."""
        self.check()
        for inserter in self._running:
            inserter.process.send_signal(signal.SIGTERM)
        give_up = time.monotonic() + _STOP_S
        for inserter in list(self._running):
            self._finish(inserter, give_up)

    def _finish(self, inserter: Inserter, give_up: float) -> str:
        try:
            code = inserter.process.wait(max(0.0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise DemoError(
                f"the inserter {inserter.name} (pid {inserter.pid}) does not come to its end:\n"
                f"{inserter.tail()}"
            ) from None
        self._running.remove(inserter)
        end(inserter.process)
        if code != 0:
            raise DemoError(
                f"the inserter {inserter.name} (pid {inserter.pid}) ended with {code}:\n"
                f"{inserter.tail()}"
            )
        return (inserter.tail().splitlines() or [""])[-1]
