"""Lines of JSON as raw events, through the doors themselves: what `headrace trace check` reads.

A line is what a client sends (an event or an array of Sparrow's, or one of Segment's messages, or
an envelope of either), or a RawEvent in protobuf's JSON: `{"eventId": "…", "data": "{…}"}`.
"""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import json_format

from ingest.collector import segment, sparrow
from ingest.collector.judge import BadBody, Caller, Judged, Limits
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

__all__ = ["raw_events"]

_CALLER = Caller("")
_CALLS = frozenset(segment.CALLS.values())


def raw_events(line: bytes, now_us: int) -> tuple[list[RawEvent], list[str]]:
    """The events of one line as the collector would store them, and what it would refuse."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return [], [f"not JSON: {error}"]
    if isinstance(found, dict) and isinstance(found.get("data"), str) and "event" not in found:
        try:
            raw = json_format.ParseDict(found, RawEvent())
        except json_format.ParseError as error:
            return [], [f"no RawEvent: {error}"]
        if not raw.HasField("received_at"):
            raw.received_at.FromMicroseconds(now_us)
        return [raw], []
    try:
        judged = _judge(found, line, now_us)
    except BadBody as error:
        return [], [error.reason]
    refused = [f"event {r.index}: {r.reason}" for r in judged.refused]
    return [RawEvent.FromString(record.value) for record in judged.records], refused


def _judge(found: Any, line: bytes, now_us: int) -> Judged:
    call = None
    if isinstance(found, dict):
        if isinstance(found.get("batch"), list):
            call = "batch"
        elif found.get("type") in _CALLS and "deviceId" not in found:
            call = str(found["type"])
        elif "event" in found and "deviceId" not in found and not isinstance(found["event"], dict):
            call = "track"
    if call is not None:
        return segment.judge(call, line, "", _CALLER, Limits(), now_us)
    return sparrow.judge(line, "", _CALLER, Limits(), now_us)
