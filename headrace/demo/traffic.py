"""What is published: the reports of the fleet, and the synthetic tests that a tenth of it runs.

Everything goes through the product's Publisher, and what counts as published is what Kafka has
acknowledged. Beside the count an order-independent sum over the records is kept, which what is read
back from Kafka later must give again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from headrace.demo.model import EVERY_S, DemoError, Settings
from headrace.demo.place import Place
from headrace.fleet import Records
from headrace.simulate import STREAMS, Fleet
from ingest.publisher import Publisher, PublishError

__all__ = ["Background", "Tally", "Traffic"]

_FLUSH_S = 60.0
_BATCH = 10_000
_TEN_MINUTES_S = 600


class Tally:
    """How many records, and the sum of their hashes modulo 2**64.

    Two tallies are equal when the same records went into both, in any order: a lost one and a
    doubled one do not cancel out. To be compared within one process only: so is Python's `hash`.
    """

    __slots__ = ("count", "total")

    def __init__(self) -> None:
        self.count = self.total = 0

    def add(self, values: list[bytes]) -> None:
        """Take these in."""
        self.count += len(values)
        self.total = (self.total + sum(map(hash, values))) % 2**64

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tally) and (self.count, self.total) == (other.count, other.total)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Tally({self.count}, {self.total:016x})"


class Traffic:
    """The publishers, one for each stream, since each counts all that it is given together."""

    def __init__(self, place: Place, settings: Settings) -> None:
        until_s = int(time.time()) // _TEN_MINUTES_S * _TEN_MINUTES_S
        begin_us, end_us = (until_s - settings.hours * 3600) * 1_000_000, until_s * 1_000_000
        fleet = Fleet(settings.devices, EVERY_S, begin_us, end_us)
        # Tests are as many bytes as reports and slower to make up: a tenth of the devices do them.
        testers = Fleet(max(1, settings.devices // 10), EVERY_S, begin_us, end_us, seed=2)
        self.expected = {
            name: (fleet if name == "device_state" else testers).expected(name) for name in STREAMS
        }
        self.tallies = {name: Tally() for name in STREAMS}
        self._live_s = settings.live_s
        self._half = self.expected["device_state"] // 2
        # A tenth of a second's worth at the pace of the first half, so that it is smooth.
        self._size = max(1, min(_BATCH, int(self._half / settings.live_s / 10)))
        self._reports = fleet.batches(self._size)
        self._tests = testers.batches(self._size, STREAMS[1:])
        self._publishers = {
            name: Publisher(place.bootstrap, streams=place.config.streams) for name in STREAMS
        }
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        for publisher in self._publishers.values():
            # Everything was flushed and counted before; what is left after an error is given up.
            with suppress(PublishError):
                publisher.close(0.0)

    @property
    def total(self) -> int:
        """Records of all streams in the end."""
        return sum(self.expected.values())

    @property
    def acknowledged(self) -> dict[str, int]:
        """By stream."""
        return {name: publisher.acknowledged for name, publisher in self._publishers.items()}

    def live(self) -> None:
        """Publish the first half, in `live_s` seconds."""
        began = time.monotonic()
        for sent in self._publish(lambda sent: sent >= self._half):
            early = began + self._live_s * sent / self._half - time.monotonic()
            if early > 0 and self._stopped.wait(early):
                return
        self._flush()

    def burst(self) -> None:
        """Publish the rest as fast as it goes."""
        for _sent in self._publish(lambda _sent: False):
            pass
        self._flush()

    def _publish(self, enough: Callable[[int], bool]) -> Iterator[int]:
        """Publish until it is enough; yields how many reports are out after each batch."""
        reports = self.tallies["device_state"]
        tests = self.total - self.expected["device_state"]
        sent = reports.count
        tested = sum(self.tallies[name].count for name in STREAMS[1:])
        while not self._stopped.is_set() and not enough(sent):
            batch = next(self._reports, None)
            if batch is not None:
                self._send(batch)
                sent = reports.count
            # Tests keep step with the reports.
            while tested * self.expected["device_state"] < tests * sent and tested < tests:
                some = next(self._tests)
                self._send(some)
                tested += len(some.values)
            yield sent
            if batch is None:
                return

    def _send(self, records: Records) -> None:
        self._publishers[records.stream].publish_many(records.stream, records.values, records.keys)
        self.tallies[records.stream].add(records.values)

    def _flush(self) -> None:
        for publisher in self._publishers.values():
            publisher.flush(_FLUSH_S)


class Background:
    """A function on a thread of its own; `check` raises what it raised."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._error: BaseException | None = None
        self.took_s = 0.0
        self._thread = threading.Thread(target=self._run, name="demo-publish", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait for its end, so long at most."""
        self._thread.join(seconds)

    def check(self) -> None:
        """Raises DemoError for what Kafka did not acknowledge, and whatever else went wrong."""
        if isinstance(self._error, PublishError):
            raise DemoError(f"publishing failed: {self._error}") from self._error
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self._act()
        except BaseException as error:
            self._error = error
        self.took_s = time.monotonic() - began
