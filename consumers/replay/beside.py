"""A vendor's live loop, and beside it what outages have left out: what `headrace forward` hosts.

While the vendor is away it is noted when what it has not had was published: retention may remove
the records that say so before it is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace

from consumers.client import Settings
from consumers.deadletters import Letters
from consumers.errors import SinkError
from consumers.forward.budget import Budget
from consumers.forward.live import forwarder_group, runner
from consumers.forward.settings import VendorSettings
from consumers.lanes import Totals
from consumers.replay.job import Job
from consumers.replay.jobs import Jobs
from consumers.replay.keeper import Keeper, Since
from consumers.replay.outage import Board, Filling, Raw
from consumers.replay.table import open_table
from consumers.replay.target import Target, vendor_target
from consumers.run import Runner
from consumers.trace.allowlist import TraceSettings
from ingest.streams import Stream

__all__ = ["Beside", "beside"]

log = logging.getLogger(__name__)

# How often it is looked whether the vendor is away, and where it stands while it is, in seconds.
_LOOK_S = 5.0
_AGAIN_S = 60.0
# How long replays that are told to stop are waited for, in seconds: their loops need less, but one
# that is about to begin may read receipts for minutes.
_STOP_S = 15.0
_JOIN_S = 0.2


class Beside:
    """Both of one vendor, as the host needs a run loop (consumers/forward/host.py)."""

    def __init__(self, name: str, live: Runner, filling: Filling, since: Since) -> None:
        self._name = name
        self._live = live
        self._filling = filling
        self._since = since
        self._over = threading.Event()
        self._stopping = threading.Event()
        # What the replays have ended with.
        self._error: BaseException | None = None

    @property
    def away_s(self) -> float:
        return self._live.away_s

    @property
    def problem(self) -> str | None:
        if self._error is not None:
            return f"its replays have stopped, start the forwarder again: {self._error}"
        return self._live.problem

    def stop(self) -> None:
        self._live.stop()
        self._stop_filling()

    def _stop_filling(self) -> None:
        self._filling.stop()
        self._stopping.set()

    def run(self, *, drain: bool = False) -> Totals:
        """With `drain` until all that can be replayed is, too. Raises what either ends with."""
        thread = threading.Thread(target=self._fill, name=f"fill-{self._name}", daemon=True)
        thread.start()
        looking = threading.Thread(target=self._look, name=f"look-{self._name}", daemon=True)
        looking.start()
        try:
            totals = self._live.run(drain=drain)
        except BaseException:
            self._stop_filling()
            raise
        else:
            self._filling.finish()
        finally:
            self._wait(thread)
            self._over.set()
        totals.rows += self._filling.rows
        if drain and (error := self._error or self._filling.error) is not None:
            raise error
        return totals

    def _wait(self, filling: threading.Thread) -> None:
        """Until it has ended; once it is told to stop, not for long. The process takes it along."""
        deadline = float("inf")
        while filling.is_alive() and time.monotonic() < deadline:
            filling.join(_JOIN_S)
            if self._stopping.is_set():
                deadline = min(deadline, time.monotonic() + _STOP_S)

    def _fill(self) -> None:
        try:
            self._filling.run()
        except SinkError as error:
            self._error = error
            log.error("the replays of %s have stopped; it goes on without: %s", self._name, error)  # noqa: TRY400 - for an operator
        except BaseException as error:
            self._error = error
            log.exception("the replays of %s have stopped; it goes on without", self._name)

    def _look(self) -> None:
        due_at = 0.0
        while not self._over.wait(_LOOK_S):
            if not self._live.away_s:
                due_at = 0.0
            if not self._live.away_s or time.monotonic() < due_at:
                continue
            try:
                self._since.look()
                due_at = time.monotonic() + _AGAIN_S
            except SinkError as error:
                log.warning("since when %s lacks events can't be noted yet: %s", self._name, error)
            except Exception:
                log.exception("since when %s lacks events can't be noted yet", self._name)


def beside(
    kafka: Settings,
    streams: Mapping[str, Stream],
    trace: TraceSettings,
    settings: VendorSettings,
    letters: Letters,
    jobs: Jobs,
    board: Board,
    *,
    skip_lost: bool = False,
    raw_url: str | None = None,
) -> Beside:
    """One vendor's; at `raw_url` is the table of raw events. Raises VendorError, TraceError."""
    name, stream, budget = settings.name, streams["raw_events"], Budget()
    # Of the requests under way at a time half are for what is live.
    engine = replace(settings.engine, concurrency=max(1, settings.engine.concurrency // 2))
    yielding = replace(settings, engine=engine)

    def target(job: Job) -> Target:
        return vendor_target(kafka, streams, trace, yielding, job, budget)

    since = Since(kafka, forwarder_group(name), stream.topic)
    live = runner(
        kafka, streams, trace, settings, letters, skip_lost=skip_lost, budget=budget,
        keep=Keeper(jobs, name, stream, since.of),
    )  # fmt: skip
    raw = None if raw_url is None else Raw(raw_url, lambda: open_table(raw_url, streams))
    filling = Filling(kafka, streams, name, jobs, board, target, skip_lost=skip_lost, raw=raw)
    return Beside(name, live, filling, since)
