"""While a destination is away, what is told of how far behind it is goes on: just then it is needed."""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable

import pytest
from fake_log import LOOP, FakeKafka, FakeLetters
from prometheus_client import Gauge
from simulation import Simulation

from consumers import metrics
from consumers.batch import Batch
from consumers.errors import Unavailable
from consumers.forward import host
from consumers.forward.host import VendorLag
from consumers.lag import Lag, Look
from consumers.limits import Limits
from consumers.run import Runner
from consumers.sinks.memory import MemorySink, Store
from consumers.source import Source
from ingest.streams import BUILT_IN

STREAM = BUILT_IN["device_state"]


@pytest.mark.parametrize(
    ("lag", "age"),
    [
        pytest.param(Lag, lambda: metrics.LAG_SECONDS.labels(STREAM.topic, "0"), id="inserter"),
        pytest.param(
            lambda source: VendorLag("lagging", source),
            lambda: metrics.VENDOR_LAG_SECONDS.labels("lagging"),
            id="forwarder",
        ),
    ],
)
def test_the_age_of_what_has_landed_goes_on_while_both_batches_of_a_lane_wait(
    lag: Callable[[Source], Look], age: Callable[[], Gauge]
) -> None:
    sim = Simulation(1)
    with sim.patched(*LOOP, host):
        kafka, store, away = FakeKafka(sim), Store(), False
        (partition,) = kafka.create(STREAM.topic)
        message = STREAM.message()
        message.timestamp.seconds = 1_750_000_000  # type: ignore[attr-defined]
        message.device_id = "d"  # type: ignore[attr-defined]

        def produce(n: int) -> None:
            for _ in range(n):
                kafka.produce(partition, message.SerializeToString())

        class Sink(MemorySink):
            def write(self, batch: Batch) -> None:
                if away:
                    raise Unavailable("away (by the test)")
                super().write(batch)

        runner: list[Runner] = []

        def main() -> None:
            runner.append(
                Runner(
                    kafka.join, FakeLetters(sim), [STREAM], lambda _log: Sink(store),
                    destination="memory", limits=Limits(max_rows=5), lag=lag,
                )
            )  # fmt: skip
            runner[0].run()

        produce(10)
        process = sim.process("one", main)
        sim.run(lambda: sum(map(len, store.rows.values())) == 10, 100)
        away = True
        produce(100)
        since = sim.now
        seen = []
        for seconds in (60, 120, 600):
            sim.run(lambda s=seconds: sim.now > since + s, 1000)  # type: ignore[misc]
            seen.append(age()._value.get())
        # What has landed last was published at the epoch of both clocks.
        assert seen == pytest.approx([since + s for s in (60, 120, 600)], abs=3.0)
        away = False
        sim.run(lambda: age()._value.get() == 0, 100)
        runner[0].stop()
        sim.run(lambda: process.ended, 100)
        assert process.error is None
