"""Sparrow's door, POST /v1/events: an event, an array, or `{"writeKey": …, "events": [event, …]}`.

    {"event": "purchase product", "deviceId": "desktop1", "userId": "michelle1",
     "eventId": "0197…", "timestamp": "…", "properties": {"category": "billing"}}

`event` and `deviceId` are text that is not empty; where they are given, `userId` and `eventId` are
text and `properties` is an object. `timestamp` and whatever else is there is the sender's affair.
An event is kept as it is, byte for byte (events.py). An object that has `event` is an event.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from ingest.collector.events import (
    MAX_ID,
    TOPIC,
    Body,
    check_content_type,
    judge_each,
)
from ingest.collector.judge import BadBody, Caller, Judged, Limits, check_values

__all__ = ["judge"]

_CONTENT_TYPE = "application/json"

_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)]


class _Object(msgspec.Struct):
    """Any object; what is in it is skipped."""


# Fields are named as they are on the wire.
class _Event(msgspec.Struct, gc=False):
    event: _Name
    deviceId: _Name
    userId: str | None = None
    eventId: _Id | None = None
    properties: _Object | None = None


class _Envelope(msgspec.Struct):
    event: msgspec.Raw | UnsetType = UNSET
    events: list[msgspec.Raw] | UnsetType = UNSET


class _Array(msgspec.Struct):
    events: msgspec.Raw


_event = msgspec.json.Decoder(_Event).decode
_envelope = msgspec.json.Decoder(_Envelope).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_array = msgspec.json.Decoder(_Array).decode


def judge(
    body: bytes,
    content_type: str,
    caller: Caller,
    limits: Limits,
    now_us: int,
    topic: str = TOPIC,
) -> Judged:
    """A body of events as records of `topic`. An empty array is none. Raises BadBody."""
    check_content_type(content_type)
    check_values(body, limits)
    return judge_each(_split(Body(body)), _read, _CONTENT_TYPE, caller, limits, now_us, topic)


def _split(body: Body) -> list[tuple[bytes, bytes]]:
    if body.opens == b"[":
        return body.elements(body.decode(_list))
    if body.opens != b"{":
        raise BadBody(400, "not_json", "the body must be a JSON object or an array of objects")
    found = body.decode(_envelope)
    if found.event is UNSET and found.events is not UNSET:
        return body.elements(found.events, lambda shown: _array(shown).events)
    return [body.whole()]


def _read(shown: bytes) -> tuple[str | None, str | None]:
    event = _event(shown)
    return event.eventId, event.deviceId
