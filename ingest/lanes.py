"""A Publisher's lanes: which one its address means, and what is asked of all of them.

publish and publish_many travel in two lanes, two librdkafka producers: a report per record costs a
fifth of the speed of ready bytes, and `delivery.report.only.error` is set per producer. The order
of a key is kept within each. A spool, or a collector's socket, has one lane for all.

All three live on threads, and a forked child has none of them: there the lanes only raise.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from confluent_kafka import KafkaError, KafkaException

from ingest.delivery import CallingDelivery, Delivery, PublishError
from ingest.lane import KafkaLane
from ingest.settings import SettingError, Settings, check_for_socket, for_publisher, refused
from ingest.streams import Stream

if TYPE_CHECKING:
    from ingest.socket_lane import SocketLane
    from ingest.spool.lane import SpoolLane

    Lane = KafkaLane | SpoolLane | SocketLane

__all__ = ["Lanes", "queue_all"]

# Records in one call of produce_batch: large enough to share its cost, small enough that the
# dicts stay in the cache.
_SLICE = 1_000

_open: weakref.WeakSet[Lanes] = weakref.WeakSet()
# The parent's, after a fork. To be collected would mean to close its files, or to wait for threads.
_inherited: list[Lanes] = []


class Lanes:
    """What a Publisher was given, opened. Raises SettingError, SpoolError.

    `first` takes records with a Delivery, of the class `plain`, or `calling` with a callback.
    """

    def __init__(
        self, address: str, given: Settings, spool: Path | str | None, key: str | None
    ) -> None:
        self._config = for_publisher(address, given)
        self.plain: type[Delivery] = Delivery
        self.calling: type[CallingDelivery] = CallingDelivery
        self._bulk: KafkaLane | None = None
        # Threads share a Publisher, and of two lanes of ready bytes only one would be flushed.
        self._opening = threading.RLock()  # a signal handler may close what is being opened
        self._socket: SocketLane | None = None
        self._closed = False
        self._is_parents = False
        self.first: Lane
        if address.startswith("unix:"):
            if spool is not None:
                raise SettingError(
                    "spool= goes with Kafka's address: a collector behind a socket has a spool "
                    "itself"
                )
            check_for_socket(given)
            if not hasattr(select, "poll"):
                _refuse_greenlets("a socket needs select.poll(), which that takes away")
            # Not at the top, as below: most publishers have none.
            from ingest.socket_delivery import CallingSocketDelivery, SocketDelivery
            from ingest.socket_lane import SocketLane

            self.plain, self.calling = SocketDelivery, CallingSocketDelivery
            self.first = self._socket = SocketLane(address, self._config, key or "")
        elif key is not None:
            raise SettingError("a key is a collector's; Kafka's credentials are settings: sasl.…")
        elif spool is None:
            self.first = self._open({})
        else:
            # librdkafka waits where no greenlet can step in: half a minute while Kafka is away.
            _refuse_greenlets("what sends a spool= would stop all of them while it waits for Kafka")
            from ingest.spool.lane import CallingSpooledDelivery, SpooledDelivery, SpoolLane

            self.plain, self.calling = SpooledDelivery, CallingSpooledDelivery
            self.first = SpoolLane(spool, self._config)
        _open.add(self)

    @property
    def most_bytes(self) -> int:
        """Of one record with its key."""
        return int(self._config["message.max.bytes"])

    def declare(self, stream: Stream) -> None:
        """Records are for this stream. Raises SettingError where a socket can't tell two apart."""
        if self._socket is not None:
            self._socket.declare(stream)

    def bulk(self) -> Lane:
        """The lane of ready bytes. Raises PublishError when it is closed before it was needed."""
        if self._is_parents:
            _elsewhere()
        if not isinstance(self.first, KafkaLane):
            return self.first
        with self._opening:
            if self._bulk is None:
                if self._closed:
                    raise PublishError("the publisher is closed")
                self._bulk = self._open({"delivery.report.only.error": True})
            return self._bulk

    def all(self) -> list[Lane]:
        """Those that are open."""
        return [lane for lane in (self.first, self._bulk) if lane is not None]

    def flush(self, timeout_s: float | None) -> None:
        """Each of them, within one time for all. Raises PublishError when all are done."""
        if self._is_parents:
            _elsewhere()
        since = time.monotonic()
        steps = [lambda: self.first.flush(timeout_s)]
        if (bulk := self._bulk) is not None:
            steps.append(lambda: bulk.flush(timeout_s, since))
        _each(steps)

    def close(self, timeout_s: float | None) -> None:
        """The same; no other is opened. Nothing, in a forked child: it could give them nothing."""
        if self._is_parents:
            return
        with self._opening:
            self._closed = True
        since = time.monotonic()
        steps = [lambda: self.first.close(timeout_s)]
        if (bulk := self._bulk) is not None:
            steps.append(lambda: bulk.close(timeout_s, since))
        _each(steps)

    def abandon(self) -> int:
        """Let go of all at once: how many records may be lost.

        At the end of the program their threads are gone, and since Python 3.13 to join one of them
        would wait for ever.
        """
        if self._is_parents:
            return 0
        lost = 0
        for lane in self.all():
            with contextlib.suppress(Exception):
                lane.poll(0)
            lost += lane.unanswered()
            if not sys.is_finalizing():
                lane.abandon()
        return lost

    def leave_to_parent(self) -> None:
        """In a forked child: what would wait for a thread, or give it something, raises instead."""
        self._is_parents = True
        _inherited.append(self)
        for lane in self.all():
            for name in ("produce", "batch", "poll", "wait_for_room", "wait_until"):
                setattr(lane, name, _elsewhere)

    def _open(self, more: Mapping[str, Any]) -> KafkaLane:
        try:
            return KafkaLane({**self._config, **more})
        except KafkaException as error:
            raise refused(error) from error


def _refuse_greenlets(why: str) -> None:
    """SettingError in a process whose threads gevent or eventlet has replaced."""
    # By name: a debugger has one of its own, too, and starts real threads with it.
    maker = _thread.start_new_thread.__module__
    if maker.startswith(("gevent.", "eventlet.")):
        raise SettingError(
            f"this process's threads are those of {maker}, and {why}. Run it with real threads, as "
            "gunicorn's gthread, or take an address that suits it: docs/sdks.md, gevent"
        )


def _each(steps: Sequence[Callable[[], None]]) -> None:
    failures = []
    for step in steps:
        try:
            step()
        except PublishError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise PublishError("; ".join(map(str, failures)), failures[0].error)


def queue_all(lane: Lane, topic: str, values: Sequence[bytes], keys: Sequence[bytes]) -> None:
    """Queue `values[i]` under `keys[i]`; waits while the queue is full. Raises PublishError."""
    for start in range(0, len(values), _SLICE):
        end = start + _SLICE
        records = [
            {"value": value, "key": key}
            for value, key in zip(values[start:end], keys[start:end], strict=True)
        ]
        while records:
            queued = lane.batch(topic, records, -1, lane.report)
            lane.queued += queued
            lane.poll(0)
            if queued == len(records):
                break
            records = _not_queued(lane, topic, records)


def _not_queued(lane: Lane, topic: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """After a batch that was not queued whole: count what never will be, return what to try again.

    librdkafka stops at a full queue, so the rest is tried in its order once there is room.
    """
    again = []
    for record in records:
        error: KafkaError | None = record.pop("_error", None)
        if error is None:
            continue
        if error.code() == KafkaError._QUEUE_FULL:
            again.append(record)
        elif error.fatal() or error.code() == KafkaError._FATAL:
            raise lane.translate(topic, KafkaException(error))
        else:
            lane.queued += 1
            lane.count_failure(topic, error)
    if again:
        lane.wait_for_room()
    return again


def _elsewhere(*_: Any, **__: Any) -> NoReturn:
    raise PublishError(
        "this Publisher is the parent's: after a fork its threads are not here, and nothing would "
        "be sent. Make a Publisher of its own after the fork, with a spool of its own if it has one"
    )


def _in_child() -> None:
    for lanes in list(_open):
        lanes.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
