"""Publisher: typed messages in, acknowledgements out; what it accepts, Kafka gets exactly once.

    publish         checks one message, gives back its Delivery (a future), may call back
    publish_many    ready bytes and keys at the speed of librdkafka's own batch call
    flush           waits for every acknowledgement, raises if one is missing

Rules:

* `acks=all` and an idempotent producer: within one Publisher librdkafka retries without doubling
  and keeps the order of a key. Nothing is ever produced again by hand: a time-out leaves open
  whether the record is in the log (FACTS E1). So `delivery.timeout.ms` is 0, for ever, and it is
  the waiting caller who gives up (`flush(timeout)`, `result(timeout)`), not the record.
* Memory is bounded by `queue.buffering.max.messages` and `.kbytes`; when they are reached, publish
  blocks the caller and nothing is dropped.
* What can't be stored is refused before it is sent, see ingest/admission.py.
* Keys go to partitions as Java's producer sends them (murmur2).
* With `spool=DIR` accepted means on disk, synced: publish returns then, and a relay brings it to
  Kafka exactly once, also after a crash (ingest/spool/lane.py says what differs).
* Instead of Kafka's address it takes a collector's, "unix:PATH": an acknowledgement then means on
  that collector's disk (ingest/socket_lane.py says what differs).

publish and publish_many travel in two lanes, two librdkafka producers: a report per record costs a
fifth of the speed of ready bytes, and `delivery.report.only.error` is set per producer. The order
of a key is kept within each; flush() between them keeps it across. Who polls: see ingest/lane.py.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from confluent_kafka import KafkaError, KafkaException
from google.protobuf.message import Message

from ingest.admission import Admission, Refused
from ingest.delivery import CallingDelivery, Coordinates, Delivery, PublishError
from ingest.lane import POLL_EVERY, KafkaLane
from ingest.mapping import mapper
from ingest.scalars import RecordError
from ingest.settings import SettingError, Settings, for_publisher, refused
from ingest.streams import BUILT_IN, Stream

if TYPE_CHECKING:
    from ingest.socket_lane import SocketLane
    from ingest.spool.lane import SpoolLane

    _Lane = KafkaLane | SpoolLane | SocketLane

__all__ = [
    "Coordinates", "Delivery", "PublishError", "Publisher", "RecordError", "Refused",
    "SettingError",
]  # fmt: skip

_log = logging.getLogger("headrace.publisher")

# Records in one call of produce_batch: large enough to share its cost, small enough that the
# dicts stay in the cache.
_SLICE = 1_000


class Publisher:
    """Publishes to the topics of streams. Threads may share one.

    `streams` are those that can be named by text; `config` is further librdkafka settings, and may
    not break the promise (SettingError, a ValueError). As a context manager it flushes when it is
    left, also by an exception, and raises PublishError for what Kafka did not acknowledge.

    `spool` is a directory that one process at a time may use. With it publish() and publish_many()
    return when the records are on disk, whether or not Kafka is there, and raise SpoolFull (a
    PublishError) where the disk or the spool's limit is reached. flush() waits for Kafka as ever;
    close() waits 5 s at most unless told otherwise, and what is then still on disk is sent by the
    next Publisher with that directory, or by `headrace spool drain`.

    "unix:/run/headrace.sock" publishes to the collector that listens there, which may have given
    out a `key`. A record is acknowledged when that has it on disk; `config` takes the bounds of the
    queue and message.max.bytes.

    >>> with Publisher("localhost:9092") as publisher:      # doctest: +SKIP
    ...     publisher.publish("device_state", {"deviceId": "…", "timestamp": "…"}).result()
    Coordinates(topic='device_state', partition=1, offset=0)
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        streams: Mapping[str, Stream] = BUILT_IN,
        config: Settings | None = None,
        spool: Path | str | None = None,
        key: str | None = None,
    ) -> None:
        self._config = for_publisher(bootstrap_servers, config or {})
        self._spool = spool
        self._streams = streams
        self._routes: dict[str | int, _Route] = {}
        self._closed = False
        self._bulk_lane: _Lane | None = None
        self._socket: SocketLane | None = None
        self._plain: type[Delivery] = Delivery
        self._calling: type[CallingDelivery] = CallingDelivery
        self._lane: _Lane
        if bootstrap_servers.startswith("unix:"):
            self._lane = self._socket = self._open_socket(
                bootstrap_servers, config or {}, key or ""
            )
        elif key is not None:
            raise SettingError("a key is a collector's; Kafka's credentials are settings: sasl.…")
        elif spool is None:
            self._lane = self._open({})
        else:
            # Not at the top: most publishers have none.
            from ingest.spool.lane import CallingSpooledDelivery, SpooledDelivery, SpoolLane

            self._plain, self._calling = SpooledDelivery, CallingSpooledDelivery
            self._lane = SpoolLane(spool, self._config)

    def publish(
        self,
        stream: str | Stream,
        message: Message | Mapping[str, Any] | bytes,
        *,
        on_delivery: Callable[[Delivery], object] | None = None,
    ) -> Delivery:
        """Queue one message and return its Delivery; blocks while the queue is full.

        `message` is of the stream's message class, a mapping in JSON field names (as `headrace
        publish` reads them), or serialised bytes, which are parsed to be checked. `on_delivery` is
        called once with the Delivery, when that is done, by a thread that polls; it may publish,
        and what it raises goes to the log.

        Raises RecordError (a ValueError with `field` and `reason`) when a mapping does not fit the
        message, and its subclass Refused when the stream can't hold it; KeyError for a stream that
        is not declared; PublishError when the publisher is closed, Kafka refuses at once, or a
        fatal error came before.
        """
        route = self._routes.get(stream if type(stream) is str else id(stream))
        if route is None:
            route = self._route(stream)
        if type(message) is not route.cls:
            message = route.convert(message)
        key, value = route.admit(message)
        lane = route.lane
        delivery = self._plain(route) if on_delivery is None else self._calling(route, on_delivery)
        while True:
            try:
                lane.produce(route.topic, value, key, -1, delivery)
                break
            except BufferError:
                lane.wait_for_room()
            except KafkaException as error:
                if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise self._oversize(value, key) from None
                raise lane.translate(route.topic, error) from None
        lane.queued = queued = lane.queued + 1
        if not queued % POLL_EVERY:
            lane.poll(0)
        if on_delivery is not None:
            lane.attend()
        return delivery

    def publish_many(
        self, stream: str | Stream, values: Sequence[bytes], keys: Sequence[bytes]
    ) -> None:
        """Queue ready messages, `values[i]` under `keys[i]`; blocks while the queue is full.

        For bytes that are known to be messages of the stream: they are not looked at. What Kafka
        does not take (also a value over message.max.bytes) is counted in `failed` and raised by
        the next flush(). Raises ValueError when the two differ in length, PublishError as
        publish().
        """
        if len(values) != len(keys):
            raise ValueError(f"{len(values)} values but {len(keys)} keys")
        topic = self._stream(stream).topic
        lane = self._bulk()
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

    def flush(self, timeout: float | None = None) -> None:
        """Wait until Kafka has answered for every record, at most `timeout` seconds.

        Returns when all are acknowledged. Raises PublishError with how many are not and why: those
        that failed since the last flush, or those without an answer when the time is over (which
        stay queued, and may still be acknowledged). Without a timeout it waits as long as Kafka is
        away, with a warning in the log every 10 s.
        """
        self._each_lane(lambda lane: lane.flush(timeout))

    def close(self, timeout: float | None = None) -> None:
        """Flush, then let go of the connection; what then is not acknowledged is given up.

        Raises PublishError as flush() does. Closing twice is harmless.
        """
        self._closed = True
        self._each_lane(lambda lane: lane.close(timeout))

    @property
    def published(self) -> int:
        """Records that were accepted."""
        return sum(lane.queued for lane in self._lanes())

    @property
    def acknowledged(self) -> int:
        """Records that Kafka has acknowledged; may lag behind, never ahead. Serves reports."""
        total = 0
        for lane in self._lanes():
            lane.poll(0)
            # In this order: a record queued in between makes the figure smaller, not larger.
            queued = lane.queued
            total += max(0, queued - lane.outstanding() - lane.failed)
        return total

    @property
    def failed(self) -> int:
        """Records that Kafka, or closing, has finally refused."""
        return sum(lane.failed for lane in self._lanes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except PublishError as failure:
            if error is None or isinstance(error, Exception):
                raise  # Python chains it to the body's error
            # Ctrl-C and exit stay what they are, and say what they left behind.
            error.add_note(str(failure))

    def __del__(self) -> None:
        # A constructor that raised leaves no lanes.
        lost = 0
        for lane in self._lanes() if hasattr(self, "_lane") else ():
            with contextlib.suppress(Exception):
                lane.poll(0)
            lost += lane.unanswered()
            lane.abandon()
        if lost:
            # ResourceWarning is off by default, and losing silently is not on.
            text = f"a Publisher was dropped without close(): {lost:,} records may be lost"
            _log.error(text)
            warnings.warn(text, ResourceWarning, stacklevel=1, source=self)

    # -- inside

    def _bulk(self) -> _Lane:
        """The lane of ready bytes; a spool, or a socket, has one lane for all."""
        if self._spool is not None or self._socket is not None:
            return self._lane
        if self._bulk_lane is None:
            if self._closed:
                raise PublishError("the publisher is closed")
            self._bulk_lane = self._open({"delivery.report.only.error": True})
        return self._bulk_lane

    def _lanes(self) -> list[_Lane]:
        return [lane for lane in (self._lane, self._bulk_lane) if lane is not None]

    def _each_lane(self, step: Callable[[_Lane], None]) -> None:
        failures = []
        for lane in self._lanes():
            try:
                step(lane)
            except PublishError as error:
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise PublishError("; ".join(map(str, failures)), failures[0].error)

    def _open(self, more: Mapping[str, Any]) -> KafkaLane:
        try:
            return KafkaLane({**self._config, **more})
        except KafkaException as error:
            raise refused(error) from error

    def _open_socket(self, address: str, given: Settings, key: str) -> SocketLane:
        if self._spool is not None:
            raise SettingError(
                "spool= goes with Kafka's address: a collector behind a socket has a spool itself"
            )
        from ingest.socket_lane import (
            CallingSocketDelivery,
            SocketDelivery,
            SocketLane,
            check_settings,
        )

        check_settings(given)
        self._plain, self._calling = SocketDelivery, CallingSocketDelivery
        return SocketLane(address, self._config, key)

    def _stream(self, stream: str | Stream) -> Stream:
        if not isinstance(stream, Stream):
            try:
                stream = self._streams[stream]
            except KeyError:
                raise KeyError(
                    f"there is no stream {stream!r}; declared are: {', '.join(self._streams)}"
                ) from None
        if self._socket is not None:
            self._socket.declare(stream)
        return stream

    def _oversize(self, value: bytes, key: bytes) -> Refused:
        size, limit = len(value) + len(key), self._config["message.max.bytes"]
        return Refused("", f"takes {size:,} bytes with its key; message.max.bytes is {limit:,}")

    def _route(self, stream: str | Stream) -> _Route:
        route = _Route(self._stream(stream), self._lane)
        # By identity: the hash of a Stream goes through all of its settings. The route keeps the
        # stream alive, so its id stays its own.
        self._routes[stream if isinstance(stream, str) else id(stream)] = route
        return route


class _Route:
    """How messages of one stream get to its topic."""

    def __init__(self, stream: Stream, lane: _Lane) -> None:
        self.lane = lane
        self.stream = stream
        self.topic = stream.topic
        self.cls = stream.message
        self._admission = Admission(stream)
        self.admit = self._admission.admit
        self._map: Callable[[Mapping[str, Any]], Message] = mapper(stream.descriptor)

    def convert(self, message: Any) -> Message:
        """Anything that publish() takes, as a message of the stream's class."""
        if isinstance(message, bytes):
            return self._admission.parse(message)
        if isinstance(message, Mapping):
            return self._map(message)
        wanted = self.cls.DESCRIPTOR.full_name
        if isinstance(message, Message):
            # The caller's own generated code for the same .proto is another class.
            if message.DESCRIPTOR.full_name == wanted:
                return self._admission.parse(message.SerializeToString())
            raise Refused("", f"is a {message.DESCRIPTOR.full_name}; stream {self.stream.name} "
                          f"takes {wanted}")  # fmt: skip
        raise Refused("", f"is a {type(message).__name__}; stream {self.stream.name} takes a "
                      f"{wanted}, a mapping of its JSON names, or its bytes")  # fmt: skip


def _not_queued(lane: _Lane, topic: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
            raise lane.fatal_error()
        else:
            lane.queued += 1
            lane.count_failure(topic, error)
    if again:
        lane.wait_for_room()
    return again
