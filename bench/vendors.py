"""What the forwarder costs: raw events to a vendor's stand-in, beside posting ready bodies.

For Amplitude (batches, few events of a user at a time) and GA4 (25 events of one client a request).
The runs take turns, each in a process of its own against stand-ins that have nothing stored:

    bare      requests that were made before, posted with the same client and concurrency    (limit)
    forward   the run loop: Kafka, allowlist and scrubber, requests, answers, receipts, commits

Events a second, from the first batch to the last commit. `per core` is the same over the processor
time of the forwarder's process: the stand-ins and Kafka share the machine with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from _measure import Row, compare, in_turn, report, stack
from confluent_kafka import Producer

from consumers.deadletters import DeadLetters
from consumers.fetch import calm_gc
from consumers.forward import live
from consumers.forward.settings import VendorSettings, from_tables
from consumers.trace.allowlist import TraceSettings, from_table
from consumers.trace.event import Event
from consumers.trace.gate import Gate
from consumers.vendors import Sending
from headrace.vendors.client import Vendors, serve
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.streams import BUILT_IN
from ingest.topics import ensure

COUNT = int(os.environ.get("EVENTS", "40000"))
# A vendor and its users; each has a topic. Of an Amplitude user 30 events a second are taken. A
# request to Google is about one client, of whom a batch of 10,000 holds 100 events, 25 or 5.
CASES = {
    "amplitude": ("amplitude", 12_000),
    "ga4": ("ga4", 100),
    "ga4-400-clients": ("ga4", 400),
    "ga4-2000-clients": ("ga4", 2000),
}
# Of one core.
TARGETS = {"amplitude": 10_000.0, "ga4": 5_000.0, "ga4-400-clients": 5_000.0}
TRACE: dict[str, Any] = {
    "events": {
        "page_seen": {"properties": {"path": "string", "title": "string", "step": "integer"}}
    }
}
TABLES: dict[str, dict[str, Any]] = {
    "amplitude": {"api_key_env": "KEY"},
    "ga4": {"api_secret_env": "KEY", "measurement_id": "G-1"},
}


def raw_events(users: int, count: int) -> Iterator[RawEvent]:
    """Page views, as sparrow.js sends them."""
    now_us = time.time_ns() // 1000
    for n in range(count):
        user = n % users
        data = {
            "event": "page_seen",
            "deviceId": f"device-{user:06}",
            "timestamp": (now_us + n) / 1e6,
            "properties": {
                "path": f"/shop/{n % 2000}", "title": f"Product {n % 2000}", "step": n % 7,
                "referrer": "https://example.com/",
            },
        }  # fmt: skip
        raw = RawEvent(event_id=str(uuid.uuid4()), content_type="application/json",
                       data=json.dumps(data))  # fmt: skip
        raw.received_at.FromMicroseconds(now_us + n)
        yield raw


def settings(vendor: str, url: str) -> tuple[VendorSettings, TraceSettings]:
    table = {**TABLES[vendor], "endpoint": Vendors(url).at(vendor)}
    return from_tables({vendor: table}, {"KEY": "a-key"})[vendor], from_table(TRACE, TABLES)


def publish(kafka: str, case: str) -> None:
    """The events, in a topic of their own."""
    producer = Producer({"bootstrap.servers": kafka, "linger.ms": 5, "compression.type": "lz4"})
    for raw in raw_events(CASES[case][1], COUNT):
        producer.produce(case, raw.SerializeToString(), raw.event_id.encode())
        producer.poll(0)
    assert producer.flush(60) == 0


# -- runs, each in a process of its own ------------------------------------------------------------


def forward(case: str, kafka: str, url: str) -> dict[str, float]:
    """The forwarder, as `headrace forward --drain` sets it up."""
    from dataclasses import replace

    configured, trace = settings(CASES[case][0], url)
    streams = {**BUILT_IN, "raw_events": replace(BUILT_IN["raw_events"], topic=case)}
    kafka_settings = {"bootstrap.servers": kafka}
    began: list[tuple[float, float]] = []
    group = uuid.uuid4().hex
    opened = live.open_sink

    def open_sink(*args: Any) -> Any:
        sink = opened(*args)
        write = sink.write

        def first(batch: Any) -> None:
            if not began:
                began.append((time.perf_counter(), time.process_time()))
            write(batch)

        sink.write = first  # type: ignore[method-assign] # to see when the first batch begins
        return sink

    live.open_sink = open_sink
    live.forwarder_group = lambda name: f"bench-{name}-{group}"
    runner = live.runner(
        kafka_settings, streams, trace, configured, DeadLetters(kafka_settings, "bench")
    )
    calm_gc()
    totals = runner.run(drain=True)
    wall, core = began[0]
    return {
        "rate": totals.rows / (time.perf_counter() - wall),
        "per_core": totals.rows / (time.process_time() - core),
    }


def bare(case: str, _kafka: str, url: str) -> dict[str, float]:
    """Ready requests, in as many as the forwarder makes of the same events."""
    vendor, users = CASES[case]
    configured, trace = settings(vendor, url)
    gate, built = Gate(trace, vendor), configured.vendor()
    events = [e for raw in raw_events(users, COUNT) if isinstance(e := gate.judge(raw), Event)]
    most = live.limits_of(built).max_rows
    requests = [
        request
        for at in range(0, COUNT, most)
        for request in built.requests(
            events[at : at + most], Sending(time.time_ns() // 1000)
        ).requests
    ]

    async def post_all() -> float:
        left = iter(requests)
        async with httpx.AsyncClient(http2=True, mounts={"http://": None}, timeout=30) as client:

            async def worker() -> None:
                for one in left:
                    answer = await client.post(one.url, content=one.body, headers=one.headers)
                    assert answer.is_success, answer.text

            began = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(configured.engine.concurrency)))
            return time.perf_counter() - began

    core = time.process_time()
    took = asyncio.run(post_all())
    return {"rate": COUNT / took, "per_core": COUNT / (time.process_time() - core)}


def run(*argv: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), *argv], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, print, write."""
    per_core: dict[str, list[float]] = {}
    with stack() as ends, serve() as vendors:
        streams = [BUILT_IN["receipts"].topic, BUILT_IN["receipts"].dlq]
        topics = [*CASES, *(f"{case}.dlq" for case in CASES)]
        ensure({"bootstrap.servers": ends.kafka}, dict.fromkeys([*streams, *topics], 4))
        for case in CASES:
            publish(ends.kafka, case)

        def measured(what: str, case: str) -> float:
            vendor, _ = CASES[case]
            vendors.forget(vendor)
            found = run(what, case, ends.kafka, vendors.url)
            # What comes again within the rate's span would be throttled.
            vendors.advance(60)
            per_core.setdefault(f"{what} {case}", []).append(found["per_core"])
            assert vendors.stored(vendor)["count"] == COUNT
            return found["rate"]

        samples = in_turn(
            {
                f"{what} {case}": lambda w=what, c=case: measured(w, c)
                for case in CASES
                for what in ("bare", "forward")
            },
            rounds=int(os.environ.get("ROUNDS", "3")),
        )
    rows: list[Row] = []
    for case in CASES:
        ours = f"forward {case}"
        rows.append(compare(case, samples, ours, f"bare {case}", target=None, unit="events/s"))
        found = per_core[ours]
        rows.append(
            Row(f"{case}, per core", statistics.median(found), None, "", None, TARGETS.get(case),
                "events/s", found, [])
        )  # fmt: skip
    report("vendors", rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        kind, *rest = sys.argv[1:]
        print(json.dumps({"forward": forward, "bare": bare}[kind](*rest)))
    else:
        main()
