"""A vendor's own export: which events it holds, for what it took with a yes and lost all the same.

JSON lines as the vendors give them, plain, gzip or zstd; or one id a line. The id is the key that
the event was sent under, in the object itself or in its `properties`:

    Amplitude    $insert_id, insert_id        PostHog    uuid
    Mixpanel     $insert_id                   Heap       idempotency_key
    GA4          event_id among the event_params of its export to BigQuery, or what
                 key_parameter of [vendors.NAME] names

That of GA4 also holds what its own tags collect, events without that parameter: they are passed
over.
A vendor may have been given a UUID that was made from an event's id, where it takes no other form
or the id is personal data. These are recognised, with and without the secret of [trace]. Eight
bytes are kept for each line: the beginning of a hash.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

import orjson

from consumers.errors import Systemic
from consumers.trace.gate import hidden_key
from consumers.trace.scrub import is_uuid
from consumers.vendors.values import uuid_of
from ingest.sources import OverlongLine, Source, SourceError

__all__ = ["Exported", "ids_of"]

_NO_SETTINGS: Mapping[str, Any] = {}
_NAMES = ("$insert_id", "insert_id", "uuid", "idempotency_key")
_BETWEEN_COLUMNS = (b",", b";", b"\t")


class Exported:
    """The ids of an export, `count` of them."""

    def __init__(
        self, path: str, hash_key: str | None = None, settings: Mapping[str, Any] = _NO_SETTINGS
    ) -> None:
        """`hash_key` is that of [trace], `settings` are [vendors.NAME]; "-" is standard input.

        Raises Systemic for what is no export, and where none can say which events it holds.
        """
        self._secret = (hash_key or "").encode()
        parameter = settings.get("key_parameter", "event_id")
        if not parameter:
            raise Systemic(
                'with key_parameter = "" GA4 is sent no id of an event, so its export has none by '
                "which an event is known"
            )
        marks = {_mark(key) for key in ids_of(path, parameter)}
        if not marks:
            raise Systemic(
                f"{path} holds no event: then all of them would be missing. Is it the right file?"
            )
        self.count = len(marks)
        self._marks = array("Q", sorted(marks))

    def holds(self, event_id: str) -> bool:
        """Whether the event of this id in `raw_events` is among them, under whichever key."""
        if self._has(event_id):
            return True
        return not is_uuid(event_id) and (
            self._has(uuid_of(event_id))
            or self._has(hidden_key(event_id))
            or self._has(hidden_key(event_id, self._secret))
        )

    def _has(self, key: str) -> bool:
        mark = _mark(key)
        at = bisect_left(self._marks, mark)
        return at < len(self._marks) and self._marks[at] == mark


def ids_of(path: str, parameter: str) -> Iterator[str]:
    """The id of each line, in GA4's export that `parameter`.

    Raises Systemic, with the number of the line that has none.
    """
    try:
        with Source(path, limit=64 * 1024 * 1024) as source:
            for n, line in enumerate(source.lines(), 1):
                text = line.strip()
                if text:
                    if text[:1] not in b'{["' and any(one in text for one in _BETWEEN_COLUMNS):
                        # Taken for ids its lines would be none that anybody has: all is missing.
                        raise Systemic(
                            f"line {n} of {source.name} has commas, semicolons or tabs: is this "
                            "CSV? What is needed is the vendor's export as JSON lines, or one id a "
                            "line: of a CSV the column with the ids alone. (An id that has one of "
                            'these goes between quotes, as JSON: "a,b")'
                        )
                    key = None if isinstance(line, OverlongLine) else _id(text, parameter)
                    if key is None:
                        raise Systemic(
                            f"line {n} of {source.name} has none of "
                            f"{', '.join((*_NAMES, parameter))}: what is needed is the vendor's "
                            "export as JSON lines, or one id a line"
                        )
                    if key:
                        yield key
    except SourceError as error:
        raise Systemic(str(error)) from error


def _id(line: bytes, parameter: str) -> str | None:
    """Empty for an event that is not ours, None for what is no event."""
    if line[:1] not in b'{["':
        return line.decode(errors="replace")
    try:
        found: Any = orjson.loads(line)
    except ValueError:
        return None
    if isinstance(found, dict):
        return _id_of(found, parameter)
    return found if isinstance(found, str) and found else None


def _id_of(event: dict[str, Any], parameter: str) -> str | None:
    parameters = event.get("event_params")
    if isinstance(parameters, list):
        return _id_among(parameters, parameter)
    properties = event.get("properties")
    for table in (event, properties if isinstance(properties, dict) else {}):
        for name in (*_NAMES, parameter):
            value = table.get(name)
            if isinstance(value, str) and value:
                return value
    return None


def _id_among(parameters: list[Any], name: str) -> str:
    """As BigQuery exports them: `{"key": "event_id", "value": {"string_value": "…"}}`."""
    for parameter in parameters:
        match parameter:
            case {"key": key, "value": {"string_value": str(value)}} if key == name:
                return value
    return ""


def _mark(key: str) -> int:
    if is_uuid(key):
        key = key.lower()
    return int.from_bytes(blake2b(key.encode(errors="replace"), digest_size=8).digest())
