"""Real `headrace forward` processes against the stand-in vendors.

    with Forwarding.start(tmp_path, endpoints.kafka, unique("events"), stand_ins) as scene:
        scene.send(1000)
        scene.forward("--drain").finish()
        scene.once("amplitude")

The environment variable STANDIN_KEY has to hold the webhook's secret: the fixture does that.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inserter import Inserter, free_port
from running import Scene

from headrace.config import load
from headrace.vendors.client import Vendors
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.gen.headrace.v1.receipt_pb2 import Receipt
from ingest.topics import ensure

__all__ = ["ALL", "Forwarding"]

ALL = ("ga4", "amplitude", "heap", "mixpanel", "posthog", "webhook")
_TABLES: Mapping[str, Mapping[str, Any]] = {
    "ga4": {"api_secret_env": "STANDIN_KEY", "measurement_id": "G-1"},
    "amplitude": {"api_key_env": "STANDIN_KEY"},
    "heap": {"app_id_env": "STANDIN_KEY"},
    "mixpanel": {"token_env": "STANDIN_KEY"},
    "posthog": {"api_key_env": "STANDIN_KEY"},
    "webhook": {"secret_env": "STANDIN_KEY", "max_events": 20},
}
_TRACE = """
[trace.events.checkout]
[trace.events.checkout.properties]
step = "integer"
plan = "string"
"""


@dataclass
class Forwarding(Scene):
    """Raw events in a topic of their own, receipts in another."""

    vendors: Vendors = field(default=None)  # type: ignore[assignment] # given by `start`
    # What may leave, and what may not, by id.
    allowed: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @classmethod
    @contextmanager
    def start(
        cls, folder: Path, kafka: str, name: str, vendors: Vendors, names: Iterable[str] = ALL,
        **settings: Mapping[str, Any],
    ) -> Iterator[Forwarding]:  # fmt: skip
        """Topics and a headrace.toml; `settings` are more of [vendors.NAME], by name."""
        scene = cls(folder, kafka, name, "raw", name, vendors=vendors)
        scene.write(names, **settings)
        ensure(
            {"bootstrap.servers": kafka},
            {name: 4, f"{name}.dlq": 1, f"{name}.receipts": 2, f"{name}.receipts.dlq": 1},
        )
        try:
            yield scene
        finally:
            scene.close()

    def write(self, names: Iterable[str], **settings: Mapping[str, Any]) -> None:
        """headrace.toml with these vendors."""
        lines = [
            f'[streams.raw_events]\ntopic = "{self.topic}"',
            f'[streams.receipts]\ntopic = "{self.topic}.receipts"',
        ]
        for name in names:
            where = "url" if name == "webhook" else "endpoint"
            table = {**_TABLES[name], where: self.vendors.at(name), **settings.get(name, {})}
            lines.append(f"[vendors.{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        self.config.write_text("\n".join(lines) + _TRACE)

    # -- events ------------------------------------------------------------------------------------

    def send(self, count: int, users: int = 50, others: int = 0, plan: str = "pro") -> None:
        """Publish so many events that may leave, and `others` that may not."""
        now_us = time.time_ns() // 1000
        records = []
        for n in range(count + others):
            event_id = str(uuid.uuid4())
            (self.allowed if n < count else self.others).append(event_id)
            number = len(self.allowed) + n
            data = {
                "event": "checkout" if n < count else "secret",
                "userId": f"user-{number % users:05}",
                "deviceId": f"device-{number % users:05}",
                "timestamp": (now_us + n) / 1e6,
                "properties": {"step": n, "plan": plan, "not_listed": "x"},
            }
            raw = RawEvent(
                event_id=event_id, content_type="application/json", data=json.dumps(data)
            )
            raw.received_at.FromMicroseconds(now_us + n)
            records.append((event_id.encode(), raw.SerializeToString()))
        self.publish(records)

    def forward(self, *args: str, metrics: bool = False) -> Inserter:
        """Start a process; does not wait for it."""
        argv = ["forward", "--config", str(self.config), "--kafka", self.kafka, *args]
        port = free_port() if metrics else None
        if port is not None:
            argv += ["--metrics", f"127.0.0.1:{port}"]
        log = self.folder / f"forward-{len(self.inserters)}.log"
        self.inserters.append(Inserter(self._start(argv, log), log, argv, port))
        return self.inserters[-1]

    # -- what became of them -----------------------------------------------------------------------

    def receipts(self) -> list[Receipt]:
        """All that are in Kafka now."""
        return [Receipt.FromString(m.value() or b"") for m in self.read(f"{self.topic}.receipts")]

    def statuses(self, vendor: str) -> dict[str, Receipt]:
        """Of this vendor, the last receipt of each event, by its id."""
        return {r.event_id: r for r in self.receipts() if r.vendor == vendor}

    def once(self, vendor: str) -> None:
        """It holds every allowed event exactly once, nothing else, and receipts say just that."""
        keys = Counter(self.vendors.keys(vendor))
        missing = set(self.allowed) - keys.keys()
        assert not missing, f"{vendor}: {len(missing)} of {len(self.allowed)} are missing"
        doubled = [key for key, count in keys.items() if count > 1]
        assert not doubled, f"{vendor}: {len(doubled)} are there twice"
        assert len(keys) == len(self.allowed)
        self.accounted(vendor)

    def accounted(self, vendor: str) -> None:
        """There is a receipt for each event, accepted or dropped as it should be."""
        found = {event_id: r.status for event_id, r in self.statuses(vendor).items()}
        wanted = dict.fromkeys(self.allowed, "accepted") | dict.fromkeys(self.others, "dropped")
        assert found == wanted

    def stream(self, name: str) -> Any:
        """A stream as the configuration has it."""
        return load(self.config, kafka=self.kafka, environ={}).stream(name)
