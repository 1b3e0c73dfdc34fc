"""A PostgreSQL that was there before us: its encoding, its roles, and what stands on its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from scene import Scene
from sinks_under_test import PostgresSubject, batch_of

from consumers.batch import Span
from consumers.errors import Rejected, Systemic
from consumers.replay.postgres import PostgresReplay
from consumers.sinks.postgres_checks import check_logged
from consumers.sinks.postgres_client import connect
from headrace.stack import Endpoints


@pytest.fixture
def scene(database: str, tmp_path: Path) -> Iterator[Scene]:
    """A scene in a database of its own."""
    subject = PostgresSubject(tmp_path, database)
    with Scene(subject) as scene:
        yield scene
    subject.close()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_text_is_what_its_record_has_whatever_a_database_is_encoded_in(
    endpoints: Endpoints, unique: Callable[[str], str], tmp_path: Path, encoding: str
) -> None:
    name = unique("encoded")
    url = endpoints.postgres.rsplit("/", 1)[0] + "/" + name
    with psycopg.connect(endpoints.postgres, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' "
            "LOCALE_PROVIDER libc LOCALE 'C'"
        )
        subject = PostgresSubject(tmp_path, url)
        with Scene(subject) as scene:
            scene.fill(0, 1, text="café")
            scene.fill(0, 1, text="кофе")
            writer = scene.writer()
            writer.resume()
            writer.write((0, 0, 1))
            with psycopg.connect(url, client_encoding="utf8") as eye:
                texts = eye.execute(f"SELECT text FROM {scene.stream.table}").fetchall()
            assert texts == [("café",)]
            if encoding == "LATIN1":
                with pytest.raises(Rejected, match="has no equivalent in encoding"):
                    writer.write((0, 1, 2))
            else:
                writer.write((0, 1, 2))
        subject.close()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_what_a_database_sets_for_its_sessions_changes_nothing_for_ours(database: str) -> None:
    theirs = {
        "DateStyle": "SQL, DMY",
        "extra_float_digits": "-15",
        "idle_session_timeout": "1s",
        "statement_timeout": "1s",
        "transaction_timeout": "1s",
    }
    name = database.rsplit("/", 1)[1]
    with psycopg.connect(database, autocommit=True) as connection:
        for setting, value in theirs.items():
            connection.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    with connect(database) as connection:
        ours = [connection.execute(f"SHOW {setting}").fetchone() for setting in theirs]
    assert ours == [("ISO, MDY",), ("1",), ("0",), ("0",), ("0",)]


def test_a_pooler_that_drops_our_settings_is_refused(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pgbouncer takes us with `ignore_startup_parameters = options`, and then no promise holds."""
    plain = psycopg.connect

    def pooled(url: str, *, options: str, **how: Any) -> psycopg.Connection:
        return plain(url, **how)

    monkeypatch.setattr(psycopg, "connect", pooled)
    with pytest.raises(Systemic, match=r"our session settings are lost; .* name PostgreSQL itself"):
        connect(database)


_SKIP = """
CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.text = 'skip' THEN RETURN NULL; END IF; RETURN NEW; END $$;
CREATE TRIGGER skip BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION skip()"""
_MOVE = """
CREATE TABLE child () INHERITS ({table});
CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO child SELECT NEW.*; RETURN NULL; END $$;
CREATE TRIGGER move BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION move()"""


def test_rows_that_a_trigger_skips_are_not_accounted_for_as_landed(
    scene: Scene, database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(_SKIP.format(table=scene.stream.table))
    scene.fill(0, 2)
    scene.fill(0, 1, text="skip")
    writer = scene.writer()
    writer.resume()
    writer.write((0, 0, 2))
    with pytest.raises(Systemic, match=r"has skipped 1 rows of a batch: a trigger"):
        writer.write((0, 2, 3))
    assert writer.resume() == {0: 2, 1: 0}
    scene.check((0, 0, 2))


def test_rows_that_a_trigger_moves_into_a_child_of_the_table_land(
    scene: Scene, database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(_MOVE.format(table=scene.stream.table))
    scene.fill(0, 3)
    scene.finish()
    scene.check()


@pytest.fixture
def role(database: str, unique: Callable[[str], str]) -> Iterator[str]:
    """A role that may log in, and no more."""
    name = unique("role")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
        yield name
        connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_role_does_what_the_documents_say_with_what_they_say_it_needs(
    database: str, role: str, tmp_path: Path
) -> None:
    """As in the table of docs/installing.md."""
    url = f"postgresql://{role}:secret@{database.split('@')[1]}"
    subject = PostgresSubject(tmp_path, database, url)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"REVOKE TEMPORARY ON DATABASE {connection.info.dbname} FROM PUBLIC")
        for dedupe in ((), ("id", "at")):
            with Scene(subject, dedupe=dedupe) as scene:
                table, part = scene.stream.table, scene.partitions[0]
                connection.execute(f"GRANT INSERT ON {table} TO {role}")
                connection.execute(
                    f"GRANT SELECT, INSERT, UPDATE ON headrace_offsets, headrace_ledger TO {role}"
                )
                scene.fill(0, 3)
                if dedupe:
                    with pytest.raises(Systemic, match="grant TEMPORARY on the database"):
                        scene.finish()
                    connection.execute(
                        f"GRANT TEMPORARY ON DATABASE {connection.info.dbname} TO {role}"
                    )
                    with pytest.raises(Systemic, match=rf"{table}; .*replay, SELECT too"):
                        scene.finish()
                    connection.execute(f"GRANT SELECT ON {table} TO {role}")
                scene.finish()
                scene.check()
        connection.execute(
            f"REVOKE INSERT, UPDATE ON headrace_offsets, headrace_ledger FROM {role}"
        )
        sink = PostgresReplay(url, scene.stream, {part: Span(0, 3)}, scene.kafka.join())
        assert not sink.lacking(batch_of(scene.stream, scene.kafka, [(0, 0, 3)]))
        sink.close()
    subject.close()


def test_a_replay_puts_no_row_back_that_row_level_security_hides(
    scene: Scene, database: str, role: str
) -> None:
    table, part = scene.stream.table, scene.partitions[0]
    scene.fill(0, 3)
    scene.finish()
    url = f"postgresql://{role}:secret@{database.split('@')[1]}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"GRANT ALL ON {table}, headrace_offsets, headrace_ledger TO {role}")
        connection.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        connection.execute(f"CREATE POLICY few ON {table} USING (right(id, 1) = '0')")
        with pytest.raises(Systemic, match=r"row-level security.*BYPASSRLS"):
            PostgresReplay(url, scene.stream, {part: Span(0, 3)}, scene.kafka.join())
        connection.execute(f"ALTER ROLE {role} BYPASSRLS")
        sink = PostgresReplay(url, scene.stream, {part: Span(0, 3)}, scene.kafka.join())
        sink.write(scene.writer().batch((0, 0, 3)))
        sink.close()
    scene.check()


def test_a_table_that_a_crash_empties_is_refused(scene: Scene, database: str) -> None:
    table = scene.stream.table
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE part () INHERITS ({table})")
        connection.execute("CREATE TABLE part_of_part () INHERITS (part)")
        for name in ("part_of_part", "part", table, "headrace_offsets"):
            connection.execute(f"ALTER TABLE {name} SET UNLOGGED")
            with pytest.raises(Systemic, match=rf"{name} is UNLOGGED") as refused:
                scene.writer()
            connection.execute(str(refused.value).rsplit("run: ", 1)[1])
        connection.execute("CREATE TABLE whole (at date) PARTITION BY RANGE (at)")
        connection.execute("UPDATE pg_class SET relpersistence = 'u' WHERE relname = 'whole'")
        check_logged(connection, ["whole"])
    scene.writer()


def test_of_a_row_without_a_partition_it_is_said_what_to_do(scene: Scene, database: str) -> None:
    """It stood among the dead letters as though the row were at fault."""
    table = scene.stream.table
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO plain")
        connection.execute(f"CREATE TABLE {table} (LIKE plain) PARTITION BY RANGE (at)")
        scene.fill(0, 1)
        writer = scene.writer()
        writer.resume()
        with pytest.raises(Rejected, match=r"no partition .*: make the partition, or one by DEF"):
            writer.write((0, 0, 1))
        connection.execute(f"CREATE TABLE part PARTITION OF {table} DEFAULT")
        writer.write((0, 0, 1))
    scene.check((0, 0, 1))


def test_a_deferrable_constraint_beside_dedupe_is_for_a_person(
    database: str, tmp_path: Path
) -> None:
    """The batch was tried again for ever."""
    subject = PostgresSubject(tmp_path, database)
    with Scene(subject, dedupe=("id", "at")) as scene:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                f"ALTER TABLE {scene.stream.table} ADD CONSTRAINT c UNIQUE (id, at) DEFERRABLE"
            )
            scene.fill(0, 1)
            writer = scene.writer()
            writer.resume()
            with pytest.raises(Systemic, match="drop the DEFERRABLE constraint on the columns of"):
                writer.write((0, 0, 1))
            connection.execute(f"ALTER TABLE {scene.stream.table} DROP CONSTRAINT c")
        writer.write((0, 0, 1))
        scene.check((0, 0, 1))
    subject.close()


def test_a_row_that_a_unique_index_of_their_own_refuses_is_no_copy(
    database: str, tmp_path: Path
) -> None:
    """With dedupe it was left out like one, and accounted for as there already."""
    subject = PostgresSubject(tmp_path, database)
    with Scene(subject, dedupe=("id", "at")) as scene:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"CREATE UNIQUE INDEX ON {scene.stream.table} (text)")
        scene.fill(0, 1)
        scene.fill(0, 1, text="the same")
        scene.fill(1, 1, text="the same")
        writer = scene.writer()
        writer.resume()
        writer.write((0, 0, 2))
        with pytest.raises(Rejected, match="violates unique constraint"):
            writer.write((1, 0, 1))
        copy = scene.kafka.records[scene.partitions[0]].messages[0]
        assert copy is not None
        scene.kafka.produce(scene.partitions[0], copy.value())
        writer.write((0, 2, 3))
        scene.check((0, 0, 2))
    subject.close()
