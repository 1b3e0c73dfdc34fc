"""Letters back to where they came from, each once. The order, which is the promise:

1. open the transactional producer: it fences another redrive of this stream, and what that one had
   under way is committed or aborted from then on
2. read which letters are open
3. for a few hundred of them at a time: edit them, and see whether they decode now; then, in one
   transaction, the records to their topic and a settlement that names them to the dead-letter topic

A kill at any point leaves whole transactions: the next redrive finds open just what was not sent.

A record goes to the partition that it came from, so that a key's records keep their order among
themselves. It has its key and headers, and those of ours that say that it was redriven. Its time in
Kafka is that of the redrive, because retention goes by it: with a time of two weeks ago it could be
removed before it lands. When it was first published is in a header.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consumers.client import QUIET, Settings, text, unknown_topic
from consumers.deadletters import REDRIVEN
from consumers.decode import Decoder
from consumers.dlq.edit import Edit, Left
from consumers.dlq.letters import (
    PUBLISHED,
    SETTLED,
    Headers,
    Letter,
    Letters,
    Origin,
    Wanted,
    class_of,
    settlement,
)
from consumers.errors import Systemic, Unavailable
from ingest.streams import Stream

__all__ = ["Exchange", "Outcome", "Stay", "redrive"]

# One transaction: so many letters, or so many bytes and a letter.
_MOST = 500
_MOST_BYTES = 1024 * 1024
# A killed redrive's open transaction holds back the topic's readers for so long, in milliseconds.
_TRANSACTION_MS = 10_000
_CALL_S = 5.0
_PATIENCE_S = 60.0
# produce() says no more than that the producer's error is fatal.
_FENCED = {
    KafkaError._FATAL,
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
}
_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
_FROM = "headrace.redriven_from"
_THROUGH = "headrace.redriven_through"


# librdkafka prints what is fatal, whatever its log_level; here it is raised.
_SILENT = logging.getLogger(f"{__name__}.librdkafka")
_SILENT.disabled = True


@dataclass(slots=True)
class Stay:
    """Letters that stay for one reason: how many, and one of them."""

    example: Origin
    reason: str
    count: int = 0


@dataclass(slots=True)
class Outcome:
    """What a redrive did, or would do."""

    sent: int = 0
    # Of these how many a destination had rejected: others may have them already.
    rejected: int = 0
    stay: dict[str, Stay] = field(default_factory=dict)
    # Of those that stay how many were not meant to.
    failed: int = 0

    def leave(self, letter: Letter, why: str, *, meant: bool = False) -> None:
        """Count a letter that stays."""
        self.stay.setdefault(class_of(why), Stay(letter.origin, why)).count += 1
        self.failed += not meant


Send = Callable[[Sequence[tuple[Letter, bytes | None]]], None]


def redrive(
    letters: Letters,
    stream: Stream,
    wanted: Wanted,
    edit: Edit | None,
    send: Send,
) -> Outcome:
    """Send the wanted letters that decode, or say why they stay."""
    decoder, outcome = Decoder(stream), Outcome()
    for batch in _batches(letters.open(wanted)):
        edited: list[tuple[Letter, bytes | None]] = []
        for letter in batch:
            try:
                edited.append((letter, edit(letter.value or b"") if edit else letter.value))
            except Left as left:
                outcome.leave(letter, str(left), meant=left.meant)
        bad = decoder.decode([value for _, value in edited]).bad
        for i, why in bad.items():
            outcome.leave(edited[i][0], f"it {'then' if edit else 'still'} can't be decoded: {why}")
        good = [pair for i, pair in enumerate(edited) if i not in bad]
        if good:
            send(good)
        outcome.sent += len(good)
        outcome.rejected += sum(letter.kind == "rejected" for letter, _ in good)
    return outcome


def _batches(letters: Iterator[Letter]) -> Iterator[list[Letter]]:
    batch: list[Letter] = []
    size = 0
    for letter in letters:
        batch.append(letter)
        size += len(letter.value or b"")
        if len(batch) >= _MOST or size >= _MOST_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Exchange:
    """The transactional producer of a stream's redrive. Opening it fences the one before.

    Raises Unavailable when Kafka is away, and Systemic when it is fenced itself. After either this
    one is of no use any more; what was committed stays, and the next one settles the rest.
    """

    def __init__(self, kafka: Settings, stream: Stream, through: str | None = None) -> None:
        self._stream = stream
        self._through = through
        self._id = f"headrace-redrive-{stream.dlq}"
        self._failure: KafkaError | None = None
        self._producer = Producer(
            {
                **QUIET,
                "compression.type": "lz4",
                "partitioner": "murmur2_random",
                **kafka,
                "enable.idempotence": True,
                "acks": "all",
                "transactional.id": self._id,
                "transaction.timeout.ms": _TRANSACTION_MS,
                "delivery.timeout.ms": _TRANSACTION_MS,
                # Whether it is too large is for the topic to say.
                "message.max.bytes": 1_000_000_000,
            },
            logger=_SILENT,
        )
        self._call(self._producer.init_transactions, "let it begin")
        try:
            listed = self._producer.list_topics(stream.topic, _CALL_S).topics[stream.topic]
        except KafkaException as error:
            raise Unavailable(f"Kafka does not answer: {text(error)}") from error
        if listed.error is not None or not listed.partitions:
            raise Systemic(unknown_topic(stream.topic))
        self._partitions = len(listed.partitions)

    def send(self, pairs: Sequence[tuple[Letter, bytes | None]]) -> None:
        """The letters' records with these values, and their settlement: both or neither."""
        self._failure = None
        self._call(lambda _: self._producer.begin_transaction(), "let it begin")
        for letter, value in pairs:
            number = letter.origin.partition
            self._produce(
                self._stream.topic, value, letter.key, self._headers(letter),
                # Where the topic was made anew with fewer, the key says which.
                partition=number if number < self._partitions else -1,
            )  # fmt: skip
        # Beside its letters, so that retention does not remove it before them.
        for number in {letter.partition for letter, _ in pairs}:
            origins = [letter.origin for letter, _ in pairs if letter.partition == number]
            self._produce(
                self._stream.dlq, settlement(origins), None, [(SETTLED, b"redriven")],
                partition=number,
            )  # fmt: skip
        self._call(self._producer.commit_transaction, "commit")

    def _headers(self, letter: Letter) -> Headers:
        known = dict(letter.headers)
        published = known.get(PUBLISHED) or str(letter.origin.timestamp_ms).encode()
        ours = {
            REDRIVEN: str(letter.redriven + 1).encode(),
            _FROM: str(letter.origin).encode(),
            PUBLISHED: published,
        }
        if self._through:
            ours[_THROUGH] = self._through.encode()
        return [(n, v) for n, v in letter.headers if n not in {*ours, _THROUGH}] + [*ours.items()]

    def _produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Headers, partition: int
    ) -> None:
        try:
            self._producer.produce(topic, value, key, partition, self._report, headers=headers)
        except KafkaException as raised:
            self._failed(raised, "take records")

    def _report(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None and (
            self._failure is None or self._failure.code() == KafkaError._PURGE_QUEUE
        ):
            self._failure = error

    def _call(self, call: Callable[[float], Any], what: str) -> None:
        """Call until it succeeds. One that timed out may be under way: it is called again."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                call(_CALL_S)
            except KafkaException as raised:
                if not raised.args[0].retriable() or time.monotonic() > deadline:
                    self._failed(raised, what)
            else:
                return

    def _failed(self, raised: KafkaException, what: str) -> NoReturn:
        """Raise what it means, with nothing left open that would hold back the topic's readers."""
        error: KafkaError = raised.args[0]
        if error.txn_requires_abort():
            with suppress(KafkaException):
                self._producer.abort_transaction(_CALL_S)
        if error.code() in _FENCED:
            raise Systemic(
                f"another redrive of {self._stream.name} has begun, or this one was held up for "
                f"more than {_TRANSACTION_MS // 1000} s: it sends nothing more. What it had sent "
                "is settled, and nothing is sent twice; to go on, run the same command again, once"
            ) from raised
        cause = self._failure or error
        if cause.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            raise Systemic(
                f"a record is larger than {self._stream.topic} takes; raise that topic's "
                "max.message.bytes. Nothing of its batch was sent"
            ) from raised
        if cause.code() in _DENIED:
            raise Systemic(
                f"no permission to redrive: grant WRITE on {self._stream.topic}, on "
                f"{self._stream.dlq} and on the transactional id {self._id}"
            ) from raised
        raise Unavailable(
            f"Kafka does not {what}: {cause.str()}. What was sent before is settled; to go on, run "
            "the same command again"
        ) from raised
