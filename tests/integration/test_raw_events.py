"""Product events from the doors to both databases, and the view that reads them.

What a person would type is what runs here: migrate, insert, and a query that is the same text for
PostgreSQL and ClickHouse.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from consumers.errors import Systemic
from consumers.sinks import postgres_migrate, raw_normalized
from headrace.stack import Endpoints
from ingest.collector import segment, sparrow
from ingest.collector.judge import Caller, Limits
from ingest.gen.headrace.v1.raw_event_pb2 import RawEvent
from ingest.spool.frames import Record
from ingest.streams import BUILT_IN

NOW_US = 1_750_114_212_226_001
WEB = Caller("web", "203.0.113.0/24", (("user-agent", "curl"),))
PURCHASE = {
    "event": "purchase product", "deviceId": "desktop1", "userId": "michelle1",
    "properties": {"category": "billing", "productName": "workers"},
}  # fmt: skip

# In a process of its own: chDB takes one path per process.
ASK = """
import sys
from chdb.session import Session
with Session(sys.argv[1]) as session:
    for query in sys.argv[2:]:
        sys.stdout.buffer.write(session.query(query, "JSONCompactEachRow").bytes())
"""

Run = Callable[..., str]


@pytest.fixture
def headrace(tmp_path: Path, endpoints: Endpoints) -> Run:
    """Runs a command in the test's folder; its output, once it ended with 0."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    env |= {"HEADRACE_KAFKA": endpoints.kafka}

    def run(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from headrace.cli import main; main()", *args],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"headrace {' '.join(args)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def in_postgres(url: str, query: str) -> list[list[Any]]:
    with psycopg.connect(url) as connection:
        return [list(row) for row in connection.execute(query.encode()).fetchall()]


def in_chdb(path: Path, *queries: str) -> list[list[Any]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK, str(path), *queries],
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def produce(kafka: str, records: Sequence[Record]) -> None:
    producer = Producer({"bootstrap.servers": kafka, "log_level": 0})
    for record in records:
        producer.produce(record.topic, record.value, record.key)
    assert producer.flush(30) == 0


def sent(topic: str) -> list[Record]:
    """What came through the doors."""
    common: dict[str, Any] = {"content_type": "", "caller": WEB, "limits": Limits(),
                              "now_us": NOW_US, "topic": topic}  # fmt: skip
    batch = [
        {"type": "track", "messageId": "c", "event": "e", "anonymousId": "anon", "userId": 7,
         "properties": {"category": "c"}},
        {"type": "page", "messageId": "d", "name": "Home", "category": "docs", "userId": "u",
         "anonymousId": "", "context": {"device": {"id": "phone"}}},
        {"type": "alias", "messageId": "e", "properties": ["category"], "event": ""},
    ]  # fmt: skip
    judged = [
        sparrow.judge(json.dumps({**PURCHASE, "eventId": "a"}).encode(), **common),
        segment.judge("identify", b'{"messageId": "b", "userId": "u"}', **common),
        segment.judge("batch", json.dumps({"batch": batch}).encode(), **common),
    ]
    for i, members in enumerate(HOSTILE):
        body = f'{{"messageId": "h{i:02}", "deviceId": "d", {members}}}'
        judged.append(segment.judge("track", body.encode(), **common))
    assert not any(j.refused for j in judged)
    return [record for j in judged for record in j.records]


# Of the first five, what the view says: the post's own answer, and Segment's calls.
READ = [
    ["purchase product", "desktop1", "michelle1", "billing", "workers"],
    ["identify", None, "u", None, None],
    ["e", "anon", "7", "c", None],
    ["page", "phone", "u", "docs", None],
    ["alias", None, None, None, None],
]

HOSTILE = {
    r'"event": "nul \u0000"': "nul ",
    r'"event": "half \ud83d, \udc00\\ud83d\ud83d\ude00 \u00e9\u000a"': "half , \\ud83d😀 é\n",
    r'"event": "both \ud83d \u0000 1e5000", "x": 1e400': "both   1",
    '"event": "huge", "x": 1e999999, "y": -1E+400': "huge",
    f'"event": "long", "x": {"9" * 5000}': "long",
    '"event": "small", "x": 1e-999999': "small",
    f'"event": "wide", "x": [{",".join(["{}"] * 20_000)}]': "wide",
    f'"event": "deep", "x": {"[" * 60}{"]" * 60}': "deep",
    '"event": "odd", "properties": "x", "context": [1]': "odd",
    '"event": "odder", "properties": {"category": {"a": 1}, "productName": [2]}': "odder",
    f'"event": "large", "x": "{"x" * 800_000}"': "large",
}
# What no door lets through, but a publisher of its own may bring.
FOREIGN = ["", "nonsense", "5", '["a"]', "null", "[" * 200_000, "{" * 7000, '{"a": ' * 100_000,
           f'{{"x": {"[" * 50_000}{"]" * 50_000}}}']  # fmt: skip


def test_what_the_doors_take_lands_in_both_databases_and_one_query_reads_it(
    tmp_path: Path, headrace: Run, endpoints: Endpoints, database: str, chdb_path: Path,
    unique: Callable[[str], str],
) -> None:  # fmt: skip
    """No event makes the view fail for the others, whatever is in it."""
    topic, table = unique("raw_events"), unique("raw")
    (tmp_path / "headrace.toml").write_text(
        f'[streams.raw_events]\ntopic = "{topic}"\ntable = "{table}"\n'
    )
    to = f"chdb:{chdb_path}"
    migrate = ("migrate", "--to", database, "--to", to, "--stream", "raw_events")
    assert headrace(*migrate).count(f"created view {table}_normalized (") == 2
    assert headrace(*migrate) == "nothing to do: all topics and tables are there\n"

    records = sent(topic)
    for i, text in enumerate(FOREIGN):
        event = RawEvent(event_id=f"x{i}", data=text)
        event.received_at.FromMicroseconds(NOW_US)
        records.append(Record(topic, b"k", event.SerializeToString()))
    produce(endpoints.kafka, records)
    for url in (database, to):
        said = headrace("insert", "--to", url, "--drain", "--stream", "raw_events")
        assert said.startswith(f"landed {len(records)} rows")

    view = f"{table}_normalized"
    queries = [
        f"SELECT event, deviceId, userId, category, productName FROM {view} WHERE event_id < 'f'",
        f"SELECT event FROM {view} WHERE event_id LIKE 'h%'",
        f"SELECT event, deviceId, properties FROM {view} WHERE event_id LIKE 'x%'",
        f"SELECT event_id, source, network, data FROM {table} WHERE event_id = 'a'",
        f"SELECT name, type, category FROM {view} WHERE timestamp IS NOT NULL AND type <> 'track'",
    ]
    wanted = [
        *READ,
        *([event] for event in HOSTILE.values()),
        *([None, None, None] for _ in FOREIGN),
        ["a", "web", "203.0.113.0/24", json.dumps({**PURCHASE, "eventId": "a"})],
        ["Home", "page", "docs"],
        [None, "alias", None],
    ]
    ordered = [f"{query} ORDER BY event_id" for query in queries]
    assert [row for query in ordered for row in in_postgres(database, query)] == wanted
    # ClickHouse's text holds a NUL.
    found = in_chdb(chdb_path, *ordered)
    assert [[v.replace("\0", "") if v else v for v in row] for row in found] == wanted
    (headers,) = in_postgres(database, f"SELECT headers FROM {table} WHERE event_id = 'a'")
    assert headers == [{"user-agent": "curl"}]


def test_an_older_view_of_ours_gives_way_and_one_of_somebody_elses_stays(database: str) -> None:
    stream = BUILT_IN["raw_events"]
    view = raw_normalized.postgres(stream)
    assert view is not None
    assert postgres_migrate.migrate(database, [stream]) == ["table raw", "view raw_normalized"]
    with psycopg.connect(database, autocommit=True) as connection:
        # Other columns in another order: CREATE OR REPLACE alone would not do.
        connection.execute("DROP VIEW raw_normalized")
        connection.execute("CREATE VIEW raw_normalized AS SELECT data, 1 AS event FROM raw")
        assert postgres_migrate.migrate(database, [stream]) == []
        connection.execute(f"COMMENT ON VIEW raw_normalized IS '{raw_normalized.MARK}, old'")
        connection.execute("CREATE VIEW mine AS SELECT data FROM raw_normalized")
        with pytest.raises(Systemic, match=r"view mine depends on view raw_normalized"):
            postgres_migrate.migrate(database, [stream])
        connection.execute("DROP VIEW mine")
        assert postgres_migrate.migrate(database, [stream]) == ["view raw_normalized"]
        assert postgres_migrate.migrate(database, [stream]) == []
        assert connection.execute("SELECT productname FROM raw_normalized").fetchall() == []


def test_an_older_view_in_clickhouse_gives_way_and_one_of_somebody_elses_stays(
    headrace: Run, chdb_path: Path
) -> None:
    migrate = ("migrate", "--to", f"chdb:{chdb_path}", "--stream", "raw_events")
    headrace(*migrate)
    old = "CREATE OR REPLACE VIEW raw_normalized AS SELECT 1 AS x"
    in_chdb(chdb_path, old)
    assert "view" not in headrace(*migrate)
    assert in_chdb(chdb_path, "SELECT x FROM raw_normalized") == [[1]]
    in_chdb(chdb_path, f"{old} COMMENT '{raw_normalized.MARK}, old'")
    assert headrace(*migrate) == "created view raw_normalized (chdb)\n"
    assert in_chdb(chdb_path, "SELECT deviceId FROM raw_normalized") == []
