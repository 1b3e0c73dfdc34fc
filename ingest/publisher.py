"""Publisher: typed messages in, acknowledgements out; what it accepts, Kafka gets exactly once.

    publish         checks one message, gives back its Delivery (a future), may call back
    publish_many    ready bytes and keys at the speed of librdkafka's own batch call
    flush           waits for every acknowledgement, raises if one is missing

Rules:

* `acks=all` and an idempotent producer: within one Publisher librdkafka retries without doubling
  and keeps the order of a key. Nothing is ever produced again by hand: a time-out leaves open
  whether the record is in the log (INTRODUCTION.md of librdkafka). So `delivery.timeout.ms` is 0,
  for ever, and it is the waiting caller who gives up (`flush(timeout)`, `result(timeout)`), not the
  record.
* Memory is bounded by `queue.buffering.max.messages` and `.kbytes`; when they are reached, publish
  blocks the caller and nothing is dropped.
* What can't be stored is refused before it is sent, see ingest/admission.py.
* Keys go to partitions as Java's producer sends them (murmur2).
* With `spool=DIR` accepted means on disk, synced: publish returns then, and a relay brings it to
  Kafka exactly once, also after a crash (ingest/spool/lane.py says what differs).
* Instead of Kafka's address it takes a collector's, "unix:PATH": an acknowledgement then means on
  that collector's disk (ingest/socket_lane.py says what differs).

publish and publish_many travel in two lanes (ingest/lanes.py). The order of a key is kept within
each; flush() between them keeps it across. Who polls: see ingest/lane.py.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException
from google.protobuf.message import Message

from ingest.admission import Refused
from ingest.delivery import Coordinates, Delivery, PublishError
from ingest.lane import POLL_EVERY
from ingest.lanes import Lanes, queue_all
from ingest.route import Route
from ingest.scalars import RecordError
from ingest.settings import SettingError, Settings
from ingest.streams import BUILT_IN, Stream

__all__ = [
    "Coordinates", "Delivery", "PublishError", "Publisher", "RecordError", "Refused",
    "SettingError",
]  # fmt: skip

_log = logging.getLogger("headrace.publisher")


class Publisher:
    """Publishes to the topics of streams. Threads may share one; a forked child may not use it.

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
        self._streams = streams
        self._routes: dict[str | int, Route] = {}
        self._lanes = Lanes(bootstrap_servers, config or {}, spool, key)

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
        # A member of a StrEnum is text, too.
        route = self._routes.get(stream if isinstance(stream, str) else id(stream))
        if route is None:
            route = self._route(stream)
        if type(message) is not route.cls:
            message = route.convert(message)
        key, value = route.admit(message)
        lane = route.lane
        delivery = route.delivery() if on_delivery is None else route.calling(on_delivery)
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
        queue_all(self._lanes.bulk(), topic, values, keys)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until Kafka has answered for every record, at most `timeout` seconds.

        Returns when all are acknowledged. Raises PublishError with how many are not and why: those
        that failed since the last flush, or those without an answer when the time is over (which
        stay queued, and may still be acknowledged). Without a timeout it waits as long as Kafka is
        away, with a warning in the log every 10 s.
        """
        self._lanes.flush(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Flush, then let go of the connection; what then is not acknowledged is given up.

        Raises PublishError as flush() does. Closing twice is harmless.
        """
        self._lanes.close(timeout)

    @property
    def published(self) -> int:
        """Records that were accepted."""
        return sum(lane.queued for lane in self._lanes.all())

    @property
    def acknowledged(self) -> int:
        """Records that Kafka has acknowledged; may lag behind, never ahead. Serves reports."""
        total = 0
        for lane in self._lanes.all():
            lane.poll(0)
            # In this order: a record queued in between makes the figure smaller, not larger.
            queued = lane.queued
            total += max(0, queued - lane.outstanding() - lane.failed)
        return total

    @property
    def failed(self) -> int:
        """Records that Kafka, or closing, has finally refused."""
        return sum(lane.failed for lane in self._lanes.all())

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
        lost = self._lanes.abandon() if hasattr(self, "_lanes") else 0
        if lost:
            # ResourceWarning is off by default, and losing silently is not on.
            text = f"a Publisher was dropped without close(): {lost:,} records may be lost"
            _log.error(text)
            warnings.warn(text, ResourceWarning, stacklevel=1, source=self)

    # -- inside

    def _stream(self, stream: str | Stream) -> Stream:
        if not isinstance(stream, Stream):
            try:
                stream = self._streams[stream]
            except KeyError:
                raise KeyError(
                    f"there is no stream {stream!r}; declared are: {', '.join(self._streams)}"
                ) from None
        self._lanes.declare(stream)
        return stream

    def _oversize(self, value: bytes, key: bytes) -> Refused:
        size, limit = len(value) + len(key), self._lanes.most_bytes
        text = f"takes {size:,} bytes with its key; message.max.bytes is {limit:,}"
        if size <= limit:
            text += ", and what Kafka puts around a record, up to 1,024 bytes, counts too"
        return Refused("", text)

    def _route(self, stream: str | Stream) -> Route:
        route = Route(self._stream(stream), self._lanes)
        # By identity: the hash of a Stream goes through all of its settings. The route keeps the
        # stream alive, so its id stays its own.
        self._routes[stream if isinstance(stream, str) else id(stream)] = route
        return route
