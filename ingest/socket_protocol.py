"""The unix socket's protocol: bytes in, events out; the same module serves both of its ends.

A client says hello once and then sends frames, as many as it likes without waiting. The collector
welcomes it, and answers frames by their numbers once they are on disk. Integers are little-endian,
text is UTF-8; `size` counts the bytes behind it.

    client → collector
        hello     "HDRC" | version u8 | session, 16 bytes | size u16 | key
        frame     size u32 | seq u64 | name size u8 | name of the stream | value
    collector → client
        answer    size u32 | kind u8 | …
          welcome   0 | "HDRC" | version u8 | largest u32
          ack       1 | seq u64
          refusal   2 | seq u64 | code size u8 | code | reason
          goodbye   3 | code size u8 | code | reason

Rules

* A session is a client's life, named by 16 random bytes. Its frames are numbered from 1 on, and
  numbers grow. Whoever connects again sends what has no answer again, under the session and the
  numbers that it had: what the collector took already it acknowledges and does not store again.
* An ack of `seq` answers for every frame of the session up to it: it is on disk, but for those that
  a refusal has named before. A refused frame is not worth sending again.
* The first answer is a welcome or a goodbye. `largest` is the largest `size` of a frame. After a
  goodbye the collector closes; what it did not answer was maybe stored, maybe not.
* Whoever breaks the rules is told so (goodbye "protocol") and cut off. No number that is read makes
  anybody keep more than `largest` bytes: a frame that says it is larger is refused at its head.

The key is a collector's key, or empty: the file's mode is what guards the door. `code` is one word
for programs, `reason` a sentence for people.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ingest.socket_pieces import Pieces, ProtocolError

__all__ = [
    "LARGEST", "Ack", "Answers", "Frame", "Frames", "Goodbye", "Hello", "ProtocolError", "Refusal",
    "Welcome", "behind", "encode", "heading",
]  # fmt: skip

VERSION = 1
SESSION_BYTES = 16
# The largest `size` of a frame unless the collector says otherwise: more than Kafka's default for a
# record, so that one that is too large for Kafka is refused alone and does not end the connection.
LARGEST = 2 * 1024 * 1024

_MAGIC = b"HDRC"
_HELLO = struct.Struct("<4sB16sH")
_FRAME = struct.Struct("<IQB")
_SIZE = struct.Struct("<I")
_SIZE_KIND = struct.Struct("<IB")
_WELCOME = struct.Struct("<4sBI")
_SEQ = struct.Struct("<Q")
# Of a frame without its name and value, behind `size`.
_LEAST = _FRAME.size - _SIZE.size
_LONGEST_KEY = 1024
_LARGEST_ANSWER = 64 * 1024
_WELCOMES, _ACKS, _REFUSES, _LEAVES = range(4)


class Hello(NamedTuple):
    """The client's first word."""

    session: bytes
    key: str = ""


class Frame(NamedTuple):
    """One record for a stream."""

    seq: int
    stream: str
    value: bytes


class Welcome(NamedTuple):
    """The collector takes frames whose `size` is at most `largest`."""

    largest: int


class Ack(NamedTuple):
    """Every frame up to `seq` is answered for."""

    seq: int


class Refusal(NamedTuple):
    """The frame `seq` is not taken, now or later."""

    seq: int
    code: str
    reason: str


class Goodbye(NamedTuple):
    """The collector ends the connection."""

    code: str
    reason: str


def heading(stream: str) -> bytes:
    """What of a frame is the same for all of a stream. Raises ValueError for a name too long."""
    name = stream.encode()
    if not 0 < len(name) < 256:
        raise ValueError(f"{stream!r} is no name that a frame can hold")
    return bytes((len(name),)) + name


def encode(event: Hello | Frame | Welcome | Ack | Refusal | Goodbye) -> bytes:
    """An event as it travels."""
    match event:
        case Frame(seq, stream, value):
            head = heading(stream)
            return _SIZE.pack(8 + len(head) + len(value)) + _SEQ.pack(seq) + head + value
        case Hello(session, key):
            secret = key.encode()
            if len(secret) > _LONGEST_KEY or len(session) != SESSION_BYTES:
                raise ValueError(f"a session has {SESSION_BYTES} bytes, a key {_LONGEST_KEY:,}")
            return _HELLO.pack(_MAGIC, VERSION, session, len(secret)) + secret
        case Welcome(largest):
            return _answer(_WELCOMES, _WELCOME.pack(_MAGIC, VERSION, largest))
        case Ack(seq):
            return _answer(_ACKS, _SEQ.pack(seq))
        case Refusal(seq, code, reason):
            return _answer(_REFUSES, _SEQ.pack(seq) + _words(code, reason))
        case Goodbye(code, reason):
            return _answer(_LEAVES, _words(code, reason))


def behind(frames: bytes, seq: int) -> bytes:
    """Of whole frames, one after the other, those whose number is above `seq`."""
    at = 0
    while at < len(frames):
        size, number, _ = _FRAME.unpack_from(frames, at)
        if number > seq:
            break
        at += _SIZE.size + size
    return frames[at:]


class Frames:
    """The collector's side: a client's bytes as one Hello and then Frames."""

    def __init__(self, largest: int = LARGEST) -> None:
        self._pieces = Pieces()
        self.end = self._pieces.end
        self._largest = largest
        self._greeted = False
        self._last = 0

    def receive(self, data: bytes) -> Iterator[Hello | Frame]:
        """The events that are complete with these bytes; to be read to its end.

        Raises ProtocolError behind the last good one, and from then on.
        """
        data = self._pieces.open(data)
        at, end = 0, len(data)
        if not self._greeted and data:
            hello, at = self._hello(data)
            if hello is not None:
                self._greeted, self._pieces.needed = True, 1
                yield hello
        if self._greeted:
            unpack, least, last, make = _FRAME.unpack_from, _LEAST, self._last, tuple.__new__
            while end - at >= 4:
                # The size is judged as soon as it is there: a wrong one must not wait for more.
                size = int.from_bytes(data[at : at + 4], "little")
                if not least < size <= self._largest:
                    raise self._pieces.broken(
                        f"a frame says it has {size:,} bytes; from {least + 1} to "
                        f"{self._largest:,} are taken"
                    )
                stop = at + 4 + size
                if stop > end:
                    break
                _, seq, length = unpack(data, at)
                value = at + 13 + length
                if seq <= last or not length or value > stop:
                    raise self._pieces.broken(
                        f"frame {seq} came behind {last}" if seq <= last
                        else "a frame's name of a stream is empty or beyond its end"
                    )  # fmt: skip
                try:
                    name = str(data[at + 13 : value], "utf-8")
                except UnicodeDecodeError:
                    raise self._pieces.broken("a frame's name of a stream is not UTF-8") from None
                self._last = last = seq
                # Frame(…) itself takes twice as long.
                yield make(Frame, (seq, name, data[value:stop]))
                at = stop
            self._pieces.needed = 4 if end - at < 4 else stop - at
        if at < end:
            self._pieces.keep(data[at:])

    def _hello(self, data: bytes) -> tuple[Hello | None, int]:
        if not data.startswith(_MAGIC[: len(data)]):
            raise self._pieces.broken(
                "this is a socket of Headrace's own protocol; it begins with HDRC"
            )
        if len(data) > 4 and data[4] != VERSION:
            raise self._pieces.broken(
                f"version {data[4]} of the protocol is not known, but {VERSION}"
            )
        if len(data) < _HELLO.size:
            return None, 0
        _, _, session, size = _HELLO.unpack_from(data)
        if size > _LONGEST_KEY:
            raise self._pieces.broken(f"a key has {_LONGEST_KEY:,} bytes at most")
        stop = _HELLO.size + size
        if len(data) < stop:
            return None, 0
        try:
            return Hello(session, str(data[_HELLO.size : stop], "utf-8")), stop
        except UnicodeDecodeError:
            raise self._pieces.broken("the key is not UTF-8") from None


class Answers:
    """The client's side: a collector's bytes as one Welcome, then Acks and Refusals, or Goodbye."""

    def __init__(self) -> None:
        self._pieces = Pieces()
        self.end = self._pieces.end
        self._welcomed = False

    def receive(self, data: bytes) -> Iterator[Welcome | Ack | Refusal | Goodbye]:
        """The events that are complete with these bytes; to be read to its end.

        Raises ProtocolError behind the last good one, and from then on.
        """
        data = self._pieces.open(data)
        at, end = 0, len(data)
        while end - at >= 4:
            (size,) = _SIZE.unpack_from(data, at)
            if not 0 < size <= _LARGEST_ANSWER:
                raise self._pieces.broken(f"an answer says it has {size:,} bytes")
            stop = at + 4 + size
            if stop > end:
                break
            yield self._event(data[at + 4], data[at + 5 : stop])
            at = stop
        if data:
            self._pieces.needed = 4 if end - at < 4 else stop - at
            self._pieces.keep(data[at:])

    def _event(self, kind: int, body: bytes) -> Welcome | Ack | Refusal | Goodbye:
        try:
            if kind == _LEAVES:
                return Goodbye(*_spoken(body, 0))
            if (kind == _WELCOMES) == self._welcomed:
                raise self._pieces.broken("the first answer is a welcome, and no other")
            if kind == _WELCOMES:
                magic, version, largest = _WELCOME.unpack(body)
                if (magic, version) != (_MAGIC, VERSION):
                    raise self._pieces.broken(
                        "this is no collector of this version of the protocol"
                    )
                self._welcomed = True
                return Welcome(largest)
            if kind == _ACKS:
                return Ack(*_SEQ.unpack(body))
            if kind == _REFUSES:
                code, reason = _spoken(body, _SEQ.size)
                return Refusal(_SEQ.unpack_from(body)[0], code, reason)
        except (struct.error, UnicodeDecodeError, IndexError):
            raise self._pieces.broken("an answer can't be read") from None
        raise self._pieces.broken(f"there is no answer of kind {kind}")


def _answer(kind: int, body: bytes) -> bytes:
    return _SIZE_KIND.pack(1 + len(body), kind) + body


def _words(code: str, reason: str) -> bytes:
    word = code.encode()[:255]
    # Cut where no letter is cut in two.
    said = reason.encode()[:4000].decode(errors="ignore").encode()
    return bytes((len(word),)) + word + said


def _spoken(body: bytes, at: int) -> tuple[str, str]:
    stop = at + 1 + body[at]
    if stop > len(body):
        raise IndexError
    return body[at + 1 : stop].decode(), body[stop:].decode()
