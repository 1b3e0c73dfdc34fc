"""From records to "they are on disk": the way of a request into the spool and back to the loop.

Everything here runs in the event loop's thread, but for the two calls that come from the spool's
writer and from the relay; each of those only wakes the loop.

    store      what came during one turn of the loop, and during those behind it while each brings
               more, is one append. A small one is committed here, in the loop, while the disk is
               quick: the way to the spool's writer and back takes longer than the commit, for all
               share one interpreter's lock. A large one, and all of a slow disk, are the writer's,
               and the loop goes on meanwhile; what comes by then is the next append
    answer     one wake-up a commit, not one a request: it resolves the futures of all

A request that waits for Kafka waits for a position: once its records are on disk, all numbers below
`next_seq` are given out, so that is where the relay must get to. For an id that was taken before
this is later than need be, and right; where another worker took it, that one's spool is looked at.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from ingest.collector import metrics
from ingest.spool.errors import SpoolError
from ingest.spool.frames import Record
from ingest.spool.reader import Reader, State
from ingest.spool.writer import Ticket

__all__ = ["Acks", "Appends", "Place"]

# Records that are committed in the loop: 256 take 2 to 3 ms.
_SMALL = 256
# A disk is slow when its commits take longer than a checkpoint (3 ms) and a little on average, in
# seconds; the latest counts an eighth, for one in a thousand takes 15 ms on a good one. The loop
# leaves a slow disk alone for so many times as long as it took, a minute at most: it stands still
# for a hundredth of the time.
_SLOW_S = 0.010
_LATEST = 1 / 8
_ALONE = 100
_LONGEST_ALONE_S = 60.0
# How often the time to Kafka is sampled, and how many samples wait for it at most.
_SAMPLE_S = 0.1
_SAMPLES = 10_000
# How often another worker's position is looked at, by who waits for Kafka.
_LOOK_S = 0.05
# Waits for Kafka that timed out and are still in the heap, before it is swept.
_GIVEN_UP = 1_000


class Appends(Protocol):
    """What is needed of a Spool."""

    @property
    def state(self) -> State: ...
    def append(
        self, records: Sequence[Record], on_done: Callable[[Ticket], object] | None = None
    ) -> Ticket: ...
    def append_now(self, records: Sequence[Record]) -> int | None: ...


class Place(NamedTuple):
    """Where records are, once they are on disk."""

    # Behind them.
    position: int
    # The same for those that other spools of the node hold.
    elsewhere: Mapping[Path, int]


# What is to be stored, and who waits for it.
_Request = tuple[list[Record], asyncio.Future[Place]]


class Acks:
    """One for each event loop."""

    def __init__(self, spool: Appends, loop: asyncio.AbstractEventLoop) -> None:
        self._spool = spool
        self._loop = loop
        self._waiting: list[_Request] = []
        self._under_way = 0
        # What a commit in the loop takes on average, and until when there is to be none.
        self._usual_s = 0.0
        self._slow_until = 0.0
        self._scheduled = False
        # How many waited a turn ago.
        self._gathered = 0
        # By position: who waits for Kafka. The number keeps futures from being compared.
        self._for_kafka: list[tuple[int, int, asyncio.Future[bool]]] = []
        self._given_up = 0
        self._giving_up = False
        self._number = 0
        self._samples: deque[tuple[int, float]] = deque()
        self.position = -1
        # Why the last append was refused; None while appends succeed.
        self.refusing: SpoolError | None = None

    def store(self, records: list[Record]) -> asyncio.Future[Place]:
        """A future of the records' being on disk, or SpoolError. Without any it asks the disk."""
        done: asyncio.Future[Place] = self._loop.create_future()
        self._waiting.append((records, done))
        if not self._scheduled and not self._under_way:
            self._scheduled = True
            self._loop.call_soon(self._append_all)
        return done

    async def in_kafka(self, place: Place, timeout_s: float) -> bool:
        """Wait until they are in Kafka, committed; False after the time."""
        deadline = self._loop.time() + timeout_s
        if not await self._reached(place.position, timeout_s):
            return False
        for folder, position in place.elsewhere.items():
            while await asyncio.to_thread(_position_of, folder) < position:
                if self._giving_up or self._loop.time() >= deadline:
                    return False
                await asyncio.sleep(_LOOK_S)
        return True

    def _reached(self, position: int, timeout_s: float) -> asyncio.Future[bool]:
        done: asyncio.Future[bool] = self._loop.create_future()
        if self.position >= position:
            done.set_result(True)
            return done
        self._number += 1
        heapq.heappush(self._for_kafka, (position, self._number, done))
        timer = self._loop.call_later(timeout_s, self._too_late, done)
        done.add_done_callback(lambda _: timer.cancel())
        return done

    def give_up(self) -> None:
        """Whoever waits for Kafka is told that its time is over."""
        self._giving_up = True
        for _, _, done in self._for_kafka:
            if not done.done():
                done.set_result(False)

    def moved(self, position: int) -> None:
        """Relay.on_moved: called by the relay's thread."""
        self._loop.call_soon_threadsafe(self._moved, position)

    # -- in the loop

    def _append_all(self) -> None:
        came = len(self._waiting)
        if self._gathered < came < _SMALL:
            # The turn brought more, and so may the next: a commit has a fixed price.
            self._gathered = came
            self._loop.call_soon(self._append_all)
            return
        self._gathered = 0
        self._scheduled = False
        requests, self._waiting = self._waiting, []
        if requests:
            self._append(requests)

    def _append(self, requests: list[_Request]) -> None:
        records = (
            requests[0][0]
            if len(requests) == 1
            else [record for records, _ in requests for record in records]
        )
        begun = time.perf_counter()
        call = self._loop.call_soon_threadsafe

        def on_done(ticket: Ticket) -> None:
            # In the writer's thread, behind the commit: all below next_seq is on disk.
            place = Place(self._spool.state.next_seq, ticket.elsewhere)
            call(self._appended, requests, ticket, place, begun)

        stored: int | None = None
        try:
            if len(records) <= _SMALL and begun >= self._slow_until:
                stored = self._append_here(records)
            if stored is None:
                self._spool.append(records, on_done)
        except Exception as error:
            # Whatever it is: nobody may wait for an answer that does not come.
            self._failed(requests, error)
            return
        # Out of the try: what goes wrong behind a commit must not make another one of it.
        if stored is None:
            self._under_way += 1
        else:
            taken = time.perf_counter() - begun
            self._stored(requests, stored, Place(self._spool.state.next_seq, {}), taken)

    def _append_here(self, records: list[Record]) -> int | None:
        """Spool.append_now, and whether the disk is slow; one that fails may be slow about it."""
        begun = time.perf_counter()
        try:
            return self._spool.append_now(records)
        finally:
            now = time.perf_counter()
            self._usual_s += _LATEST * (now - begun - self._usual_s)
            if self._usual_s > _SLOW_S:
                self._slow_until = now + min(_LONGEST_ALONE_S, _ALONE * (now - begun))

    def _appended(
        self, requests: list[_Request], ticket: Ticket, place: Place, begun: float
    ) -> None:
        self._under_way -= 1
        if ticket.error is None:
            self._stored(requests, ticket.stored, place, time.perf_counter() - begun)
        else:
            self._failed(requests, ticket.error)
        if self._waiting and not self._scheduled and not self._under_way:
            self._scheduled = True
            self._loop.call_soon(self._append_all)

    def _stored(self, requests: list[_Request], stored: int, place: Place, seconds: float) -> None:
        # Of records that were all there before nothing is written: that says nothing of the disk.
        if stored or not any(records for records, _ in requests):
            self.refusing = None
        for _, done in requests:
            if not done.done():
                done.set_result(place)
        metrics.WAIT_SECONDS.observe(seconds)
        metrics.STORED.inc(stored)
        self._sample(place.position)

    def _failed(self, requests: list[_Request], error: Exception) -> None:
        if len(requests) > 1:
            # An append is whole or not at all: what one of them is refused for is not the others'.
            for request in requests:
                self._append([request])
            return
        if isinstance(error, SpoolError):
            self.refusing = error
        done = requests[0][1]
        if not done.done():
            done.set_exception(error)

    def _moved(self, position: int) -> None:
        self.position = max(self.position, position)
        waiting = self._for_kafka
        while waiting and waiting[0][0] <= position:
            done = heapq.heappop(waiting)[2]
            if not done.done():
                done.set_result(True)
        now = time.monotonic()
        samples = self._samples
        while samples and samples[0][0] <= position:
            metrics.KAFKA_SECONDS.observe(now - samples.popleft()[1])

    def _too_late(self, done: asyncio.Future[bool]) -> None:
        if done.done():
            return
        done.set_result(False)
        self._given_up += 1
        # While Kafka is away nobody takes them out.
        if self._given_up > _GIVEN_UP and 2 * self._given_up > len(self._for_kafka):
            self._for_kafka = [entry for entry in self._for_kafka if not entry[2].done()]
            heapq.heapify(self._for_kafka)
            self._given_up = 0

    def _sample(self, position: int) -> None:
        now = time.monotonic()
        samples = self._samples
        if len(samples) < _SAMPLES and (not samples or now - samples[-1][1] >= _SAMPLE_S):
            samples.append((position, now))


def _position_of(folder: Path) -> int:
    """How far another worker's relay is; -1 where that can't be told now."""
    try:
        reader = Reader(folder)
        try:
            return reader.state().position
        finally:
            reader.close()
    except SpoolError:
        return -1
