"""What the records of a dead-letter topic say, and which of its letters are open.

A letter stands for the record that it was made of: partition, offset and time of publishing in the
topic where that one was (the time, because a topic that was deleted and made anew counts from 0
again). Each destination sends its own letter, and a crash may send one twice: they are one record,
which is listed, shown and redriven once. It is open until a settlement names it, wherever in the
topic that stands: a destination that comes to the record later sends its letter later, and the
record is on its way again already.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import orjson
from confluent_kafka import Message

from consumers.bounds import bounds, read
from consumers.client import Settings
from consumers.deadletters import OURS, REDRIVEN
from consumers.errors import Systemic
from ingest.streams import Stream

__all__ = [
    "PUBLISHED", "SETTLED", "Headers", "Letter", "Letters", "Origin", "Wanted", "class_of",
    "letter_of", "settlement",
]  # fmt: skip

# The header of a settlement; its value is a word for what was done.
SETTLED = "headrace.settled"
# A header of every letter, and of no settlement: where its record was.
_TOPIC = "headrace.topic"
# A header of a redriven record: when it was first published, in milliseconds since 1970.
PUBLISHED = "headrace.published_ms"

Headers = list[tuple[str, bytes | None]]

# What is kept in memory of the first reading, in bytes, and what a message takes beside its value.
_KEPT_BYTES = 32 * 1024 * 1024
_MESSAGE_BYTES = 2048


class Origin(NamedTuple):
    """Which record: of a known topic."""

    partition: int
    offset: int
    # When it was published, in milliseconds since 1970.
    timestamp_ms: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter; key, value and headers are the record's own."""

    origin: Origin
    kind: str
    reason: str
    # Empty in letters of before 0.1.0.
    destination: str
    attempted_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    # How often the record had been redriven before it failed like this.
    redriven: int
    # Where the letter itself is, in the dead-letter topic.
    partition: int
    offset: int


def letter_of(message: Message, topic: str) -> Letter | None:
    """From a record of the dead-letter topic of `topic`; None for what is no letter of its own."""
    headers: Headers = list(message.headers() or ())
    known = {name: value or b"" for name, value in headers}
    try:
        if known[_TOPIC].decode() != topic:
            return None
        return Letter(
            origin=Origin(
                int(known["headrace.partition"]),
                int(known["headrace.offset"]),
                int(known["headrace.timestamp_ms"]),
            ),
            kind=known["headrace.kind"].decode(),
            reason=known["headrace.reason"].decode(),
            destination=known.get("headrace.destination", b"").decode(),
            attempted_ms=int(known["headrace.attempted_ms"]),
            key=message.key(),
            value=message.value(),
            headers=[(name, value) for name, value in headers if name not in OURS],
            redriven=int(known[REDRIVEN]) if known.get(REDRIVEN, b"").isdigit() else 0,
            partition=int(message.partition() or 0),
            offset=int(message.offset() or 0),
        )
    except (KeyError, ValueError):
        return None


def settlement(origins: Iterable[Origin]) -> bytes:
    """The value of a settlement that names these."""
    return orjson.dumps({"v": 1, "records": [list(origin) for origin in origins]})


def _settled(value: bytes | None, topic: str) -> Iterator[Origin]:
    try:
        body = orjson.loads(value or b"")
        if body["v"] != 1:
            raise ValueError
        for record in body["records"]:
            yield Origin(*record)
    except (ValueError, TypeError, KeyError) as error:
        raise Systemic(
            f"{topic} holds a settlement that can't be read; was it written by a newer headrace?"
        ) from error


class Letters:
    """The dead letters of a stream, as they are when this is made. Raises Unavailable, Systemic.

    Which are open is known once the topic has been read to its end. It is read a second time for
    the letters only where they are too many to have been kept.
    """

    def __init__(self, kafka: Settings, stream: Stream) -> None:
        self._kafka = kafka
        self._stream = stream
        self.spans = bounds(kafka, stream.dlq).spans
        # Records that are dealt with.
        self.settled: set[Origin] = set()
        # Records of the topic that are neither letters nor settlements.
        self.foreign = 0
        # Records that are no settlements; None once they are too many.
        self._kept: list[Message] | None = []
        size = 0
        for message in self._messages():
            if _is_settlement(message):
                self.settled.update(_settled(message.value(), stream.dlq))
            elif self._kept is not None:
                self._kept.append(message)
                size += len(message) + _MESSAGE_BYTES
                if size > _KEPT_BYTES:
                    self._kept = None

    def all(self) -> Iterator[Letter]:
        """Every letter, also those that are settled; in order for each partition of the topic."""
        self.foreign = 0
        for message in self._messages() if self._kept is None else self._kept:
            letter = letter_of(message, self._stream.topic)
            if letter is not None:
                yield letter
            else:
                self.foreign += not _is_settlement(message)

    def open(self, wanted: Wanted) -> Iterator[Letter]:
        """The first letter of each record that is open and of which one letter is wanted."""
        seen = set()
        for letter in self.all():
            if letter.origin not in self.settled and letter.origin not in seen and wanted(letter):
                seen.add(letter.origin)
                yield letter

    def _messages(self) -> Iterator[Message]:
        for _, run in read(self._kafka, self._stream.dlq, self.spans):
            yield from run


def _is_settlement(message: Message) -> bool:
    """A letter is none, whatever headers its record had: it has one that says where that was."""
    names = {name for name, _ in message.headers() or ()}
    return SETTLED in names and _TOPIC not in names


class Wanted:
    """Which letters are meant: by reason, by the time of the attempt, by where the record was."""

    def __init__(
        self,
        reason: str | None = None,
        begin_us: int | None = None,
        end_us: int | None = None,
        at: Collection[tuple[int, int]] = (),
    ) -> None:
        """`reason` is a kind, or part of a reason, whatever the values in it."""
        self._reason = reason
        self._class = class_of(reason or "")
        self._begin_us, self._end_us = begin_us, end_us
        self._at = frozenset(at)

    def __call__(self, letter: Letter) -> bool:
        at_us = letter.attempted_ms * 1000
        return (
            (self._begin_us is None or at_us >= self._begin_us)
            and (self._end_us is None or at_us < self._end_us)
            and (not self._at or letter.origin[:2] in self._at)
            and (
                self._reason is None
                or self._reason == letter.kind
                or self._class in class_of(letter.reason)
            )
        )


# Values within a reason: quoted ones (in double quotes they are names, unless behind a colon),
# UUIDs and long hexadecimal, and numbers. A reason may quote what a stranger has sent: so of a run
# of hexadecimal nothing is given back and tried otherwise.
_VALUES = re.compile(
    r"'[^']*'|(?<=: )\"[^\"]*\""
    r"|\b(?:[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4,}+){1,4}|[0-9a-fA-F]{12,}+)\b"
    r"|\b0x[0-9a-fA-F]++\b|(?<![\w.])[-+]?\d[\d.,:]*(?<![.,:])"
)


def class_of(reason: str) -> str:
    """The reason without the values in it, so that those alike are one; of itself it is itself."""
    return _VALUES.sub("…", reason)
