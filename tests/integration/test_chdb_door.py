"""The chDB door is ClickHouse enough for clickhouse-connect, in good times and bad."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import clickhouse_connect
import psutil
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

sys.path.insert(0, str(Path(__file__).parents[1]))
from chdb_door import Door, running_door

TABLE = """CREATE OR REPLACE TABLE t (k Int64, s String) ENGINE = MergeTree ORDER BY k
           SETTINGS non_replicated_deduplication_window = 100"""
ROWS = pa.table({"k": pa.array([1, 2, 3], pa.int64()), "s": ["a", "b", "c"]})


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with running_door(tmp_path_factory.mktemp("door") / "chdb", password="it's secret") as door:
        yield door


def connect(door: Door, **how: object) -> Client:
    return clickhouse_connect.get_client(
        dsn=door.url, autogenerate_session_id=False, tz_mode="aware", **how
    )


@pytest.fixture
def client(door: Door) -> Iterator[Client]:
    client = connect(door)
    client.command(TABLE)
    yield client
    door.cut("before", times=0)
    client.close()


def count(client: Client) -> int:
    return int(client.command("SELECT count() FROM t"))


def test_commands_and_queries_answer_in_python_values(client: Client) -> None:
    assert client.ping()
    assert client.command("SELECT 1 + 1") == 2
    assert client.command("SELECT currentDatabase()") == "default"
    rows = client.query(
        "SELECT {n:Int32} AS n, {s:String} AS s, {l:Array(String)} AS l, toDate('2025-06-16') AS d,"
        " toDateTime64('2025-06-16 22:50:12.226001', 6, 'UTC') AS t, NULL AS x",
        parameters={"n": 7, "s": "tab\t' \\ ü", "l": ["a", "b'"]},
    ).result_rows
    assert rows == [
        (7, "tab\t' \\ ü", ["a", "b'"], date(2025, 6, 16),
         datetime(2025, 6, 16, 22, 50, 12, 226001, UTC), None),
    ]  # fmt: skip
    assert client.query("SELECT number FROM numbers(100000)").row_count == 100_000
    assert client.query_arrow("SELECT number FROM numbers(3)")["number"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
def test_arrow_tables_of_all_usual_types_arrive_whole(door: Door, compress: bool | str) -> None:
    if compress == "lz4":
        pytest.importorskip("lz4", reason="clickhouse-connect does without it since Python 3.14")
    moment = datetime(2025, 6, 16, 22, 50, 12, 226001, UTC)
    hop = pa.struct([("address", pa.string()), ("rtts", pa.list_(pa.float64()))])
    columns = {
        "i32": (pa.int32(), [1, None], "Nullable(Int32)", [1, None]),
        "i64": (pa.int64(), [-(2**63), 2**63 - 1], "Int64", [-(2**63), 2**63 - 1]),
        "u64": (pa.uint64(), [0, 2**64 - 1], "UInt64", [0, 2**64 - 1]),
        "f64": (pa.float64(), [0.5, None], "Nullable(Float64)", [0.5, None]),
        "b": (pa.bool_(), [True, False], "Bool", [True, False]),
        "s": (pa.string(), ["a\0ü", ""], "String", ["a\0ü", ""]),
        "lc": (pa.string(), ["x", "x"], "LowCardinality(String)", ["x", "x"]),
        "dict": (pa.dictionary(pa.int32(), pa.string()), ["p", "q"],
                 "LowCardinality(String)", ["p", "q"]),
        "t": (pa.timestamp("us", tz="UTC"), [moment, moment], "DateTime64(6, 'UTC')",
              [moment, moment]),
        "d": (pa.date32(), [date(2025, 1, 1)] * 2, "Date32", [date(2025, 1, 1)] * 2),
        "dec": (pa.decimal128(10, 2), [Decimal("1.25")] * 2, "Decimal(10, 2)",
                [Decimal("1.25")] * 2),
        "l": (pa.list_(pa.int32()), [[1, 2], []], "Array(Int32)", [[1, 2], []]),
        "m": (pa.map_(pa.string(), pa.int64()), [[("a", 1)], []], "Map(String, Int64)",
              [{"a": 1}, {}]),
        "hops": (pa.list_(hop), [[{"address": "1.1.1.1", "rtts": [1.5]}], []],
                 "Array(Tuple(address String, rtts Array(Float64)))",
                 [[{"address": "1.1.1.1", "rtts": [1.5]}], []]),
    }  # fmt: skip
    client = connect(door, compress=compress)
    client.command("DROP TABLE IF EXISTS types")
    fields = ", ".join(f"{name} {column[2]}" for name, column in columns.items())
    client.command(f"CREATE TABLE types ({fields}) ENGINE = MergeTree ORDER BY tuple()")
    table = pa.table({name: pa.array(c[1], c[0]) for name, c in columns.items()})
    summary = client.insert_arrow("types", table)
    assert summary.written_rows == 2
    got = client.query("SELECT * FROM types")
    for name, values in zip(got.column_names, got.result_columns, strict=True):
        assert list(values) == columns[name][3], name
    client.insert("types", got.result_rows, column_names=got.column_names)  # Native
    assert client.command("SELECT count() FROM types") == 4
    client.close()


def test_a_token_lets_a_batch_in_once(client: Client) -> None:
    for _ in range(3):
        client.insert_arrow("t", ROWS, settings={"insert_deduplication_token": "t-0-0-3"})
    assert count(client) == 3
    client.insert_arrow("t", ROWS, settings={"insert_deduplication_token": "t-0-3-6"})
    assert count(client) == 6


def test_settings_hold_for_one_request_only(client: Client) -> None:
    read = "SELECT getSetting('max_threads')"
    assert client.command(read, settings={"max_threads": 3}) == 3
    assert client.command(read) != 3


@pytest.mark.parametrize(
    ("query", "code"),
    [("SELECT nope", 47), ("SELEKT 1", 62), ("SELECT * FROM nope", 60),
     ("SELECT throwIf(1)", 395), ("SELECT 1 SETTINGS nope = 1", 115)],
)  # fmt: skip
def test_errors_carry_clickhouses_code(client: Client, query: str, code: int) -> None:
    with pytest.raises(DatabaseError) as caught:
        client.command(query)
    assert f"Code: {code}." in str(caught.value)
    assert caught.value.code == code


def test_refused_rows_are_an_error_and_nothing_lands(client: Client) -> None:
    client.command("ALTER TABLE t ADD CONSTRAINT small CHECK k < 3")
    with pytest.raises(DatabaseError) as caught:
        client.insert_arrow("t", ROWS)
    assert caught.value.code == 469
    with pytest.raises(DatabaseError) as caught:
        client.insert_arrow("nowhere", ROWS)
    assert caught.value.code == 60
    assert count(client) == 0


def test_a_wrong_password_is_refused(door: Door) -> None:
    with pytest.raises(DatabaseError, match="AUTHENTICATION_FAILED") as caught:
        clickhouse_connect.get_client(
            host="127.0.0.1", port=door.port, username="default", password="wrong"
        )
    assert caught.value.code == 516
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{door.port}/?query=SELECT+1", timeout=10)
    assert refused.value.code == 403
    refused.value.close()


def test_cut_before_executes_nothing_and_cut_after_executes(door: Door, client: Client) -> None:
    door.cut("before")
    with pytest.raises(OperationalError):
        client.insert_arrow("t", ROWS, settings={"insert_deduplication_token": "lost"})
    assert count(client) == 0
    door.cut("after")
    with pytest.raises(OperationalError):
        client.insert_arrow("t", ROWS, settings={"insert_deduplication_token": "lost"})
    assert count(client) == 3
    client.insert_arrow("t", ROWS, settings={"insert_deduplication_token": "lost"})
    assert count(client) == 3


def test_the_client_repeats_queries_and_native_inserts_itself_but_nothing_else(
    door: Door, client: Client
) -> None:
    door.cut("after", match="SELECT 41")
    assert client.query("SELECT 41 + 1").result_rows == [(42,)]
    door.cut("after")
    with pytest.raises(OperationalError):
        client.command("INSERT INTO t VALUES (1, 'a')")
    door.cut("after")
    with pytest.raises(OperationalError):
        client.insert_arrow("t", ROWS)
    assert count(client) == 4
    # Executed twice, without a word: a sink needs a token, or insert_arrow.
    door.cut("after")
    anew = {"deduplicate_insert": "disable"}
    client.insert("t", [[2, "b"]], column_names=["k", "s"], settings=anew)
    assert count(client) == 6


def test_an_error_can_be_ordered(door: Door, client: Client) -> None:
    door.cut("error", code=252)
    with pytest.raises(DatabaseError) as caught:
        client.insert_arrow("t", ROWS)
    assert caught.value.code == 252
    assert count(client) == 0


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    with running_door(tmp_path / "chdb") as door:
        client = connect(door)
        client.command(TABLE)
        client.insert_arrow("t", ROWS, settings={"insert_deduplication_token": "one"})
        port = door.port
        door.kill()
        with pytest.raises(OperationalError):
            client.command("SELECT 1")
        door.start()
        assert door.port == port
        client.insert_arrow("t", ROWS, settings={"insert_deduplication_token": "one"})
        assert count(client) == 3
        client.close()


def test_many_clients_at_once_do_not_disturb_each_other(door: Door, client: Client) -> None:
    def work(number: int) -> None:
        mine = connect(door)
        for batch in range(5):
            keys = pa.array(range(number * 1000 + batch * 100, number * 1000 + batch * 100 + 100))
            rows = pa.table({"k": keys, "s": pa.array(["x"] * 100)})
            mine.insert_arrow(
                "t", rows, settings={"insert_deduplication_token": f"{number}-{batch}"}
            )
        mine.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.query("SELECT count(), uniqExact(k) FROM t").result_rows == [(3000, 3000)]


def test_the_door_never_outlives_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, time; from pathlib import Path; from chdb_door import Door\n"
         f"door = Door(Path({str(tmp_path / 'chdb')!r}), 0, 'default', '')\n"
         "door.start(); print(door._process.pid, flush=True); time.sleep(600)"],
        cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    gone, alive = psutil.wait_procs([child], timeout=30)
    assert not alive, gone
