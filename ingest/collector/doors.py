"""The doors: which path leads to which judge, how its answer is said, whom it lets in.

A new door is one entry here. Everything around a judge (limits, unpacking, keys, quotas, the spool,
the answer) is in app.py and the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ingest.collector import answers, segment, sparrow
from ingest.collector.judge import Judged
from ingest.collector.log_bodies import JSON_TYPES, LINES_TYPES, PROTOBUF_TYPES
from ingest.collector.logs import Logs
from ingest.streams import Stream

__all__ = ["EVENTS", "LOGS", "NOT_LOGS", "Door", "doors"]

# Where a stream's name follows.
LOGS = "/v1/logs/"
# The stream of product events. Not a door for logs: who sends an event does not say when it came.
EVENTS = "raw_events"
# Nor are these: what the forwarder says of the vendors is nobody else's to say.
NOT_LOGS = frozenset({EVENTS, "receipts"})


@dataclass(frozen=True, slots=True)
class Door:
    """Where records come in."""

    # For metrics.
    kind: str
    # What a key must be allowed.
    stream: str
    summary: str
    # judge(body, content_type, caller, limits, now_us) -> Judged; Logs takes idempotency_key too.
    judge: Callable[..., Judged]
    content_types: tuple[str, ...]
    answer: Callable[[Judged], tuple[int, dict[str, Any]]] = answers.of_records
    # Whether the key may stand in the body, as `writeKey`.
    key_in_body: bool = False
    needs_key: bool = True
    takes_idempotency_key: bool = False


def doors(streams: Mapping[str, Stream]) -> dict[str, Door]:
    """Every door by its path."""
    found: dict[str, Door] = {}
    for name, stream in streams.items():
        if name not in NOT_LOGS:
            found[LOGS + name] = Door(
                kind="logs",
                stream=name,
                summary=f"Logs of the stream {name}",
                judge=Logs(stream).judge,
                content_types=JSON_TYPES + LINES_TYPES + PROTOBUF_TYPES,
                takes_idempotency_key=True,
            )
    topic = streams[EVENTS].topic if EVENTS in streams else EVENTS
    found["/v1/events"] = Door(
        kind="sparrow",
        stream=EVENTS,
        summary="Product events, as sparrow.js and the SDKs send them",
        judge=partial(sparrow.judge, topic=topic),
        content_types=JSON_TYPES,
        key_in_body=True,
    )
    for path, call in segment.CALLS.items():
        found[f"/v1/{path}"] = Door(
            kind="segment",
            stream=EVENTS,
            summary=f"Segment's {call}",
            judge=partial(segment.judge, call, topic=topic),
            content_types=JSON_TYPES,
            answer=segment.answer,
            key_in_body=True,
        )
    found[f"/v1/{segment.METRICS}"] = Door(
        kind="segment",
        stream=EVENTS,
        summary="What Segment's browser library measures about itself: dropped",
        judge=_drop,
        content_types=JSON_TYPES,
        answer=segment.answer,
        needs_key=False,
    )
    return found


def _drop(*_: Any) -> Judged:
    return Judged([], [])
