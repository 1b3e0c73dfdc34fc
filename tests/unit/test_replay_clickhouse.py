"""A replay into ClickHouse that ends at any point, and an insert that outlives it: one copy each."""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import urlencode

import pytest
from fake_clickhouse import FakeClickHouse
from fake_log import FakeKafka, FakeSource
from simulation import Simulation

from consumers.batch import Batch, Chunk, Partition, Span
from consumers.decode import Decoder
from consumers.replay import clickhouse as module
from consumers.replay.clickhouse import ClickHouseReplay
from consumers.replay.select import Selection
from consumers.sinks import clickhouse
from consumers.sinks.clickhouse_table import Tables
from ingest.gen.headrace.v1.device_state_pb2 import DeviceState
from ingest.streams import BUILT_IN

STREAM = BUILT_IN["device_state"]
DECODER = Decoder(STREAM)
A, B = Partition(STREAM.topic, 0), Partition(STREAM.topic, 1)
BEGIN_US, END_US = 2_000_000, 8_000_000
# Two batches of both partitions.
SPANS = [{A: Span(0, 5), B: Span(0, 6)}, {A: Span(5, 10), B: Span(6, 10)}]


class Crash(BaseException):
    """The process is gone."""


@dataclass
class Scene:
    """Ten records a partition, a second apart; the table has some of them."""

    target: int = -1
    late: bool = False
    points: list[str] = field(default_factory=list)
    # Inserts that left a process that is gone.
    stray: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kafka = FakeKafka(Simulation(1))
        self.kafka.create(STREAM.topic, 2)
        for partition in (A, B):
            for n in range(10):
                record = DeviceState(device_id=f"{partition.number}-{n}")
                record.timestamp.FromMicroseconds(n * 1_000_000)
                self.kafka.produce(partition, record.SerializeToString())
        self.table = FakeClickHouse(self.kafka.sim, STREAM)
        random = Random(3)
        id_ = self.kafka.ids[STREAM.topic]
        self.table.rows = [
            (p, n, {"_topic_id": id_}) for p in (A, B) for n in range(10) if random.random() < 0.4
        ]
        self.there = {(p, n) for p, n, _ in self.table.rows}
        # Some of the range are there more often than once.
        self.table.rows += [row for row in self.table.rows if 2 <= row[1] < 8][::2]

    def at(self, point: str) -> None:
        self.points.append(point)
        if len(self.points) - 1 == self.target:
            raise Crash

    def connect(self, _url: str) -> Any:
        with self.table.connected(lambda _point: None):
            client = clickhouse.connect("")

        def insert(*args: Any, **how: Any) -> None:
            # The bytes are the sink's to use again.
            args = (*args[:2], bytes(args[2]))
            if self.late:
                try:
                    self.at("insert begins")
                except Crash:
                    self.stray.append((args, how))
                    raise
            else:
                self.at("insert begins")
            client.raw_insert(*args, **how)
            self.at("insert ended")

        def command(*args: Any, **how: Any) -> None:
            self.at("deletion begins")
            client.command(*args, **how)
            self.at("deletion ended")

        return SimpleNamespace(
            query=client.query, raw_insert=insert, command=command, close=client.close
        )

    def replay(self) -> None:
        """One process, from where the job is to its end."""
        log: FakeSource = self.kafka.join(at=self.at)
        with mock.patch.object(module, "connect", self.connect):
            sink = ClickHouseReplay("clickhouse://fake", STREAM, Selection(BEGIN_US, END_US), log)
            known = log.known([A, B])
            at = sink.resume(known)
            for spans in SPANS:
                left = {p: Span(max(s.start, at[p]), s.end) for p, s in spans.items()}
                left = {p: s for p, s in left.items() if s.start < s.end}
                if left:
                    sink.write(self.batch(left))

    def batch(self, spans: dict[Partition, Span]) -> Batch:
        chunks = []
        for partition, span in spans.items():
            found = self.kafka.read(partition, span)
            rows, _ = DECODER.decode([m.value() for m in found])
            chunks.append(Chunk(partition, [int(m.offset() or 0) for m in found], rows))
        return Selection(BEGIN_US, END_US).of(Batch(STREAM, spans, tuple(chunks)))

    def check(self) -> None:
        found = [(p, n) for p, n, _ in self.table.rows]
        wanted = self.there | {(p, n) for p in (A, B) for n in range(2, 8)}
        assert sorted(found) == sorted(wanted)
        assert {p: at for p, (at, _) in self.kafka.committed.items()} == {A: 10, B: 10}


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    """The job's and the table's."""
    with mock.patch.object(module, "time", SimpleNamespace(time=lambda: 1_000.0)):
        yield


@pytest.mark.parametrize("late", [False, True], ids=["gone", "late"])
def test_a_replay_that_ends_at_any_point_puts_back_each_row_once(late: bool) -> None:
    whole = Scene()
    whole.replay()
    whole.check()
    assert whole.points.count("insert begins") == 2
    assert whole.points.count("deletion begins") >= 2
    for target in range(len(whole.points)):
        scene = Scene(target, late)
        with pytest.raises(Crash):
            scene.replay()
        scene.target = -1
        scene.replay()
        for args, how in scene.stray:
            # It was on its way all the time.
            with scene.table.connected(lambda _point: None):
                clickhouse.connect("").raw_insert(*args, **how)
        scene.check()


def test_however_many_records_are_there_twice_no_statement_is_longer_than_a_server_takes() -> None:
    """Its parameters are in the URL: of one 128 KiB are taken, of all of it 1 MiB."""
    offsets = range(10**18, 10**18 + 30_000)
    named: list[int] = []

    def command(_text: str, parameters: dict[str, Any], **_: object) -> None:
        assert len(urlencode({"param_offsets": str(parameters["offsets"])})) < 128 * 1024
        named.extend(parameters["offsets"])

    client: Any = SimpleNamespace(
        query=lambda *_, **__: SimpleNamespace(result_rows=[(n,) for n in offsets]),
        command=command,
    )
    chunk = Chunk(A, offsets, DECODER.decode([])[0])
    Tables(client, "clickhouse://fake", {STREAM.topic: STREAM}).take_out(STREAM, [chunk], "id")
    assert named == list(offsets)


def test_what_was_put_back_and_is_gone_again_comes_back_in_another_replay() -> None:
    """No token of an earlier one is in its way."""
    scene = Scene()
    scene.replay()
    scene.table.rows = [row for row in scene.table.rows if (row[0], row[1]) in scene.there]
    scene.kafka.committed.clear()
    with mock.patch.object(module, "time", SimpleNamespace(time=lambda: 1_060.0)):
        scene.replay()
    scene.check()
