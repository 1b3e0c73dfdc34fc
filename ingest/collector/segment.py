"""Segment's door: its HTTP API as its own SDKs speak it, with only the host set.

    POST /v1/track page screen identify group alias     one message, as does the browser library's
         /v1/t     p    s      i        g     a         short path
    POST /v1/batch import b                             {"batch": [message, …], …}
    GET  /v1/projects/KEY/settings                      what the browser library asks for first

Each message is one event, kept as it is, byte for byte (events.py): the envelope's `context`,
`sentAt` and `writeKey` stay out of it. Its id is `messageId`. Segment takes nearly everything, and
its SDKs drop what is refused; so a message must be an object, in a batch with a `type`, and a
`messageId` that is there must be usable. What its other fields hold is the sender's affair.

The name of the call is kept in the content type, because /v1/identify needs no `type`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any

import msgspec

from ingest.collector.events import (
    MAX_ID,
    TOPIC,
    Body,
    check_content_type,
    judge_each,
)
from ingest.collector.judge import BadBody, Caller, Judged, Limits, check_values

__all__ = ["CALLS", "METRICS", "answer", "judge", "settings"]

# What stands behind /v1/ in a path, and the call that it is.
CALLS: Mapping[str, str] = MappingProxyType(
    {
        name: call
        for call in ("track", "page", "screen", "identify", "group", "alias", "batch")
        for name in (call, call[0])
    }
    | {"import": "batch"}
)

# Where the browser library reports about itself: answered with success and dropped.
METRICS = "m"

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)]


# Fields are named as they are on the wire.
class _Message(msgspec.Struct, gc=False):
    messageId: _Id | None = None
    deviceId: Any = None
    anonymousId: Any = None
    userId: Any = None


class _Typed(_Message, gc=False, kw_only=True):
    type: Annotated[str, msgspec.Meta(min_length=1)]


class _Envelope(msgspec.Struct):
    batch: list[msgspec.Raw]


class _Array(msgspec.Struct):
    batch: msgspec.Raw


_object = msgspec.json.Decoder(msgspec.Raw).decode
_message = msgspec.json.Decoder(_Message).decode
_typed = msgspec.json.Decoder(_Typed).decode
_envelope = msgspec.json.Decoder(_Envelope).decode
_array = msgspec.json.Decoder(_Array).decode


def judge(
    call: str,
    body: bytes,
    content_type: str,
    caller: Caller,
    limits: Limits,
    now_us: int,
    topic: str = TOPIC,
) -> Judged:
    """A body of `call`, one of the values of CALLS, as records of `topic`. Raises BadBody.

    `partial(judge, call)` is a door like every other.
    """
    check_content_type(content_type)
    check_values(body, limits)
    whole = Body(body)
    if whole.opens != b"{":
        raise BadBody(400, "not_json", "the body must be a JSON object")
    decode: Callable[[bytes], _Message] = _message
    if call == "batch":
        decode = _typed
        found = whole.decode(_envelope)
        messages = whole.elements(found.batch, lambda shown: _array(shown).batch)
    else:
        whole.decode(_object)
        messages = [whole.whole()]
    kind = f"application/json; segment={call}"
    return judge_each(messages, partial(_read, decode), kind, caller, limits, now_us, topic)


def _read(decode: Callable[[bytes], _Message], shown: bytes) -> tuple[str | None, str | None]:
    message = decode(shown)
    for who in (message.deviceId, message.anonymousId, message.userId):
        if who and isinstance(who, str | int):
            return message.messageId, str(who)
    return message.messageId, None


def answer(judged: Judged) -> tuple[int, dict[str, Any]]:
    """Status and JSON of the answer once the records are safe; 400 when there are none but refused.

    SDKs look at the status alone: 2xx is done, 400 is dropped, 429 and 5xx are sent again.
    """
    said: dict[str, Any] = {"success": bool(judged.records) or not judged.refused}
    if judged.refused:
        said["refused"] = [
            {"index": r.index, "code": r.code, "reason": r.reason} for r in judged.refused
        ]
    return (200 if said["success"] else 400), said


def settings(key: str, origin: str) -> dict[str, Any]:
    """The browser library's settings: no destinations but this collector, and no reports.

    `origin` is where the collector was asked, as in "https://collect.example.com". So a page names
    the collector once, as the library's `cdnURL`.
    """
    protocol, _, host = origin.partition("://")
    return {
        "integrations": {
            "Segment.io": {"apiKey": key, "apiHost": f"{host}/v1", "protocol": protocol}
        },
        "plan": {"track": {"__default": {"enabled": True, "integrations": {}}}},
        "enabledMiddleware": {},
        "metrics": {"sampleRate": 0},
        "remotePlugins": [],
    }
