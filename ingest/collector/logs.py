"""The door for logs, POST /v1/logs/{stream}: a body as records of a stream, each judged by itself.

JSON is mapped as ingest/mapping.py says, and what no destination could hold is refused, as
ingest/admission.py says: the same rules as a Publisher's. Indexes count records, from 0; blank
lines are none.

A log has no id of its own. Where the request has an Idempotency-Key, a record's id is the stream,
that key, a digest of the body and the record's index: so the same request again is stored once, and
another body under the same key, a client's mistake, is stored too and not taken for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from ingest.admission import Admission
from ingest.collector.crowd import Count, counter
from ingest.collector.judge import BadBody, Caller, Judged, Limits, Refusal, too_many_values
from ingest.collector.log_bodies import Wrong, split, too_large
from ingest.mapping import mapper
from ingest.scalars import RecordError
from ingest.spool.frames import Record
from ingest.streams import Stream

__all__ = ["Logs"]

_LONGEST_REASON = 300
# Of a body, in an id.
_DIGEST_BYTES = 16

# What a record is as it comes: its JSON, or the bytes of its message.
_Make = Callable[[Any], tuple[bytes, bytes]]


class Logs:
    """The door of one stream; `judge` is pure."""

    def __init__(self, stream: Stream) -> None:
        self._topic = stream.topic
        self._name = stream.name
        admission = Admission(stream)
        convert, admit, parse = mapper(stream.descriptor), admission.admit, admission.parse
        self._of_json: _Make = lambda value: admit(convert(value))
        self._of_message: _Make = lambda data: admit(parse(data))
        self._admission = admission
        self._count = counter(stream.descriptor)

    def judge(
        self,
        body: bytes,
        content_type: str,
        caller: Caller,
        limits: Limits,
        now_us: int,
        idempotency_key: str = "",
    ) -> Judged:
        """A body as records of the stream's topic. Raises BadBody."""
        items, messages = split(body, content_type, limits)
        make = self._of_json
        if messages:
            make = self._of_message
            # Each takes two bytes at least.
            if self._count is not None and len(body) > 2 * limits.values:
                make = self._counted(self._count, limits)
        prefix = ""
        if idempotency_key:
            # A stream's name has no colon, and what stands behind the key is of a fixed form: two
            # ids are the same only where all their parts are. Events have `:e:` (events.py).
            digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).hexdigest()
            prefix = f"{caller.source}:l:{self._name}:{idempotency_key}:{digest}:"
        return self._each(items, make, limits, prefix, caller.source)

    def _counted(self, count: Count, limits: Limits) -> _Make:
        """Of a message, for one body: raises BadBody at the record with which it holds too much."""
        admission, left = self._admission, limits.values

        def make(data: bytes) -> tuple[bytes, bytes]:
            nonlocal left
            message = admission.parse(data)
            left -= count(message)
            if left < 0:
                raise too_many_values(limits)
            return admission.admit(message)

        return make

    def _each(
        self, items: Iterator[Any], make: _Make, limits: Limits, prefix: str, source: str
    ) -> Judged:
        topic, most = self._topic, limits.record_bytes
        records: list[Record] = []
        refused: list[Refusal] = []
        for index, item in enumerate(items):
            if index >= limits.records:
                raise BadBody(
                    413,
                    "too_many",
                    f"a request may have {limits.records} records; send less at once",
                )
            if isinstance(item, Wrong):
                refused.append(Refusal(index, item.code, item.reason))
                continue
            try:
                key, value = make(item)
            except RecordError as error:
                refused.append(Refusal(index, "invalid", _said(error)))
                continue
            if len(value) + len(key) > most:
                wrong = too_large(limits)
                refused.append(Refusal(index, wrong.code, wrong.reason))
                continue
            name = f"{prefix}{index}" if prefix else None
            records.append(Record(topic, key, value, name, source))
        return Judged(records, refused)


def _said(error: RecordError) -> str:
    """What is wrong, without the value: a reason's form is `what: value` (ingest/scalars.py)."""
    what = error.reason.partition(": ")[0]
    # A name that is none of ours may be as long as a record.
    return (f"{error.field}: {what}" if error.field else what)[:_LONGEST_REASON]
