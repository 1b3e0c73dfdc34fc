"""What an inserter's metrics say before anything has gone wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from fake_log import FakeKafka, FakeLetters
from prometheus_client import REGISTRY
from simulation import Simulation

from consumers.deadletters import KINDS
from consumers.run import Runner
from consumers.sinks.memory import MemorySink, Store
from ingest.streams import BUILT_IN


def test_what_alerts_count_is_there_before_it_happens() -> None:
    """Prometheus sees no increase of a counter that begins with what it should tell of."""
    stream = replace(BUILT_IN["device_state"], name="counted", topic="counted")
    sim = Simulation(1)
    kafka = FakeKafka(sim)
    kafka.create(stream.topic)
    Runner(
        kafka.join, FakeLetters(sim), [stream], lambda _log: MemorySink(Store()), destination="here"
    )
    for kind in KINDS:
        labels = {"stream": "counted", "reason": kind}
        assert REGISTRY.get_sample_value("headrace_dead_letters_total", labels) == 0
    assert REGISTRY.get_sample_value("headrace_fenced_total", {"destination": "here"}) == 0


def test_what_a_collector_refuses_for_want_of_room_is_counted_from_the_start() -> None:
    # In a process of its own: other tests may have counted in this one.
    done = subprocess.run(
        [sys.executable, "-c", "import prometheus_client as p, ingest.collector.metrics; "
         "print(p.generate_latest().decode())"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    for reason in ("full", "busy", "spool", "relay_stopped"):
        counter = f'headrace_collect_refused_requests_total{{reason="{reason}"}} 0.0'
        assert counter in done.stdout.splitlines()
