"""What trace costs: allowlist and scrubber over raw events, beside decoding their JSON and no more.

The loops take turns in one run, five times; each figure is events a second of one core:

    bare decode     msgspec.json.decode of each event's data, the result thrown away       (limit)
    trace           Gate.judge_row: JSON, allowlist, renames, scrubber; from fields to Event
    of messages     Gate.judge of parsed RawEvents, which it takes apart first
    all text new    the first, where no event has a text that another had: nothing is known as clean
    scrubber        each text of these events by itself, with nothing known

The gate is a new one each time, so what it costs to learn what is clean is in all of it. The events
are what sparrow.js sends of a shop: page views (path, title, address, referrer) and purchases.
Devices, paths and products repeat as few do: 20,000, 2,000 and 300 of them. Each event has its own
id and time, each page view an address of its own.
"""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from _measure import Row, compare, in_turn, report

from consumers.trace.allowlist import from_table
from consumers.trace.gate import Gate
from consumers.trace.scrub import Scrubber
from consumers.vendors import VENDORS
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent

COUNT = 50_000
TAKEN_US = 1_750_114_212_226_001
_TIME = "2025-06-16T22:50:{:02}.{:03}Z"
# event_id, content_type, data, offset
_Row = tuple[str, str, str, int]
TABLE: dict[str, Any] = {
    "events": {
        "pageview": {
            "names": {"ga4": "page_view"},
            "properties": {
                "path": "string", "title": "string", "referrer": "string",
                "url": {"type": "string", "rename": {"ga4": "page_location"}},
            },
        },
        "purchase product": {
            "names": {"ga4": "purchase"},
            "properties": {
                "category": {"type": "string", "one_of": ["billing", "support"]},
                "productName": {"type": "string", "rename": {"ga4": "item_name"}},
                "price": "number", "amount": "integer", "order": "string",
            },
        },
    }
}  # fmt: skip


def _events(count: int, *, new: bool) -> list[RawEvent]:
    """The same every time; with `new` no text stands in two events."""
    chance = random.Random(1)
    numbers = itertools.count(1_000_000)

    def one_of(most: int) -> int:
        return next(numbers) if new else chance.randrange(most)

    def ident(most: int) -> str:
        return str(uuid.UUID(int=random.Random(one_of(most)).getrandbits(128)))

    found = []
    for number in range(count):
        path = f"/shop/shelf-{one_of(2000)}"
        data: dict[str, Any] = {"event": "pageview", "deviceId": ident(20_000)}
        if number % 2:
            data["userId"] = f"user-{one_of(20_000)}"
        data |= {"eventId": ident(2**62), "timestamp": _TIME.format(*divmod(number, 1000))}
        if number % 3:
            data["properties"] = {
                "path": path, "title": f"Shelf {one_of(2000)}, all there is", "width": 1280,
                "url": f"https://www.example.com{path}?utm_source=mail&session={number}",
                "referrer": f"https://search.example.com/find/{one_of(300)}",
            }  # fmt: skip
        else:
            data["event"] = "purchase product"
            data["properties"] = {
                "category": "billing", "productName": f"workers {one_of(300)}", "amount": 2,
                "price": number / 100, "order": f"order-{number}", "note": "left out",
            }  # fmt: skip
        text = msgspec.json.encode(data).decode()
        raw = RawEvent(event_id=data["eventId"], source="web", data=text)
        raw.received_at.FromMicroseconds(TAKEN_US)
        found.append(raw)
    return found


def _rows(events: Sequence[RawEvent]) -> list[_Row]:
    """As a forwarder has them from its columns."""
    return [(raw.event_id, raw.content_type, raw.data, at) for at, raw in enumerate(events)]


def _rate(each: Callable[[Any], object], things: Sequence[Any], events: int) -> float:
    gc.collect()
    start = time.process_time()
    for thing in things:
        each(thing)
    return events / (time.process_time() - start)


def _judge(events: Sequence[RawEvent]) -> float:
    gate = Gate(from_table(TABLE, VENDORS), "ga4")
    found = _rate(gate.judge, events, len(events))
    _all_left(gate, len(events))
    return found


def _judge_rows(rows: Sequence[_Row]) -> float:
    gate = Gate(from_table(TABLE, VENDORS), "ga4")
    judge = gate.judge_row
    gc.collect()
    start = time.process_time()
    for event_id, content_type, data, offset in rows:
        judge(event_id, content_type, data, TAKEN_US, "raw_events", 0, offset)
    took = time.process_time() - start
    _all_left(gate, len(rows))
    return len(rows) / took


def _all_left(gate: Gate, count: int) -> None:
    assert sum(n for (_, _, why), n in gate.counts.items() if why == "allowed") == count


def _texts(events: Sequence[RawEvent]) -> list[str]:
    found = (msgspec.json.decode(raw.data)["properties"] for raw in events)
    return [value for properties in found for value in properties.values() if type(value) is str]


def main() -> None:
    """Measure, print, write."""
    usual, new = _events(COUNT, new=False), _events(COUNT, new=True)
    usual_rows, new_rows = _rows(usual), _rows(new)
    data, texts = [raw.data for raw in usual], _texts(new)
    decode = msgspec.json.Decoder().decode
    settings = from_table(TABLE, VENDORS)

    def scrub() -> float:
        scrubber = Scrubber(settings.scrub, {}, settings.url_parameters)
        return _rate(scrubber, texts, COUNT)

    samples = in_turn(
        {
            "bare decode": lambda: _rate(decode, data, COUNT),
            "trace": lambda: _judge_rows(usual_rows),
            "trace, of messages": lambda: _judge(usual),
            "trace, all new": lambda: _judge_rows(new_rows),
            "scrubber, all new": scrub,
        }
    )
    report(
        "trace",
        [
            compare("trace", samples, "trace", "bare decode", target=None, unit="events/s"),
            compare("trace, of messages", samples, "trace, of messages", "bare decode", target=None,
                    unit="events/s"),
            compare("trace, all text new", samples, "trace, all new", "bare decode", target=None,
                    unit="events/s"),
            compare("scrubber alone, all text new", samples, "scrubber, all new", "bare decode",
                    target=None, unit="events/s"),
            Row("trace, of a core", statistics.median(samples["trace"]), None, "", None, 100_000,
                "events/s", samples["trace"], []),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
