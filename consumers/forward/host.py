"""Several vendors in one process, each with a run loop on a thread of its own.

One vendor never holds up another: they share nothing but the interpreter. One that a person has to
mend ends alone, with its message in the log; the others go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

from consumers import metrics
from consumers.errors import SinkError
from consumers.lanes import Totals
from consumers.source import Source
from consumers.work import Cursor

__all__ = ["Host", "VendorLag"]

log = logging.getLogger(__name__)

# Between two looks, in seconds.
_EVERY_S = 1.0


class Running(Protocol):
    """A run loop, as the host needs it."""

    @property
    def away_s(self) -> float: ...

    @property
    def problem(self) -> str | None: ...

    def stop(self) -> None: ...

    def run(self, *, drain: bool = False) -> Totals: ...


class Host:
    """Runs them until all have ended."""

    def __init__(self, runners: Mapping[str, Running]) -> None:
        self._runners = runners
        self.totals: dict[str, Totals] = {}
        # Those that ended with an error, and why.
        self.failed: dict[str, BaseException] = {}

    @property
    def away_s(self) -> float:
        """How long the vendor that is away the longest has not answered."""
        return max(
            (r.away_s for name, r in self._runners.items() if name not in self.failed), default=0.0
        )

    @property
    def problem(self) -> str | None:
        """What is wrong, vendor by vendor, for people; None when nothing is."""
        found = []
        for name, runner in self._runners.items():
            if (error := self.failed.get(name)) is not None:
                found.append(f"{name} has stopped: {error}")
            elif name not in self.totals and (problem := runner.problem):
                found.append(f"{name}: {problem}")
        return "; ".join(found) or None

    def stop(self) -> None:
        """Have all of them finish; for signal handlers."""
        for runner in self._runners.values():
            runner.stop()

    def run(self, *, drain: bool = False) -> None:
        """Return when all have ended; `failed` says which of them by an error."""
        threads = [
            threading.Thread(
                target=self._run, args=(name, runner, drain), name=f"run-{name}", daemon=True
            )
            for name, runner in self._runners.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            # In short waits: signals are for this thread, and it has to come back for them.
            while thread.is_alive():
                thread.join(0.2)

    def _run(self, name: str, runner: Running, drain: bool) -> None:
        try:
            self.totals[name] = runner.run(drain=drain)
        except SinkError as error:
            self.failed[name] = error
            log.error("%s has stopped; the others go on: %s", name, error)  # noqa: TRY400 - for an operator, without the traceback
        except BaseException as error:
            self.failed[name] = error
            log.exception("%s has stopped by a bug; the others go on", name)


class VendorLag:
    """Sets how far one vendor is behind, once a second; the sum of all its partitions."""

    def __init__(self, vendor: str, source: Source) -> None:
        self._vendor = vendor
        self._source = source
        self._due_at = 0.0

    def look(self, cursors: Iterable[Cursor]) -> None:
        """Set the gauges, if it is time; does not wait."""
        now = time.monotonic()
        if now < self._due_at:
            return
        self._due_at = now + _EVERY_S
        behind, age_s = 0, 0.0
        for cursor in cursors:
            end = self._source.latest(cursor.partition)
            if cursor.landed < 0 or end <= cursor.landed:
                continue
            behind += end - cursor.landed
            if since_ms := cursor.landed_ms or cursor.read_ms:
                age_s = max(age_s, time.time() - since_ms / 1000)
        metrics.VENDOR_LAG_MESSAGES.labels(self._vendor).set(behind)
        metrics.VENDOR_LAG_SECONDS.labels(self._vendor).set(age_s)
