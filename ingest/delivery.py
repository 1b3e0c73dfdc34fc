"""What became of one published record: a future at a fraction of the cost of a `Future`.

librdkafka reports each record once, in whichever thread polls. So a Delivery needs no lock and no
condition: the report writes the offset and then the partition, which is the state; readers read
the state first, and `result()` polls until it is there. Nor has it a constructor: what the records
of a route share its own class knows (`of`), and a slot that nothing was written to means pending.
Half the cost of making one, and half the memory.

The report itself must never raise (the exception would come out of somebody's poll) and must never
poll (confluent-kafka keeps one call state per thread; a nested poll loses the outer one). So the
user's callback is not run in it: the Delivery queues itself, and the lane runs it after its poll.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, Self, cast

from confluent_kafka import KafkaError

__all__ = ["Callbacks", "CallingDelivery", "Coordinates", "Delivery", "Lane", "PublishError"]

_log = logging.getLogger("headrace.publisher")

# While waiting, how long one poll may sleep: another thread may take the report meanwhile.
_SLICE_S = 0.02

_FAILED = -2


class PublishError(Exception):
    """Records that were given to a publisher are not, or not known to be, in Kafka.

    The text says how many, why, and what to do. `error` is librdkafka's reason where there is one.
    Never publish the same record again by hand after a time-out: it may be in the log already, and
    would then be there twice.
    """

    def __init__(self, text: str, error: KafkaError | None = None) -> None:
        super().__init__(text)
        self.error = error


class Coordinates(NamedTuple):
    """Where an acknowledged record is. `offset` is -1 where Kafka had it already from an earlier
    attempt and didn't say where."""

    topic: str
    partition: int
    offset: int


class Lane(Protocol):
    """What a Delivery needs of the lane it travels in, see ingest/lane.py."""

    @property
    def ready(self) -> Callbacks:
        """Deliveries whose callback is to be run."""

    def poll(self, timeout_s: float) -> None: ...
    def outstanding(self) -> int: ...
    def explain(self, topic: str, error: KafkaError) -> PublishError: ...
    def count_failure(self, topic: str, error: KafkaError) -> None: ...


class Route(Protocol):
    """What the deliveries of one topic share."""

    @property
    def lane(self) -> Lane: ...
    @property
    def topic(self) -> str: ...


class Delivery:
    """The delivery of one record; made by `Publisher.publish`, usable from any thread."""

    __slots__ = ("_outcome", "_partition")

    _route: ClassVar[Route]
    _outcome: int | KafkaError  # the offset, or why there is none
    _partition: int  # of an acknowledged record, or _FAILED

    @classmethod
    def of(cls, route: Route) -> type[Self]:
        """The class of this route's deliveries."""
        return cast("type[Self]", type(cls.__name__, (cls,), {"__slots__": (), "_route": route}))

    def __call__(self, error: KafkaError | None, message: Any) -> None:
        """librdkafka's report."""
        if error is None:
            self._outcome = message.offset()
            self._partition = message.partition()
        else:
            self._outcome = error
            self._route.lane.count_failure(self.topic, error)
            self._partition = _FAILED

    @property
    def topic(self) -> str:
        """The record's topic."""
        return self._route.topic

    def done(self) -> bool:
        """Whether Kafka has acknowledged or refused the record. Serves reports, does not wait."""
        if not self._answered():
            self._route.lane.poll(0)
        return self._answered()

    def result(self, timeout: float | None = None) -> Coordinates:
        """Wait for the acknowledgement, at most `timeout` seconds, and say where the record is.

        Makes progress by itself: nobody else needs to poll. Raises PublishError when Kafka refused
        the record, TimeoutError when there is no answer yet (it may still come).
        """
        lane = self._route.lane
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._answered():
            left = _SLICE_S if deadline is None else deadline - time.monotonic()
            nothing_left = not lane.outstanding()
            lane.poll(max(0.0, min(_SLICE_S, left)))
            if self._answered():
                break
            if nothing_left:
                # Ctrl-C hit the very report of this record: the one way to lose an answer.
                raise PublishError(
                    f"the answer about a record of topic {self.topic} was lost to an interrupt; "
                    "it may or may not be in Kafka"
                )
            if left <= 0:
                raise TimeoutError(f"no answer about a record of topic {self.topic} yet")
        if (failure := self.exception()) is not None:
            raise failure
        assert isinstance(self._outcome, int)  # noqa: S101 (for mypy)
        return Coordinates(self.topic, self._partition, self._outcome)

    def exception(self) -> PublishError | None:
        """Why it failed; None when it was acknowledged, and while there is no answer."""
        if not self._answered() or self._partition != _FAILED:
            return None
        assert isinstance(self._outcome, KafkaError)  # noqa: S101 (for mypy)
        return self._route.lane.explain(self.topic, self._outcome)

    def _answered(self) -> bool:
        return hasattr(self, "_partition")


class CallingDelivery(Delivery):
    """A Delivery with a callback, which the lane runs once it is done."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[Delivery], object]) -> None:
        self._callback = callback

    def __call__(self, error: KafkaError | None, message: Any) -> None:
        """librdkafka's report."""
        super().__call__(error, message)
        self._route.lane.ready.add(self)

    def call_back(self) -> None:
        """Run the callback; what it raises goes to the log."""
        try:
            self._callback(self)
        except Exception:
            _log.exception("the on_delivery callback of a record of topic %s raised", self.topic)


class Callbacks:
    """The deliveries whose callbacks are due, in order; threads share it."""

    __slots__ = ("_due", "_gate", "add", "extend", "take")

    def __init__(self) -> None:
        self._due: deque[CallingDelivery] = deque()
        self.add = self._due.append
        self.extend = self._due.extend
        self.take = self._due.popleft
        self._gate = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._due)

    def run(self) -> None:
        """Run them; one at a time, also where several threads poll."""
        while self._due:
            # Not blocking: a callback that publishes or waits comes by here again.
            if not self._gate.acquire(blocking=False):
                return
            try:
                while self._due:
                    self._due.popleft().call_back()
            finally:
                self._gate.release()
