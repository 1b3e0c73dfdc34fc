"""What became of a record that went through a collector's socket: its number against the answers.

Answers are cumulative, so a Delivery need not be told of one: it compares its number. Where in
Kafka the record will be is not known when it is on the collector's disk, so its coordinates have -1
for partition and offset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from confluent_kafka import KafkaError

from ingest.delivery import CallingDelivery, Coordinates, Delivery, PublishError
from ingest.socket_outbox import Outbox

__all__ = ["CallingSocketDelivery", "SocketDelivery"]


class Answering(Protocol):
    """What is needed of a SocketLane."""

    outbox: Outbox

    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool: ...
    def explain(self, topic: str, error: KafkaError) -> PublishError: ...


class SocketDelivery(Delivery):
    """The delivery of one record to the collector's disk."""

    # `_outcome` is the record's number, and a KafkaError once it has failed.
    __slots__ = ()

    calls_back = False

    def number(self, seq: int) -> None:
        """The outbox's word."""
        self._outcome = seq

    def fail(self, reason: str) -> None:
        """The lane's word."""
        self._outcome = KafkaError(KafkaError._FAIL, reason)

    def done(self) -> bool:
        """Whether the collector has answered."""
        outcome = self._outcome
        return not isinstance(outcome, int) or outcome <= self._socket.outbox.answered

    def result(self, timeout: float | None = None) -> Coordinates:
        """Topic, -1, -1 once the record is on the collector's disk.

        Raises PublishError when it was refused, TimeoutError when there is no answer yet.
        """
        if not self.done() and not self._socket.wait_until(self.done, timeout):
            raise TimeoutError(f"no answer about a record of topic {self.topic} yet")
        if (failure := self.exception()) is not None:
            raise failure
        return Coordinates(self.topic, -1, -1)

    def exception(self) -> PublishError | None:
        """Why it failed; None when it was acknowledged, and while there is no answer."""
        outcome = self._outcome
        return None if isinstance(outcome, int) else self._socket.explain(self.topic, outcome)

    @property
    def _socket(self) -> Answering:
        # A SocketLane makes its records' deliveries of this class, and no other does.
        return cast("Answering", self._route.lane)


class CallingSocketDelivery(SocketDelivery, CallingDelivery):
    """The same with a callback, which a thread of its own runs."""

    __slots__ = ()

    calls_back = True
