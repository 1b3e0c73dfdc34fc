"""Holds what clients were told against what every destination has. No code of the product.

    verdict = check(Ledger.read(path), places)
    verdict.problems                    # sentences with ids; empty when nothing is wrong

In the manner of Kafka's VerifiableProducer and Jepsen's queues. Of each destination:

    lost            acknowledged, and not there
    doubled         there more than once
    invented        there, and nobody ever sent it, or its sender was told that it was refused
    unacknowledged  there, and its sender never had an answer: that is allowed, once

and in the topic `reordered`: of one key and partition, not in the order of the acknowledgements.
Databases have what the topic has, vendors what may leave, each poisonous record is a dead letter
and nowhere else, and of each event every vendor has a receipt whose last word is right.

The ledger is a file of JSON lines, written by clients.py, before (`sent`) and after (`acked`) each
answer; `refused` for what was answered with a no, `poison` for records that can't be decoded.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition
from psycopg import sql

__all__ = ["Ledger", "Places", "Verdict", "check", "is_flowing"]

_PATIENCE_S = 30.0
_SHOWN = 5


@dataclass
class Ledger:
    """What clients did, by event id."""

    sent: set[str] = field(default_factory=set)
    acked: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    poison: set[str] = field(default_factory=set)
    # Not for vendors.
    private: set[str] = field(default_factory=set)
    # Ids in the order of their acknowledgements, by key; without those that have none.
    order: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """From the file."""
        ledger = cls()
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            what, ids = entry["what"], entry["ids"]
            getattr(ledger, what).update(ids)
            if what == "acked" and entry["key"]:
                ledger.order.setdefault(entry["key"], []).extend(ids)
        return ledger


@dataclass(frozen=True)
class Places:
    """Where to look; past every proxy."""

    kafka: str
    topic: str
    postgres: str
    # ClickHouse's HTTP interface.
    clickhouse: str
    table: str
    # The stand-ins, and which of them are to have all that may leave.
    vendors: str
    vendor_names: tuple[str, ...]


@dataclass
class Verdict:
    """`figures` holds numbers by destination, `problems` what is wrong."""

    figures: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def total(self, what: str) -> int:
        """Over all destinations."""
        return sum(figures.get(what, 0) for figures in self.figures.values())

    def add(self, where: str, what: str, ids: Collection[str]) -> None:
        """Count it, and say so where it is wrong."""
        self.figures.setdefault(where, {})[what] = len(ids)
        if ids and what not in ("there", "unacknowledged"):
            some = ", ".join(sorted(ids)[:_SHOWN])
            self.problems.append(f"{where}: {len(ids)} {what}: {some}")


def check(ledger: Ledger, places: Places) -> Verdict:
    """Look everywhere, now."""
    verdict = Verdict()
    # 1. the topic against the ledger
    records, poison = _events(places.kafka, places.topic)
    times = Counter(ident for _, _, ident in records)
    good = ledger.acked - ledger.poison
    _hold(verdict, "kafka", times, wanted=good, allowed=ledger.sent - ledger.poison, acked=good)
    verdict.add("kafka", "reordered", _reordered(ledger, records))
    # 2. databases against the topic
    there = set(times)
    for where, found in (
        ("postgres", _postgres(places.postgres, places.table)),
        ("clickhouse", _clickhouse(places.clickhouse, places.table)),
    ):
        _hold(verdict, where, found, wanted=there | good, allowed=there, acked=good)
    # 3. vendors against the topic, and their receipts
    leave = there - ledger.private
    said = _receipts(places.kafka, f"{places.topic}.receipts")
    for vendor in places.vendor_names:
        found = _vendor(places.vendors, vendor)
        _hold(verdict, vendor, found, wanted=leave, allowed=leave, acked=good)
        last = said.get(vendor, {})
        verdict.add(vendor, "without receipt", {i for i in there if i not in last})
        wrong = {
            ident
            for ident, status in last.items()
            if status != ("dropped" if ident in ledger.private else "accepted")
        }
        verdict.add(vendor, "with a wrong receipt", wrong)
    # 4. dead letters
    letters = {value.decode(errors="replace") for value in _values(places.kafka, places.topic)}
    verdict.add("dlq", "there", letters)
    verdict.add("dlq", "lost", (poison | (ledger.poison & ledger.acked)) - letters)
    verdict.add("dlq", "invented", letters - ledger.poison)
    return verdict


def is_flowing(places: Places) -> bool:
    """Whether both databases and the first vendor have something already."""
    return bool(
        _vendor(places.vendors, places.vendor_names[0])
        and _clickhouse(places.clickhouse, places.table)
        and _postgres(places.postgres, places.table)
    )


def _hold(
    verdict: Verdict, where: str, found: Mapping[str, int], *,
    wanted: set[str], allowed: set[str], acked: set[str],
) -> None:  # fmt: skip
    verdict.add(where, "there", found)
    verdict.add(where, "lost", wanted - found.keys())
    verdict.add(where, "doubled", {ident for ident, times in found.items() if times > 1})
    verdict.add(where, "invented", found.keys() - allowed)
    verdict.add(where, "unacknowledged", (found.keys() & allowed) - acked)


def _reordered(ledger: Ledger, records: list[tuple[int, str, str]]) -> set[str]:
    """Ids that stand behind one that was acknowledged later, of their key and partition."""
    rank = {i: n for ids in ledger.order.values() for n, i in reversed([*enumerate(ids)])}
    latest: dict[tuple[int, str], int] = {}
    found = set()
    for partition, key, ident in records:
        if ident not in rank:
            continue
        place = partition, key
        if rank[ident] < latest.get(place, -1):
            found.add(ident)
        latest[place] = max(latest.get(place, -1), rank[ident])
    return found


# -- Kafka, as any reader of committed records sees it


def _messages(kafka: str, topic: str) -> Iterator[tuple[int, bytes, bytes]]:
    """Partition, key and value of all there is, each partition in its order."""
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "chaos-checker", "log_level": 0,
         "isolation.level": "read_committed", "enable.auto.commit": False,
         "enable.partition.eof": True}
    )  # fmt: skip
    try:
        reading = set(consumer.list_topics(topic, _PATIENCE_S).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in reading])
        give_up = time.monotonic() + _PATIENCE_S
        while reading:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{topic} can't be read to its end")
            for message in consumer.consume(1000, 0.2):
                error = message.error()
                if error is None:
                    yield message.partition(), message.key() or b"", message.value() or b""
                elif error.code() == KafkaError._PARTITION_EOF:
                    reading.discard(message.partition())
    finally:
        consumer.close()


def _events(kafka: str, topic: str) -> tuple[list[tuple[int, str, str]], set[str]]:
    """Of each record partition, key and id; and those that are poison, by their text."""
    records, poison = [], set()
    for partition, key, value in _messages(kafka, topic):
        if value.startswith(b"poison-"):
            poison.add(value.decode())
        else:
            records.append((partition, key.decode(), _text(value, 1)))
    return records, poison


def _values(kafka: str, topic: str) -> list[bytes]:
    return [value for _, _, value in _messages(kafka, f"{topic}.dlq")]


def _receipts(kafka: str, topic: str) -> dict[str, dict[str, str]]:
    """By vendor and id, the last status."""
    found: dict[str, dict[str, str]] = {}
    for _, _, value in _messages(kafka, topic):
        found.setdefault(_text(value, 1), {})[_text(value, 2)] = _text(value, 3)
    return found


def _text(message: bytes, number: int) -> str:
    """A field of text, of a protobuf message; "" without it."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        size = 0
        if tag & 7 == 0:
            _, at = _varint(message, at)
        elif tag & 7 == 2:
            size, at = _varint(message, at)
        else:
            raise ValueError("no such field is in these messages")
        if tag >> 3 == number:
            return message[at : at + size].decode()
        at += size
    return ""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


# -- destinations: how often they have each id


def _postgres(url: str, table: str) -> dict[str, int]:
    query = sql.SQL("SELECT event_id, count(*) FROM {} GROUP BY 1").format(sql.Identifier(table))
    with psycopg.connect(url, connect_timeout=10) as connection:
        return dict(connection.execute(query).fetchall())


def _clickhouse(url: str, table: str) -> dict[str, int]:
    query = f"SELECT event_id, count() FROM `{table}` GROUP BY 1 FORMAT TabSeparated"
    with urllib.request.urlopen(url, query.encode(), timeout=_PATIENCE_S) as answer:
        rows = (line.split("\t") for line in answer.read().decode().splitlines())
    return {ident: int(times) for ident, times in rows}


def _vendor(url: str, vendor: str) -> Counter[str]:
    with urllib.request.urlopen(
        f"{url}/stored/{vendor}?list=keys&limit=1000000", timeout=_PATIENCE_S
    ) as answer:
        return Counter(json.load(answer)["list"])
