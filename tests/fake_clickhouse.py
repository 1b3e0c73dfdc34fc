"""ClickHouse in memory, as far as ClickHouseSink asks it: one table, and tokens of inserts.

    table = FakeClickHouse(stream)
    with table.connected(at):                 # ClickHouseSink connects to it
        sink = ClickHouseSink("clickhouse://fake", [stream], source, step)

An insert is all or nothing, and one whose token was seen within the last hour stores nothing. One
that takes more than five minutes to arrive is given up, as a server does. Rows whose `status` is in `refused` violate a
constraint. `at` is called before an insert is done and before its answer is given: a process may end
or stop there, or the answer be lost.
"""  # noqa: E501

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import orjson
import pyarrow as pa
from clickhouse_connect.driver.exceptions import DatabaseError
from ledger_truth import owed_in
from simulation import Simulation

from consumers.batch import Partition
from consumers.ledger.tally import Entry, Sum
from consumers.sinks import clickhouse
from consumers.sinks.clickhouse_types import column_types, ddl
from ingest.streams import Stream

__all__ = ["FakeClickHouse"]

_REMEMBERED_S = 3600.0
_RECEIVE_TIMEOUT_S = 300.0


class FakeClickHouse:
    """See the module's comment."""

    def __init__(self, sim: Simulation, stream: Stream, refused: Collection[str] = ()) -> None:
        self._sim = sim
        self._stream = stream
        self._refused = refused
        # (partition, offset, row), in the order in which they were stored.
        self.rows: list[tuple[Partition, int, dict[str, Any]]] = []
        # Its ledger: the last row of each partition and start counts.
        self.ledger: dict[tuple[Partition, int], dict[str, Any]] = {}
        # When each token was seen first.
        self._tokens: dict[str, float] = {}

    @contextmanager
    def connected(self, at: Callable[[str], None]) -> Iterator[None]:
        """Sinks that are opened here talk to this."""
        client = SimpleNamespace(
            query=self._query,
            raw_insert=lambda *args, **how: self._insert(at, *args, **how),
            command=self._command,
            close=lambda: None,
        )
        with mock.patch.object(clickhouse, "connect", lambda _url: client):
            yield

    def accounted(self, partition: Partition, position: int, note: str) -> Entry:
        """What the ledger and the metadata of the group's offset say of a partition."""
        since, owed = owed_in(note)
        total = Entry()
        for _, rows, dead in owed:
            total = total.plus(Entry(Sum(*rows), 0, Sum(*dead)))
        for (p, start), row in self.ledger.items():
            if p == partition and start < (position if since is None else since):
                rows_of = zip(row["landed"], row["row_hash"], strict=True)
                dead_of = zip(row["dead"], row["dead_hash"], strict=True)
                for one, other in zip(rows_of, dead_of, strict=True):
                    total = total.plus(Entry(Sum(*one), 0, Sum(*other)))
        return total

    def _query(self, query: str, parameters: Mapping[str, Any] = {}) -> SimpleNamespace:
        if "system.columns" in query:
            types = column_types(self._stream).items()
            return SimpleNamespace(result_rows=[(name, kind, 0) for name, kind in types])
        if query == "EXISTS TABLE headrace_ledger":
            return SimpleNamespace(result_rows=[(1,)])
        if "system.tables" in query:
            return SimpleNamespace(result_rows=[("MergeTree", ddl(self._stream), "")])
        if query.startswith("SELECT DISTINCT partition FROM headrace_ledger"):
            starts = re.findall(r"\((\d+), (\d+)\)", query)
            return SimpleNamespace(
                result_rows=[
                    (int(n),)
                    for n, start in starts
                    if self.ledger.get(
                        (Partition(parameters["topic"], int(n)), int(start)), {"topic_id": None}
                    )["topic_id"]
                    == parameters["id"]
                ]
            )
        if "max(stop) FROM headrace_ledger" in query:
            at = Partition(parameters["topic"], parameters["n"])
            stops = [
                row["stop"]
                for (partition, _), row in self.ledger.items()
                if partition == at and row["topic_id"] == parameters["id"]
            ]
            return SimpleNamespace(result_rows=[(max(stops, default=0),)])
        if "n" not in parameters:
            return SimpleNamespace(result_rows=self._of_many(query, parameters))
        end = parameters.get("end", 2**63)
        offsets = [
            offset
            for partition, offset, row in self.rows
            if partition == Partition(parameters["topic"], parameters["n"])
            and row["_topic_id"] == parameters["id"]
            and parameters["start"] <= offset < end
        ]
        if "HAVING count() > 1" in query:
            twice = {n for n in offsets if offsets.count(n) > 1}
            return SimpleNamespace(result_rows=[(offset,) for offset in sorted(twice)])
        assert query.startswith("SELECT _offset FROM"), "a question this fake does not know"
        return SimpleNamespace(result_rows=[(offset,) for offset in offsets])

    def _of_many(self, query: str, parameters: Mapping[str, Any]) -> list[tuple[int, ...]]:
        """What is asked of several partitions at once."""
        numbers, starts, *more = map(json.loads, re.findall(r"CAST\((\[.*?\])", query))
        ends = more[1] if more else [2**63] * len(numbers)
        spans = dict(zip(numbers, zip(starts, ends, strict=True), strict=True))
        there = [
            (p.number, offset)
            for p, offset, row in self.rows
            if p.topic == parameters["topic"]
            and row["_topic_id"] == parameters["id"]
            and p.number in spans
            and spans[p.number][0] <= offset < spans[p.number][1]
        ]
        if query.startswith("SELECT _partition, _offset"):
            return list(there)
        newest = dict(sorted(there))
        if query.startswith("SELECT _partition, max(_offset)"):
            return list(newest.items())
        assert query.startswith("SELECT DISTINCT _partition"), "a question this fake does not know"
        return [(n,) for n in newest]

    def _command(self, text: str, parameters: dict[str, Any], settings: dict[str, Any]) -> None:
        assert text.startswith("DELETE FROM"), "a command this fake does not know"
        assert settings == {"lightweight_deletes_sync": 2}
        gone = Partition(parameters["topic"], parameters["n"])
        self.rows = [
            (partition, offset, row)
            for partition, offset, row in self.rows
            if not (
                partition == gone
                and offset in parameters["offsets"]
                and row["_topic_id"] == parameters["id"]
            )
        ]

    def _insert(
        self,
        at: Callable[[str], None],
        table: str,
        _columns: list[str],
        body: bytes,
        settings: dict[str, Any],
        fmt: str,
    ) -> None:
        if table == "headrace_ledger":
            at("ledger arrives")
            for row in map(orjson.loads, body.splitlines()):
                self.ledger[Partition(row["topic"], row["partition"]), row["start"]] = row
            at("ledger answers")
            return
        assert fmt == "ArrowStream"
        sent = self._sim.now
        at("insert arrives")
        if self._sim.now - sent > _RECEIVE_TIMEOUT_S:
            raise OSError("timed out (by the test)")
        rows = pa.ipc.open_stream(body).read_all().to_pylist()
        if any(row["status"] in self._refused for row in rows):
            error = DatabaseError("Code: 469. DB::Exception: violated (by the test)")
            error.code = 469
            raise error
        token = settings["insert_deduplication_token"]
        if self._tokens.get(token, -_REMEMBERED_S) + _REMEMBERED_S <= self._sim.now:
            self._tokens[token] = self._sim.now
            self.rows += [(Partition(r["_topic"], r["_partition"]), r["_offset"], r) for r in rows]
        at("insert answers")
