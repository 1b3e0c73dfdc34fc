"""Where records are read from: a file or standard input, plain, gzip or zstd, as lines of bytes.

Rules:

* Memory is bounded whatever the input: one chunk, one line up to the limit. A longer line is
  skipped to its end and handed on as an OverlongLine that holds only its beginning.
* Compression is told from the first bytes, not from the name; members and frames may follow each
  other. What comes before a broken or cut-off place is read; then SourceError says so.
* A byte order mark is removed; UTF-16 is refused in a sentence.
* Lines end with \\n; \\r before it belongs to the end. They are counted from 1.
* What a source is, is told from 4 bytes or from all that there is: a pipe may give one at a time.
"""

from __future__ import annotations

import errno
import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

import zstandard

__all__ = ["LINE_LIMIT", "OverlongLine", "Source", "SourceError"]

# The longest line, in bytes: what Kafka takes as a record by default (message.max.bytes).
LINE_LIMIT = 1 << 20

_CHUNK = 1 << 18
# zstd expands at most 128 KiB from a block of 4 bytes: this much input at a time keeps the output
# of one call, which zstandard holds twice, under 8 MiB also for a bomb.
_ZSTD_PIECE = 1 << 8
_KEPT = 1_000
# The longest mark that tells what a source is, zstd's.
_MARK = 4
_ARRAY = re.compile(rb"\s*\[\s*(?:[\[{\]]|$)")
_BOMS_16 = (b"\xff\xfe", b"\xfe\xff")


class SourceError(Exception):
    """A source can't be read, or not to its end; the text names it and says why."""


class OverlongLine(bytes):
    """The beginning of a line that is over the limit."""


class Source:
    """One input. `name` is for people ("-" is standard input), `size` in bytes where known.

    `consumed` says how many of these bytes have been read. Opening raises SourceError; leaving it
    as a context manager closes it. `wait` is called with standard input's descriptor before each
    read of it, and returns when there is something to read.
    """

    def __init__(
        self,
        path: str,
        *,
        limit: int = LINE_LIMIT,
        wait: Callable[[int], object] | None = None,
    ) -> None:
        self.path = path
        self._wait = wait
        self.name = "<stdin>" if path == "-" else path
        self.limit = limit
        self.consumed = 0
        self.size: int | None = None
        self._raw = self._open()
        self._chunks = self._decompress()
        # The first bytes are looked at before the first line is asked for.
        head = b""
        for chunk in self._chunks:
            head += chunk
            if len(head) >= _MARK:
                break
        self._head = head.removeprefix(b"\xef\xbb\xbf")

    def _open(self) -> BinaryIO:
        if self.path == "-":
            return sys.stdin.buffer
        path = Path(self.path)
        try:
            raw = path.open("rb")
            self.size = path.stat().st_size if path.is_file() else None
        except IsADirectoryError:
            raise SourceError(f"{path} is a directory; name its files") from None
        except OSError as error:
            missing = error.errno == errno.ENOENT
            why = "does not exist" if missing else f"can't be read: {error.strerror}"
            raise SourceError(f"{path} {why}") from error
        return raw

    @property
    def first_byte(self) -> bytes:
        """The first byte that is not white space; b"" where there is none at the beginning."""
        return self._head.lstrip()[:1]

    @property
    def opens_array(self) -> bool:
        """Whether it begins as a JSON array of objects or arrays, and not as a line of text."""
        return _ARRAY.match(self._head) is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if self.path != "-":
            self._raw.close()

    def lines(self, *, ends: bool = False) -> Iterator[bytes]:
        """The lines without their ends; with `ends` each has its own, the last one a line feed.

        Raises SourceError where the input breaks off.
        """
        rest = b""
        checked = self._with_its_end if ends else self._checked
        for chunk in self._all_chunks():
            rest, skipping = self._join(rest, chunk)
            if skipping:
                continue
            lines = rest.split(b"\n")
            rest = lines.pop()
            for line in lines:
                yield checked(line)
        if rest:
            yield checked(rest)

    def _join(self, rest: bytes, chunk: bytes) -> tuple[bytes, bool]:
        """The text to be split, and whether it is the inside of a line that is already too long."""
        if len(rest) <= self.limit:
            return rest + chunk, False
        end = chunk.find(b"\n")
        if end < 0:
            return rest, True
        # Its first limit + 1 bytes stand for the line: they are enough to refuse it.
        return rest + chunk[end:], False

    def _checked(self, line: bytes) -> bytes:
        if len(line) > self.limit:
            return OverlongLine(line[:_KEPT])
        return line[:-1] if line.endswith(b"\r") else line

    def _with_its_end(self, line: bytes) -> bytes:
        return OverlongLine(line[:_KEPT]) if len(line) > self.limit else line + b"\n"

    def _all_chunks(self) -> Iterator[bytes]:
        head, self._head = self._head, b""
        if head.startswith(_BOMS_16):
            raise SourceError(f"{self.name} is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`")
        yield head
        yield from self._chunks

    def _read(self, size: int = _CHUNK) -> bytes:
        try:
            if self._wait is not None and self.path == "-":
                self._wait(self._raw.fileno())
            # read1: a pipe gives what it has instead of waiting for a full chunk.
            data = self._raw.read1(size) if hasattr(self._raw, "read1") else self._raw.read(size)
        except OSError as error:
            raise SourceError(f"{self.name} can't be read: {error.strerror}") from error
        self.consumed += len(data)
        return bytes(data)

    def _decompress(self) -> Iterator[bytes]:
        first = self._read()
        while len(first) < _MARK and (more := self._read()):
            first += more
        if first.startswith(b"\x1f\x8b"):
            yield from self._gunzip(first)
        elif first.startswith(b"\x28\xb5\x2f\xfd"):
            yield from self._unzstd(first)
        else:
            while first:
                yield first
                first = self._read()

    def _gunzip(self, first: bytes) -> Iterator[bytes]:
        unzipped = gzip.GzipFile(fileobj=_Prefixed(first, self))
        total = 0
        while True:
            try:
                data = unzipped.read1(_CHUNK)
            except EOFError:
                raise self._broken("gzip", "is cut off", total) from None
            except (gzip.BadGzipFile, zlib.error) as error:
                raise self._broken("gzip", f"is broken: {error}", total) from error
            if not data:
                return
            total += len(data)
            yield data

    def _unzstd(self, first: bytes) -> Iterator[bytes]:
        frame = zstandard.ZstdDecompressor().decompressobj()
        total, begun = 0, False
        while first:
            for start in range(0, len(first), _ZSTD_PIECE):
                piece = first[start : start + _ZSTD_PIECE]
                while piece:
                    if frame.eof:
                        frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
                    try:
                        data = frame.decompress(piece)
                    except zstandard.ZstdError as error:
                        raise self._broken("zstd", f"is broken: {error}", total) from error
                    piece = frame.unused_data if frame.eof else b""
                    begun = True
                    total += len(data)
                    yield data
            first = self._read()
        if begun and not frame.eof:
            raise self._broken("zstd", "is cut off", total)

    def _broken(self, kind: str, how: str, total: int) -> SourceError:
        return SourceError(
            f"{self.name} {how}: its {kind} data ends after {total:,} readable bytes"
        )


class _Prefixed(io.RawIOBase):
    """What of a source was read already, then the rest."""

    def __init__(self, first: bytes, source: Source) -> None:
        self._first = first
        self._source = source

    def read(self, size: int = -1) -> bytes:
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data
        return self._source._read(size)

    def readable(self) -> bool:
        return True
