"""A PostgreSQL that was there before us: its encoding, its roles, and what stands on its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from scene import Scene
from sinks_under_test import PostgresSubject

from consumers.errors import Rejected
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
