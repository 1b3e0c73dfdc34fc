"""A vendor is away for minutes under load: what it and the others get, and when.

    make outage MINUTES=10 RATE=1000

`outage`  Amplitude, under a plan of three times the rate, resets every connection for so long.
          Mixpanel and PostHog are the others. By the stand-ins, which note when each event came:
          seconds from recovery to the first fresh event and to the end of the gap, events a second
          at Amplitude until then by the mean and in any one second, and from publish to stored: of
          fresh events at Amplitude meanwhile, and of the others' before and since.
`day`     GA4 is away, and what comes meanwhile is a day's: events with their own times, one in a
          hundred from a device that was offline for up to 80 hours. The ages are a day's; neither
          the volume is, nor the time for which the vendor is away.

Behind both, every allowed event is in each vendor once by its key, but for what GA4 would have
dated anew: that has a receipt that says `expired`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from chaos.edge import PROGRAM, free_port
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from headrace.stack import Stack
from headrace.vendors.client import Vendors, serve
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.topics import ensure
from ingest.units import HOUR_US

__all__ = ["day", "outage"]

PATIENCE_S = 120.0
# Before the outage, and behind the gap's end, in seconds.
QUIET_S, AFTER_S = 20.0, 5.0
USERS = 2000
TABLES: Mapping[str, Mapping[str, Any]] = {
    "amplitude": {"api_key_env": "KEY"},
    "mixpanel": {"token_env": "KEY"},
    "posthog": {"api_key_env": "KEY"},
    "ga4": {"api_secret_env": "KEY", "measurement_id": "G-1"},
}
TRACE = """
[trace.events.checkout]
[trace.events.checkout.properties]
step = "integer"
"""


class Load:
    """Events at a steady rate from a thread; `sent` is when each was published (microseconds)."""

    def __init__(self, kafka: str) -> None:
        self.sent: dict[str, int] = {}
        self._producer = Producer(
            {"bootstrap.servers": kafka, "linger.ms": 5, "acks": "all", "enable.idempotence": True}
        )
        self._stop = threading.Event()

    def publish(self, at_us: int, happened_us: int, user: int) -> str:
        """One event: when it was taken, and when it says it happened."""
        event_id = str(uuid.UUID(int=len(self.sent), version=4))
        data = {
            "event": "checkout", "userId": f"user-{user:05}", "deviceId": f"device-{user:05}",
            "timestamp": happened_us / 1e6, "properties": {"step": len(self.sent)},
        }  # fmt: skip
        raw = RawEvent(event_id=event_id, content_type="application/json", data=json.dumps(data))
        raw.received_at.FromMicroseconds(at_us)
        self.sent[event_id] = time.time_ns() // 1000
        self._producer.produce(
            "raw_events", raw.SerializeToString(), event_id.encode(), timestamp=at_us // 1000
        )
        self._producer.poll(0)
        return event_id

    def run(self, per_second: int) -> None:
        begun, count = time.monotonic(), 0
        while not self._stop.wait(0.005):
            while count < (time.monotonic() - begun) * per_second:
                now_us = time.time_ns() // 1000
                self.publish(now_us, now_us, count % USERS)
                count += 1

    @contextmanager
    def running(self, per_second: int) -> Iterator[None]:
        thread = threading.Thread(target=self.run, args=(per_second,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self.flush()

    def flush(self) -> None:
        assert self._producer.flush(PATIENCE_S) == 0


class Forwarder:
    """`headrace forward` in a process of its own."""

    def __init__(
        self, folder: Path, kafka: str, vendors: Vendors, tables: Mapping[str, Any]
    ) -> None:
        lines = []
        for name, table in tables.items():
            lines.append(f"[vendors.{name}]")
            whole = {**TABLES[name], "endpoint": vendors.at(name), **table}
            lines += [f"{key} = {json.dumps(value)}" for key, value in whole.items()]
        config = folder / "headrace.toml"
        config.write_text("\n".join(lines) + TRACE)
        self.log = folder / "forward.log"
        self._port = free_port()
        with self.log.open("ab") as said:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-c", PROGRAM, "forward", "--config", str(config), "--kafka",
                    kafka, "--metrics", f"127.0.0.1:{self._port}",
                ],
                stdout=said, stderr=said, env={**os.environ, "KEY": "a-key"},
            )  # fmt: skip

    def metric(self, name: str, vendor: str) -> float:
        """Of one vendor, the sum; 0 before it answers."""
        try:
            where = f"http://127.0.0.1:{self._port}/metrics"
            with urllib.request.urlopen(where, timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0.0
        found = [line for line in lines if line.startswith(name + "{") and f'"{vendor}"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def until(self, what: str, holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        give_up = time.monotonic() + patience_s
        while not holds():
            end = self.log.read_text()[-3000:]
            assert self.process.poll() is None, f"the forwarder has ended: {end}"
            assert time.monotonic() < give_up, f"not within {patience_s:.0f} s: {what}: {end}"
            time.sleep(0.2)

    def leapt(self) -> bool:
        return "going on with fresh events" in self.log.read_text()

    def all_final(self, vendor: str, count: int) -> bool:
        """Receipts for so many, and nothing left to a replay."""
        final = self.metric("headrace_vendor_events_total", vendor)
        return final >= count and self.gap_s(vendor) == 0

    def gap_s(self, vendor: str) -> float:
        """The age of what is left to a replay, once the forwarder knows of that."""
        return self.metric("headrace_vendor_gap_seconds", vendor)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)


def events_of(vendors: Vendors, vendor: str) -> list[tuple[str, int]]:
    """Key and arrival of all that it stored, in parts: the stand-in answers in one go."""
    found: list[tuple[str, int]] = []
    while True:
        part = vendors.stored(vendor, list="events", offset=len(found), limit=100_000)["list"]
        found += [(one["key"], one["came_us"]) for one in part]
        if len(part) < 100_000:
            return found


def exactly(vendor: str, found: list[tuple[str, int]], wanted: set[str]) -> None:
    keys = Counter(key for key, _ in found)
    missing, foreign = wanted - keys.keys(), keys.keys() - wanted
    assert not missing, f"{vendor}: {len(missing)} of {len(wanted)} are missing"
    assert not foreign, f"{vendor}: {len(foreign)} should not be there"
    doubled = [key for key, count in keys.items() if count > 1]
    assert not doubled, f"{vendor}: {len(doubled)} are there twice"


def p99_s(sent: Mapping[str, int], found: list[tuple[str, int]], begin: int, end: int) -> float:
    """Of events published in this time, from publish to stored."""
    took = sorted(came - sent[key] for key, came in found if begin <= sent[key] < end)
    return round(took[int(len(took) * 0.99)] / 1e6, 3) if took else 0.0


def most_in_a_second(came: Sequence[int]) -> int:
    """The most in any window of a second; times in order, in microseconds."""
    return max(n + 1 - bisect_left(came, at - 999_999) for n, at in enumerate(came))


def outage(
    kafka: str, vendors: Vendors, folder: Path, *, seconds: float, per_second: int
) -> dict[str, Any]:
    """See the module's comment; AssertionError for an event that is missing or there twice."""
    broken, others, plan = "amplitude", ("mixpanel", "posthog"), 3 * per_second
    tables = {broken: {"events_per_s": plan, "outage_s": min(60.0, seconds / 2)}}
    load = Load(kafka)
    forwarder = Forwarder(folder, kafka, vendors, {**tables, **{name: {} for name in others}})
    try:
        with load.running(per_second):
            forwarder.until("events everywhere", lambda: all(
                forwarder.metric("headrace_vendor_events_total", v) > per_second
                for v in (broken, *others)
            ))  # fmt: skip
            time.sleep(QUIET_S / 4)  # what had gathered is through
            begin_us = time.time_ns() // 1000
            time.sleep(QUIET_S)
            vendors.break_(broken, down="reset")
            down_us = time.time_ns() // 1000
            time.sleep(seconds)
            vendors.mend(broken)
            up_us = time.time_ns() // 1000
            forwarder.until("a leap", forwarder.leapt)
            forwarder.until("its replay", lambda: forwarder.gap_s(broken) > 0)
            forwarder.until(
                "the end of the gap", lambda: forwarder.gap_s(broken) == 0,
                PATIENCE_S + 4 * seconds,
            )  # fmt: skip
            time.sleep(AFTER_S)
        for vendor in (broken, *others):
            forwarder.until(
                f"all in {vendor}", lambda v=vendor: forwarder.all_final(v, len(load.sent))
            )
    finally:
        forwarder.end()
    stored = {vendor: events_of(vendors, vendor) for vendor in (broken, *others)}
    for vendor, found in stored.items():
        exactly(vendor, found, set(load.sent))
    missed = {key for key, at in load.sent.items() if down_us <= at < up_us}
    gap_us = max(came for key, came in stored[broken] if key in missed)
    fresh = min(came for key, came in stored[broken] if load.sent[key] >= up_us)
    came_since = sum(up_us <= came < gap_us for _, came in stored[broken])
    ends = (begin_us, down_us, up_us, gap_us)
    return {
        "events": len(load.sent),
        "missed": len(missed),
        "to_fresh_s": round((fresh - up_us) / 1e6, 2),
        "to_gap_closed_s": round((gap_us - up_us) / 1e6, 1),
        "drain_per_s": round(came_since / (gap_us - up_us) * 1e6),
        "most_in_a_second": most_in_a_second(sorted(came for _, came in stored[broken])),
        "plan": plan,
        "fresh_p99_s": p99_s(load.sent, stored[broken], fresh, gap_us),
        "p99_s_before_during_drain": {
            vendor: [p99_s(load.sent, stored[vendor], *ends[n : n + 2]) for n in range(3)]
            for vendor in others
        },
    }


def day(kafka: str, vendors: Vendors, folder: Path, *, events: int, seed: int) -> dict[str, Any]:
    """See the module's comment; AssertionError for an event that is not where it should be."""
    broken, random = "ga4", Random(seed)
    load, late = Load(kafka), set()
    forwarder = Forwarder(folder, kafka, vendors, {
        broken: {"outage_s": 3.0}, "amplitude": {}, "posthog": {},
    })  # fmt: skip
    try:
        now_us = time.time_ns() // 1000
        load.publish(now_us, now_us, 0)
        load.flush()
        forwarder.until("the first event", lambda: forwarder.all_final(broken, 1))
        vendors.break_(broken, down="reset")
        now_us = time.time_ns() // 1000
        for n in range(events):
            at_us = now_us - 24 * HOUR_US * (events - n) // events
            age_us = random.randint(0, 56 * HOUR_US) if n % 100 == 50 else 0
            key = load.publish(at_us, at_us - age_us, n % 50)
            # So near to the limit that it depends on how long this takes: neither is wrong.
            if age_us and now_us - at_us + age_us > 72 * HOUR_US - 600_000_000:
                late.add(key)
        load.flush()
        for vendor in ("amplitude", "posthog"):
            forwarder.until(
                f"all in {vendor}", lambda v=vendor: forwarder.all_final(v, len(load.sent))
            )
        time.sleep(5)
        vendors.mend(broken)
        forwarder.until("a leap", forwarder.leapt)
        now_us = time.time_ns() // 1000
        fresh = load.publish(now_us, now_us, 0)
        load.flush()
        forwarder.until("all in ga4", lambda: forwarder.all_final(broken, len(load.sent)))
    finally:
        forwarder.end()
    for vendor in ("amplitude", "posthog"):
        exactly(vendor, events_of(vendors, vendor), set(load.sent))
    statuses = {r.event_id: r for r in receipts(kafka) if r.vendor == broken}
    expired = {key for key, r in statuses.items() if r.status == "expired"}
    found = events_of(vendors, broken)
    exactly(broken, found, set(load.sent) - expired)
    assert {r.status for r in statuses.values()} <= {"accepted", "expired"}
    assert expired, "the story has events that are too old"
    assert expired <= late, "only what is too old is refused"
    order = [key for key, _ in found]
    return {
        "events": len(load.sent),
        "expired": len(expired),
        "near_the_limit": len(late - expired),
        "fresh_before": len(order) - order.index(fresh) - 1,
    }


def receipts(kafka: str) -> Iterator[Receipt]:
    """All there are."""
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "check", "enable.partition.eof": True}
    )
    try:
        reading = set(consumer.list_topics("receipts", timeout=30).topics["receipts"].partitions)
        consumer.assign([TopicPartition("receipts", n, OFFSET_BEGINNING) for n in reading])
        while reading:
            for message in consumer.consume(1000, 1.0):
                if message.error():
                    reading.discard(message.partition())
                else:
                    yield Receipt.FromString(message.value())
    finally:
        consumer.close()


def main() -> None:
    """Both; a line of figures for each."""
    parser = argparse.ArgumentParser(description="a vendor is away for minutes under load")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long it is away")
    parser.add_argument("--rate", type=int, default=1000, help="events a second, to each vendor")
    parser.add_argument("--day", type=int, default=20_000, metavar="EVENTS",
                        help="how many events a day has; 0 leaves it out")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.day:
        with place() as (kafka, vendors, folder):
            print("day", json.dumps(day(kafka, vendors, folder, events=args.day, seed=args.seed)))
    if args.minutes:
        with place() as (kafka, vendors, folder):
            figures = outage(
                kafka, vendors, folder, seconds=args.minutes * 60, per_second=args.rate
            )
        print("outage", json.dumps(figures), flush=True)
        assert figures["to_fresh_s"] <= 5
        assert figures["drain_per_s"] <= figures["plan"]
        for before, *since in figures["p99_s_before_during_drain"].values():
            assert max(since) <= 1.2 * before


@contextmanager
def place() -> Iterator[tuple[str, Vendors, Path]]:
    """Kafka, the stand-ins and a folder, for one of them."""
    with (
        tempfile.TemporaryDirectory(prefix="headrace-outage-") as folder,
        Stack(Path(folder) / "state") as stack,
        serve() as vendors,
    ):
        kafka = stack.up(progress=False).kafka
        topics = {"raw_events": 4, "raw_events.dlq": 1, "receipts": 2, "receipts.dlq": 1}
        ensure({"bootstrap.servers": kafka}, topics)
        yield kafka, vendors, Path(folder)


if __name__ == "__main__":
    main()
