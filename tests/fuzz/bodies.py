"""Bodies for every door: mostly right, then wrong in one place or in many.

Text is written byte for byte and not by a JSON library, so that what no library would write comes
up too: doubled names, halves of surrogate pairs, numbers without an end, brackets in text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from ingest.mapping import mapper
from ingest.scalars import RecordError

__all__ = ["Bodies", "mutated"]

# JSON, though not all of it is what somebody would expect.
_GOOD = (
    b'""', b'"a"', b'"purchase product"', b'"desktop1"', b'"2025-06-16T22:50:00Z"', b'"\\u0000"',
    b'"\\ud83d"', b'"\\ude00"', b'"\\ud83d\\ude00"', b'"\\\\ud83d"', b'"\\\\\\ud83d"', b'"\\""',
    '"é😀ключ"'.encode(), b'"{[{["', b'"]}]}"', b'"\\\\"', b'"NaN"', b'"Infinity"', b'"-1"',
    b'"true"', b'"YWJj"', b'"1e400"', b'"9999-12-31T23:59:59.999999999Z"',
    b'"0001-01-01T00:00:00Z"', b'"1.5s"', b'"a,b.c"', b'"\\ufffd"', b'"\xef\xbf\xbd"',
    b'"' + b"x" * 201 + b'"',
    b'"' + "я".encode() * 200 + b'"', b'"' + b"\\u00e9" * 300 + b'"', b'"' + b"y" * 9000 + b'"',
    b"0", b"-0", b"1", b"-1", b"1.5", b"1e5", b"1E-7", b"1e400", b"-1e400", b"2147483648",
    b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"1" * 400,
    b"9" * 5000, b"1." + b"0" * 400, b"1750114200", b"1750114200000", b"1e-400",
    b"null", b"true", b"false", b"{}", b"[]", b"[null]",
)  # fmt: skip
_BAD = (
    b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\t"', b'"\x00"', b'"\\x"', b'"unended', b"01",
    b"+1", b".5", b"1.", b"-", b"0x1", b"NaN", b"Infinity", b"-Infinity", b"1e", b"1_0", b"nul",
    b"TRUE", b"undefined", b"",
)  # fmt: skip
_NAMES = (
    b'"event"', b'"events"', b'"deviceId"', b'"userId"', b'"anonymousId"', b'"messageId"',
    b'"eventId"', b'"properties"', b'"type"', b'"batch"', b'"writeKey"', b'"timestamp"',
    b'"sentAt"', b'"context"', b'"ev\\u0065nt"', b'""',
    b'"a\\"b"', b'"__proto__"', b'"\\ud83d"',
)  # fmt: skip
_SPACES = (b"", b"", b"", b"", b" ", b"\n", b"\r\n", b"\t", b"  ", b"\xc2\xa0", b"\x00", b"\x0b")
_TOKENS = (
    *_GOOD[:28], *_BAD, *_NAMES, b"{", b"}", b"[", b"]", b",", b":", b'"',
    b"\\", b"\n", b"\r", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\\u",
    b"/*x*/", b"\x1f\x8b", b"(\xb5/\xfd",
    b"\x80\x80\x80\x80\x80\x80", b"\xff\xff\xff\xff\x0f", b"\x0a", b"\x12", b"[" * 40, b"]" * 40,
    b'{"a":' * 40, b"}" * 40,
)  # fmt: skip


class Bodies:
    """Makes bodies; `rng` decides everything."""

    def __init__(
        self,
        rng: random.Random,
        streams: Sequence[tuple[str, Descriptor]],
        *,
        wrong: float = 0.03,
    ) -> None:
        self._rng = rng
        self._streams = dict(streams)
        # How often a field is missing; a little more often it is anything at all.
        self._wrong = wrong

    def logs(self, stream: str) -> tuple[bytes, str]:
        """A body of logs and the Content-Type that fits."""
        rng = self._rng
        match rng.randrange(5):
            case 0:
                return self.logs_record(stream), "application/json"
            case 1:
                return self._array(
                    [self.logs_record(stream) for _ in range(self._few())]
                ), "text/plain"
            case 2 | 3:
                lines = [self.logs_record(stream) for _ in range(self._few())]
                ends = rng.choice((b"\n", b"\n", b"\r\n", b"\n\n", b"\n \n", b"\r"))
                body = ends.join(lines) + rng.choice((b"", ends))
                return body, rng.choice(("application/x-ndjson", "application/json"))
        parts = []
        for _ in range(self._few()):
            message = self.message(stream)
            size = len(message) + rng.choice((0, 0, 0, 0, 0, 0, 0, 1, -1, 1000))
            parts.append(_varint(max(0, size), rng.choice((0, 0, 0, 0, 1, 4, 6))) + message)
        kind = rng.choice(("application/x-protobuf; delimited=true",
                           "application/vnd.google.protobuf"))  # fmt: skip
        return b"".join(parts), kind

    def sparrow(self) -> bytes:
        """For /v1/events."""
        rng = self._rng
        match rng.randrange(4):
            case 0:
                return self._event()
            case 1:
                return self._array([self._event() for _ in range(self._few())])
            case 2:
                events = self._array([self._event() for _ in range(self._few())])
                return self._object([(b'"writeKey"', self._key()), (b'"events"', events)])
        # The same array twice, and an event that has events.
        events = self._array([self._event() for _ in range(self._few())])
        return self._object([(b'"events"', events), (b'"x"', events), (b'"events"', events)])

    def segment(self, call: str) -> bytes:
        """For a call of Segment's."""
        if call not in ("batch", "import", "b"):
            return self._segment_message()
        batch = self._array([self._segment_message() for _ in range(self._few())])
        fields = [(b'"batch"', batch), (b'"sentAt"', self._value(1))]
        if self._rng.random() < 0.5:
            fields.append((b'"writeKey"', self._key()))
        return self._object(fields)

    def deep(self) -> bytes:
        """Levels, more than anybody may have."""
        rng = self._rng
        levels = rng.choice((15, 16, 17, 64, 65, 500, 1023, 1024, 1025, 5000, 20_000))
        opens, closes = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")))
        inside = opens * levels + rng.choice((b"", b"1", b"{}")) + closes * rng.choice((levels, 0))
        return rng.choice((
            inside,
            b'{"event":"a","deviceId":"b","properties":{"p":' + inside + b"}}",
            b'[{"event":"a","deviceId":"b"},{"event":"a","deviceId":"b","x":' + inside + b"}]",
            b'{"batch":[{"type":"track","x":' + inside + b'},{"type":"page"}]}',
            b'{"deviceId":"d","timestamp":"2025-06-16T22:50:00Z","x":' + inside + b"}\n{}",
        ))  # fmt: skip

    def wide(self) -> bytes:
        """Much of the same: what takes little room here may take a lot elsewhere."""
        rng = self._rng
        unit = rng.choice((b"{},", b"[],", b"1,", b"\n", b" \n", b"{}\n", b'"",', b'{"event":1},',
                           b"\x00", b"\\u", b'{"a":{},"b":[]},', b"[[]],", b"null,"))  # fmt: skip
        many = unit * (rng.choice((50, 500, 5_000, 60_000)) // len(unit))
        around = rng.choice(((b"", b""), (b"[", b"{}]"), (b'{"batch":[', b"{}]}"),
                             (b'{"events":[', b"{}]}"), (b'{"a":[', b"1]}")))  # fmt: skip
        return around[0] + many + around[1]

    # -- parts

    def _few(self) -> int:
        return self._rng.choice((0, 1, 1, 2, 2, 3, 5, 9))

    def _value(self, depth: int = 3) -> bytes:
        rng = self._rng
        match rng.randrange(8 if depth else 5):
            case 0 | 1 | 2 | 3:
                return rng.choice(_BAD if rng.random() < 0.05 else _GOOD)
            case 4:
                return b'"%x"' % rng.getrandbits(rng.choice((4, 32, 128)))
            case 5:
                return self._array([self._value(depth - 1) for _ in range(rng.randrange(4))])
        return self._object(
            [(rng.choice(_NAMES), self._value(depth - 1)) for _ in range(rng.randrange(4))]
        )

    def _object(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        rng = self._rng
        if rng.random() < 0.2:
            rng.shuffle(fields)
        if rng.random() < 0.05:
            fields = fields + fields[:1]
        if rng.random() < 0.9:  # as programs write it
            return b"{" + b",".join([name + b":" + value for name, value in fields]) + b"}"
        space = rng.choice(_SPACES if rng.random() < 0.1 else _SPACES[:8])
        inside = (space + b"," + space).join(
            [name + space + b":" + space + value for name, value in fields]
        )
        return space + b"{" + space + inside + space + b"}" + space

    def _array(self, values: list[bytes]) -> bytes:
        rng = self._rng
        space = rng.choice(_SPACES) if rng.random() < 0.1 else b""
        return space + b"[" + (space + b"," + space).join(values) + space + b"]"

    def _fields(self, right: Sequence[tuple[bytes, Callable[[], bytes]]]) -> bytes:
        rng = self._rng
        fields = []
        for name, make in right:
            dice = rng.random()
            if dice < self._wrong:
                continue
            fields.append((name, self._value() if dice < 2.3 * self._wrong else make()))
        while rng.random() < 2.5 * self._wrong:
            fields.append((rng.choice(_NAMES), self._value()))
        return self._object(fields)

    def _event(self) -> bytes:
        fields: list[tuple[bytes, Callable[[], bytes]]] = [
            (b'"event"', lambda: b'"purchase product"'),
            (b'"deviceId"', self._id),
        ]
        if self._rng.random() < 0.5:
            fields += [(b'"userId"', self._id), (b'"eventId"', self._id)]
        if self._rng.random() < 0.5:
            fields.append((b'"properties"', lambda: self._object([(b'"a"', self._value())])))
        return self._fields(fields)

    def _segment_message(self) -> bytes:
        rng = self._rng
        kinds = (b'"track"', b'"page"', b'"identify"', b'"group"', b'"alias"', b'"screen"')
        return self._fields(
            [
                (b'"type"', lambda: rng.choice(kinds)),
                (b'"messageId"', self._id),
                (b'"anonymousId"', self._id),
                (b'"userId"', lambda: self._value(0) if rng.random() < 0.5 else self._id()),
                (b'"context"', lambda: self._object([(b'"ip"', self._value(1))])),
            ]
        )

    def _id(self) -> bytes:
        return b'"%032x"' % self._rng.getrandbits(128)

    def _key(self) -> bytes:
        return self._rng.choice(
            (b'"KEY-A"', b'"KEY-B"', b'"KEY-A"', b'"wrong"', b"1", b'"\\ud83d"')
        )

    # -- logs, by their descriptor

    def logs_record(self, stream: str) -> bytes:
        """One record of a stream, as JSON."""
        return self._of(self._streams[stream], 3)

    def _of(self, kind: Descriptor, depth: int) -> bytes:
        rng = self._rng
        fields = list(kind.fields)
        # The first few are key and time; of the others some.
        some = fields[:4] + [f for f in fields[4:] if rng.random() < min(1.0, 6 / len(fields))]
        return self._fields(
            [
                (
                    b'"%s"' % (f.json_name if rng.random() < 0.8 else f.name).encode(),
                    lambda f=f: self._field(f, depth),
                )
                for f in some
            ]
        )

    def _field(self, field: FieldDescriptor, depth: int) -> bytes:
        rng = self._rng
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            entries = [
                (rng.choice((b'"1"', b'"true"', b'"a"')), self._single(inner.fields[1], depth))
                for _ in range(rng.randrange(3))
            ]
            return self._object(entries)
        if field.is_repeated:
            return self._array([self._single(field, depth) for _ in range(rng.randrange(4))])
        return self._single(field, depth)

    def _single(self, field: FieldDescriptor, depth: int) -> bytes:
        rng = self._rng
        inner = field.message_type
        if inner is not None:
            match inner.full_name:
                case "google.protobuf.Timestamp":
                    return rng.choice((b'"2025-06-16T22:50:00Z"', b'"2025-06-16T22:50:00.5+02:00"',
                                       b'"1969-12-31T23:59:59Z"', b"1750114200"))  # fmt: skip
                case "google.protobuf.Duration":
                    return rng.choice((b'"1.5s"', b'"-3s"', b'"315576000001s"'))
                case name if name.startswith("google.protobuf."):
                    return self._value(depth)
            return self._of(inner, depth - 1) if depth else b"{}"
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                return rng.choice((b'"a"', self._id(), b'"YWJj"'))
            case FieldDescriptor.CPPTYPE_BOOL:
                return rng.choice((b"true", b"false"))
            case FieldDescriptor.CPPTYPE_ENUM:
                return rng.choice((b"0", b"1", b'"COLOUR_RED"', b'"NONE"'))
        return rng.choice((b"0", b"7", b"-7", b'"12"', b"1.5", b"4294967295"))

    def message(self, stream: str) -> bytes:
        """A message as protobuf, good or spoilt."""
        message = self._rng.choice(_good_messages(self._streams[stream]))
        return mutated(message, self._rng) if self._rng.random() < 0.25 else message


@cache
def _good_messages(kind: Descriptor) -> list[bytes]:
    """Some for all, the same every time: an input is made of its own number alone."""
    bodies = Bodies(random.Random(1), [("", kind)], wrong=0.01)
    convert = mapper(kind)
    pool = [b""]
    while len(pool) < 40:
        try:
            record = orjson.loads(bodies.logs_record(""))
            pool.append(convert(record).SerializeToString())
        except (orjson.JSONDecodeError, RecordError):
            continue
    return pool


def mutated(body: bytes, rng: random.Random) -> bytes:
    """A few bytes of it changed, taken out, doubled or put in."""
    data = bytearray(body)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        to = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 100)))
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at:to] = rng.randbytes(rng.choice((1, 2, 4)))
            case 2:
                data[at:at] = rng.choice(_TOKENS)
            case 3:
                data[at:to] = rng.choice(_TOKENS)
            case 4:
                del data[at:to]
            case 5:
                data[at:at] = data[at:to] * rng.choice((1, 2, 20))
            case 6:
                del data[at:]
    return bytes(data)


def _varint(value: int, longer: int) -> bytes:
    """With so many bytes more than it needs."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(longer):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)
