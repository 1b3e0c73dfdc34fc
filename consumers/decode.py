"""From a message's bytes to rows: Arrow, without a Python object for a row.

ptars decodes a list of payloads in Rust. When one of them is bad it refuses them all, or panics,
and does not say which; they are then told apart, see `_isolate`. Decoding never raises for what is
in a message: it returns the rows that are good and the reason for each that is not.

What a message must hold beyond the wire format is in decode_checks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import ptars
import pyarrow as pa
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from consumers.columns import Kind, columns
from consumers.decode_checks import InRange, check_of
from consumers.errors import Systemic
from consumers.json_form import to_json
from ingest.streams import Stream

__all__ = ["MAX_RECORD_BYTES", "Decoded", "Decoder"]

# A larger record is bad, in bytes: what can't be held a few times over can't be landed.
MAX_RECORD_BYTES = 8 * 1024 * 1024


class Decoded(NamedTuple):
    """Good rows, in order; `bad` has the index and reason of each payload that is not among them."""  # noqa: E501

    rows: pa.RecordBatch
    bad: dict[int, str]


class Decoder:
    """Decodes one stream's messages; columns are those of `columns(stream)`, in that order.

    Arrow types are ptars's, with timestamps and durations in microseconds and enums by name; a
    column of Kind.JSON is text. Raises Systemic for a message that ptars can't be taught.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._parse = _parser(stream)
        self._columns = columns(stream)
        self._renamed = any(c.name != c.field for c in self._columns)
        self._json = [c for c in self._columns if c.kind is Kind.JSON]
        self._checks = [check for c in self._columns if (check := check_of(c, stream)) is not None]
        self._times = next(c for c in self._checks if isinstance(c, InRange) and c.is_time)
        self.schema: pa.Schema = self.decode([]).rows.schema

    def decode(self, payloads: Sequence[bytes | None], at_most: int | None = None) -> Decoded:
        """Decode payloads; a tombstone (None) is bad: a table of logs has nothing to delete.

        `at_most`: so many bytes together, where that is known; to count them takes a quarter of all
        the rest.
        """
        large = {}
        if at_most is None:
            at_most = sum(map(len, filter(None, payloads)))
        if at_most > MAX_RECORD_BYTES:
            large = {
                i: f"{len(p):,} bytes, the limit is {MAX_RECORD_BYTES:,}"
                for i, p in enumerate(payloads)
                if p and len(p) > MAX_RECORD_BYTES
            }
            payloads = [None if i in large else p for i, p in enumerate(payloads)]
        bad: dict[int, str] = {}
        kept: Sequence[int] = range(len(payloads))
        rows = self._try(payloads)
        if isinstance(rows, str):
            rows, bad = self._isolate(payloads)
            bad |= large
            kept = [i for i in range(len(payloads)) if i not in bad]
        for check in self._checks:
            for row, reason in check(rows).items():
                bad.setdefault(kept[row], reason)
        if len(bad) > len(payloads) - rows.num_rows:
            stay = [row for row, index in enumerate(kept) if index not in bad]
            rows, kept = rows.take(pa.array(stay, pa.int64())), [kept[row] for row in stay]
        if self._json:
            rows = self._render(payloads, kept, rows, bad)
        if self._renamed:
            rows = rows.rename_columns([c.name for c in self._columns])
        return Decoded(rows, bad)

    @property
    def times_us(self) -> tuple[int, int] | None:
        """Between which times all rows lie that were decoded last; None for no rows."""
        least, most = self._times.least, self._times.most
        return None if least is None or most is None else (least, most)

    def _try(self, payloads: Sequence[bytes | None]) -> pa.RecordBatch | str:
        """The rows of all of them, or why ptars can't have them."""
        try:
            return self._parse(payloads)
        except (ValueError, TypeError) as error:
            return str(error)
        except BaseException as error:
            if not _is_panic(error):
                raise
            return str(error)

    def _isolate(self, payloads: Sequence[bytes | None]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Find the bad ones: first those that protobuf's own parser points at, then by halving.

        ptars alone decides, so that the verdict on a message does not depend on its neighbours; the
        other parser only saves halvings (1 % bad in 1,000: 0.13 M/s by halving, 0.5 M/s so).

        Where ptars fails it is asked once more, with messages written anew. A map's entry may leave
        out its value, which means the default; ptars panics where that is a message.
        """
        parse = self._stream.message.FromString
        suspects: dict[int, str] = {}
        for i, payload in enumerate(payloads):
            if payload is None:
                suspects[i] = "it has no value (a tombstone)"
                continue
            try:
                parse(payload)
            except DecodeError:
                if isinstance(tried := self._try([payload]), str):
                    suspects[i] = tried
        rest = [i for i in range(len(payloads)) if i not in suspects]
        good: list[pa.RecordBatch] = [self._parse([])]
        todo = [rest]
        while todo:
            part = todo.pop()
            tried = self._try([payloads[i] for i in part])
            if isinstance(tried, str):
                again = self._try([self._anew(payloads[i] or b"", len(part) == 1) for i in part])
                tried = tried if isinstance(again, str) else again
            if not isinstance(tried, str):
                good.append(tried)
            elif len(part) == 1:
                suspects[part[0]] = tried
            else:
                middle = len(part) // 2
                todo += [part[middle:], part[:middle]]
        return pa.concat_batches(good), suspects

    def _anew(self, payload: bytes, alone: bool) -> bytes:
        """A message as protobuf writes it: with what its maps left out.

        Among others only one that gets longer: a key that is there twice is there once afterwards,
        which is not to hang on a message's neighbours.
        """
        try:
            whole = self._stream.message.FromString(payload).SerializePartialToString()
        except DecodeError:
            return payload
        return whole if alone or len(whole) > len(payload) else payload

    def _render(
        self,
        payloads: Sequence[bytes | None],
        kept: Sequence[int],
        rows: pa.RecordBatch,
        bad: dict[int, str],
    ) -> pa.RecordBatch:
        """Replace the columns that no fixed type can hold by their JSON text.

        Adds to `bad` what ptars takes and JSON can't say: NaN in a Struct, nesting beyond measure.
        """
        texts: list[list[str | None]] = []
        stay = []
        for row, i in enumerate(kept):
            try:
                message = self._stream.message.FromString(payloads[i] or b"")
                texts.append([to_json(message, column.field) for column in self._json])
                stay.append(row)
            except (DecodeError, json_format.Error, ValueError, TypeError, RecursionError) as error:
                bad[i] = f"it has no JSON form: {error}"
        if len(stay) < rows.num_rows:
            rows = rows.take(pa.array(stay, pa.int64()))
        for n, column in enumerate(self._json):
            rows = rows.set_column(
                rows.schema.get_field_index(column.field),
                pa.field(column.field, pa.string(), nullable=column.nullable),
                pa.array([text[n] for text in texts], pa.string()),
            )
        return rows


def _parser(stream: Stream) -> Callable[[Sequence[bytes | None]], pa.RecordBatch]:
    """ptars for its message; a None among the payloads raises TypeError."""
    config = ptars.PtarsConfig(timestamp_unit="us", duration_unit="us", enum_repr="string")
    try:
        pool = ptars.HandlerPool([stream.descriptor.file], config)
        parse: Callable[[Sequence[bytes | None]], pa.RecordBatch] = pool.get_for_message(
            stream.descriptor
        ).list_to_record_batch
        made = parse([]).schema.names
    except BaseException as error:
        if not _is_panic(error):
            raise
        raise Systemic(
            f"stream {stream.name}: inserters can't decode {stream.descriptor.full_name}, so none "
            f"of its records would land; change {stream.descriptor.file.name} or what it imports: "
            f"{error}"
        ) from None
    names = [field.name for field in stream.descriptor.fields]
    # ptars has them in the order of their numbers: COPY would put one field's values into another's
    # column.
    return parse if made == names else lambda payloads: parse(payloads).select(names)


def _is_panic(error: BaseException) -> bool:
    """Whether it is of Rust: its class is in no module, and stands beside KeyboardInterrupt."""
    return type(error).__module__ == "pyo3_runtime"
