"""Records: JSON lines or CSV, read one by one and mapped to messages of a stream.

    for record in read(Source("states.jsonl.gz"), stream):
        if record.error is None: publisher.publish(stream, record.message)

Rules: a bad record is handed on with its line, its original bytes and a RecordError, and does not
stop the rest; what makes all of a source unusable (an unknown column of a CSV's header, a cut-off
archive), or what follows in it (a line of CSV that is too long: whether its last quote is open is
not known), raises SourceError. Memory holds one record.

CSV: a header row names the fields, by JSON or .proto names, in any order; an empty cell (or the
text given as `null`) leaves its field unset. The format is told from the name's ending, then from
the first byte: a letter or quote begins a CSV header, everything else JSON lines.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

import orjson

from ingest.mapping import RecordError, column_setters, mapper
from ingest.scalars import shown
from ingest.sources import OverlongLine, Source, SourceError
from ingest.streams import Stream

__all__ = ["Format", "Record", "RecordError", "Source", "SourceError", "format_of", "read"]

Format = Literal["json", "csv"]

_ENDINGS: dict[str, Format] = {
    ".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".log": "json",
}  # fmt: skip


class Record(NamedTuple):
    """One record: the number of its first line, its bytes, and its message or what is wrong."""

    line: int
    raw: bytes
    message: Any
    error: RecordError | None


def format_of(source: Source) -> Format:
    """By the name's ending (before .gz and .zst), else by the first byte."""
    path = PurePath(source.path)
    if path.suffix in (".gz", ".zst"):
        path = path.with_suffix("")
    first = source.first_byte
    return _ENDINGS.get(path.suffix.lower()) or (
        "csv" if first.isalpha() or first in (b'"', b"_") else "json"
    )


def read(
    source: Source, stream: Stream, *, format: Format | None = None, null: str | None = None
) -> Iterator[Record]:
    """All records of a source, in its order. Blank lines are no records.

    Raises SourceError where the source breaks off or its header is wrong.
    """
    if (format or format_of(source)) == "csv":
        return _read_csv(source, stream, null)
    return _read_json(source, stream)


def _read_json(source: Source, stream: Stream) -> Iterator[Record]:
    if source.opens_array:
        raise SourceError(f"{source.name} is one JSON array; make it lines: jq -c '.[]'")
    convert = mapper(stream.descriptor)
    loads = orjson.loads
    for number, line in enumerate(source.lines(), 1):
        try:
            if type(line) is not bytes:
                raise _overlong(source.limit)
            yield Record(number, line, convert(loads(line)), None)
        except orjson.JSONDecodeError as error:
            if line.strip():
                yield Record(number, line, None, _json_error(line, error))
        except RecordError as error:
            yield Record(number, line, None, error)


def _json_error(line: bytes, error: orjson.JSONDecodeError) -> RecordError:
    return _not_utf8(line) or RecordError("", f"is not JSON ({error.msg}): {_begin(line)}")


def _overlong(limit: int) -> RecordError:
    return RecordError("", f"the line is longer than {limit:,} bytes")


def _not_utf8(line: bytes) -> RecordError | None:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return RecordError("", f"is not UTF-8: byte {error.start + 1} of the line")
    return None


def _begin(line: bytes) -> str:
    return shown(line[:200].decode(errors="replace"))


class _CsvLines:
    """The lines of a source as text for csv.reader, and the bytes of the record in progress.

    An error that is raised in the middle of a quoted cell would make csv.reader take the rest of
    it for records. So bytes that are no text are replaced, and `error` spoils the record when it
    is complete; a line or record that is too long ends the source.
    """

    def __init__(self, source: Source) -> None:
        self._lines = source.lines(ends=True)
        self._name = source.name
        self._limit = source.limit
        self.number = 0
        self.error: RecordError | None = None
        self.ended = False
        self._raw: list[bytes] = []
        self._size = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        try:
            line = next(self._lines)
        except StopIteration:
            self.ended = True
            raise
        self.number += 1
        if isinstance(line, OverlongLine):
            raise self._too_long(f"line {self.number}")
        self._raw.append(line)
        self._size += len(line)
        # A quote that is never closed would swallow the rest of the file.
        if len(self._raw) > 1 and self._size > self._limit:
            first = self.number + 1 - len(self._raw)
            raise self._too_long(f"the record that begins in line {first}")
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.error = self.error or _not_utf8(line)
            return line.decode(errors="replace")

    def _too_long(self, what: str) -> SourceError:
        return SourceError(
            f"{self._name}: {what} is longer than {self._limit:,} bytes, and where its quotes end "
            "is not known: what follows was not read"
        )

    @property
    def raw(self) -> bytes:
        """The record in progress, without its last line end."""
        return b"".join(self._raw).removesuffix(b"\n").removesuffix(b"\r")

    def next_record(self) -> int:
        """Forget the last record; the number of the line that the next one begins with."""
        self.error = None
        self._raw = []
        self._size = 0
        return self.number + 1


def _read_csv(source: Source, stream: Stream, null: str | None) -> Iterator[Record]:
    lines = _CsvLines(source)
    rows = csv.reader(lines, strict=True)
    try:
        header = next(rows, None)
        if lines.error:
            raise lines.error
    except (csv.Error, RecordError) as error:
        raise SourceError(f"{source.name}: the header row can't be read: {error}") from error
    if header is None:
        return
    columns = _columns(source, stream, header)
    cls = stream.message
    width = len(columns)
    # csv's own limit for a cell, 128 KiB, is global: raise it to that of the line.
    csv.field_size_limit(max(csv.field_size_limit(), source.limit))
    while True:
        first = lines.next_record()
        try:
            row = next(rows, None)
            if row is None:
                return
            if lines.error:
                raise lines.error
            if not row:
                continue
            message = cls()
            _fill(message, row, columns, width, null)
            yield Record(first, lines.raw, message, None)
        except csv.Error as error:
            if lines.raw.count(b'"') % 2 and not lines.ended:
                # A quote is open, and what csv.reader would go on with stands in its cell.
                raise SourceError(
                    f"{source.name}: the record that begins in line {first} is not CSV ({error}), "
                    "and where its quotes end is not known: what follows was not read"
                ) from error
            begin = _begin(lines.raw.partition(b"\n")[0])
            yield Record(first, lines.raw, None, RecordError("", f"is not CSV ({error}): {begin}"))
        except RecordError as error:
            yield Record(first, lines.raw, None, error)


def _fill(
    message: Any, row: list[str], columns: list[tuple[str, Any]], width: int, null: str | None
) -> None:
    if len(row) != width:
        raise RecordError("", f"has {len(row)} cells where the header has {width}")
    i = 0
    try:
        for cell in row:
            if cell and cell != null:
                columns[i][1](message, cell)
            i += 1
    except RecordError as error:
        raise error.below(columns[i][0]) from None


def _columns(source: Source, stream: Stream, header: list[str]) -> list[tuple[str, Any]]:
    setters = column_setters(stream.descriptor)
    columns: list[tuple[str, Any]] = []
    seen: dict[str, str] = {}
    for cell in header:
        name = cell.strip()
        if name not in setters:
            near = difflib.get_close_matches(name, setters, 1)
            hint = (
                f"did you mean {near[0]}?" if near else f"it has: {', '.join(header_names(stream))}"
            )
            raise SourceError(f"{source.name}: column {name!r} of the header is not a field of "
                              f"{stream.descriptor.full_name}; {hint}")  # fmt: skip
        field, setter = setters[name]
        if field in seen:
            raise SourceError(f"{source.name}: columns {seen[field]!r} and {name!r} of the header "
                              "are the same field")  # fmt: skip
        seen[field] = name
        columns.append((name, setter))
    return columns


def header_names(stream: Stream) -> list[str]:
    """The columns that a CSV may have, by their JSON names."""
    return [field.json_name for field in stream.descriptor.fields]
