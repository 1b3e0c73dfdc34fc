"""A user's own stream: headrace.toml and a .proto (or a descriptor set), and nothing in Python.

What a person would type is what runs here: migrate, publish, insert. Every value is then compared
in both databases, for a record with every field set, one with none but key and time, and one with
numbers that its enums do not know.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import AdminClient, ConfigResource
from declared import EVERYTHING_PROTO

from headrace.stack import Endpoints

FULL = {
    "id": "full", "seenAt": "2025-06-16T22:50:12.226001Z",
    "doubleV": 1.5, "floatV": 0.5, "int32V": -(2**31), "int64V": str(-(2**63)),
    "uint32V": 2**32 - 1, "uint64V": str(2**64 - 1), "sint32V": -1, "sint64V": -2, "fixed32V": 3,
    "fixed64V": str(2**64 - 2), "sfixed32V": -3, "sfixed64V": -4, "boolV": True,
    "text": 'naïve "☃"', "raw": "AAH/", "colour": "COLOUR_BLUE", "took": "1.500001s",
    # Set to their defaults: that is not the same as unset.
    "maybeInt": 0, "maybeText": "", "maybeBool": False, "maybeColour": "COLOUR_UNSPECIFIED",
    "maybeDouble": 0,
    "doubleW": 2.5, "floatW": 0.25, "int64W": "-5", "uint64W": str(2**64 - 3), "int32W": -6,
    "uint32W": 7, "boolW": True, "textW": "w", "rawW": "AQI=",
    "texts": ["a", "", "c"], "numbers": ["1", str(2**64 - 1)], "colours": ["COLOUR_RED", 7],
    "times": ["2025-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z"], "doubles": [0.1, -2],
    "counts": {"x": 1, "y": str(-(2**53) - 1)}, "names": {"1": "one", "-2": "minus two"},
    "shares": {"true": 0.75, "false": 0.25},
    "partsByName": {"p": {"name": "p", "weight": 1.25, "sizes": [1, 2], "good": True}},
    "part": {"name": "q", "weight": 2, "madeAt": "2024-02-29T12:00:00Z", "took": "-2.5s",
             "colour": "COLOUR_RED", "raw": "AQI=", "tags": {"a": 1}},
    "parts": [{"name": "r"}, {"name": "s", "sizes": [3]}],
    "middle": {"name": "m"},
    "properties": {"a": 1, "b": [True, None, {"c": "d"}]}, "value": 3.5, "list": [1, "two"],
    "structs": [{"x": 1}, {}], "mask": "a.b,cD",
    "tree": {"name": "root", "below": [{"name": "leaf"}]}, "nothing": {},
}  # fmt: skip
BARE = {"id": "bare", "seenAt": "2025-06-16T22:50:13Z"}
ODD = {"id": "odd", "seenAt": "2025-06-16T22:50:14Z", "colour": 99, "maybeColour": -7,
       "left": "l", "took": "-0.000001s"}  # fmt: skip

NO_PART = {"name": "", "weight": 0.0, "sizes": [], "made_at": None, "good": None, "took": None,
           "colour": "COLOUR_UNSPECIFIED", "raw": "", "tags": {}}  # fmt: skip
LEAF = {"name": "leaf", "below": []}

# What is the same in both databases, for the three records: full, bare, odd.
ALIKE: dict[str, tuple[Any, Any, Any]] = {
    "double_v": (1.5, 0, 0), "float_v": (0.5, 0, 0), "int32_v": (-(2**31), 0, 0),
    "int64_v": (-(2**63), 0, 0), "uint32_v": (2**32 - 1, 0, 0), "uint64_v": (2**64 - 1, 0, 0),
    "sint32_v": (-1, 0, 0), "sint64_v": (-2, 0, 0), "fixed32_v": (3, 0, 0),
    "fixed64_v": (2**64 - 2, 0, 0), "sfixed32_v": (-3, 0, 0), "sfixed64_v": (-4, 0, 0),
    "bool_v": (True, False, False), "text": ('naïve "☃"', "", ""),
    "colour": ("COLOUR_BLUE", "COLOUR_UNSPECIFIED", "99"),
    "maybe_int": (0, None, None), "maybe_text": ("", None, None),
    "maybe_bool": (False, None, None), "maybe_colour": ("COLOUR_UNSPECIFIED", None, "-7"),
    "maybe_double": (0, None, None),
    "double_w": (2.5, None, None), "float_w": (0.25, None, None), "int64_w": (-5, None, None),
    "uint64_w": (2**64 - 3, None, None), "int32_w": (-6, None, None), "uint32_w": (7, None, None),
    "bool_w": (True, None, None), "text_w": ("w", None, None),
    "texts": (["a", "", "c"], [], []), "numbers": ([1, 2**64 - 1], [], []),
    "colours": (["COLOUR_RED", "7"], [], []), "doubles": ([0.1, -2], [], []),
    "counts": ({"x": 1, "y": -(2**53) - 1}, {}, {}),
    "names": ({"1": "one", "-2": "minus two"}, {}, {}),
    "shares": ({"true": 0.75, "false": 0.25}, {}, {}),
    "left": (None, None, "l"), "right": (None, None, None),
    "properties": ({"a": 1, "b": [True, None, {"c": "d"}]}, None, None),
    "value": (3.5, None, None), "list": ([1, "two"], None, None),
    "structs": ([{"x": 1}, {}], [], []),
    "tree": ({"name": "root", "below": [LEAF]}, None, None), "nothing": ({}, None, None),
}  # fmt: skip

# PostgreSQL: an unset message is null, times and intervals are psycopg's, bytes in JSON are base64.
POSTGRES: dict[str, tuple[Any, Any, Any]] = {
    **ALIKE,
    "id": ("full", "bare", "odd"),
    "seen_at": (datetime(2025, 6, 16, 22, 50, 12, 226001, UTC),
                datetime(2025, 6, 16, 22, 50, 13, 0, UTC),
                datetime(2025, 6, 16, 22, 50, 14, 0, UTC)),
    "raw": (b"\0\1\xff", b"", b""), "raw_w": (b"\1\2", None, None),
    "took": (timedelta(seconds=1.500001), None, timedelta(microseconds=-1)),
    "times": ([datetime(2025, 1, 1), datetime(1969, 12, 31, 23, 59, 59, 999999)], [], []),
    "parts_by_name": ({"p": {**NO_PART, "name": "p", "weight": 1.25, "sizes": [1, 2],
                             "good": True}}, {}, {}),
    "part": ({**NO_PART, "name": "q", "weight": 2, "made_at": "2024-02-29T12:00:00+00:00",
              "took": "-2.500000s", "colour": "COLOUR_RED", "raw": "AQI=", "tags": {"a": 1}},
             None, None),
    "parts": ([{**NO_PART, "name": "r"}, {**NO_PART, "name": "s", "sizes": [3]}], [], []),
    "middle": ({**NO_PART, "name": "m"}, None, None),
    "mask": ({"paths": ["a.b", "c_d"]}, None, None),
}  # fmt: skip

# ClickHouse: an unset message holds defaults, durations are microseconds, bytes are Strings (asked
# for in base64); its times are read as text in UTC.
CLICKHOUSE: dict[str, tuple[Any, Any, Any]] = {
    **ALIKE,
    "id": ("full", "bare", "odd"),
    "seen_at": ("2025-06-16 22:50:12.226001", "2025-06-16 22:50:13.000000",
                "2025-06-16 22:50:14.000000"),
    "raw": ("AAH/", "", ""), "raw_w": ("AQI=", None, None),
    "took": (1_500_001, None, -1),
    "times": (["2025-01-01 00:00:00.000000", "1969-12-31 23:59:59.999999"], [], []),
    "parts_by_name": ({"p": {**NO_PART, "name": "p", "weight": 1.25, "sizes": [1, 2],
                             "good": True}}, {}, {}),
    "part": ({**NO_PART, "name": "q", "weight": 2, "made_at": "2024-02-29 12:00:00.000000",
              "took": -2_500_000, "colour": "COLOUR_RED", "raw": "\1\2", "tags": {"a": 1}},
             NO_PART, NO_PART),
    "parts": ([{**NO_PART, "name": "r"}, {**NO_PART, "name": "s", "sizes": [3]}], [], []),
    "middle": ({**NO_PART, "name": "m"}, NO_PART, NO_PART),
    "mask": ({"paths": ["a.b", "c_d"]}, {"paths": []}, {"paths": []}),
}  # fmt: skip
# Columns of JSON that ClickHouse keeps as text.
JSON_TEXT = ("properties", "value", "list", "structs", "tree", "nothing")

# In a process of its own: chDB takes one path per process.
ASK = """
import sys
from chdb.session import Session
with Session(sys.argv[1]) as session:
    sys.stdout.buffer.write(session.query(sys.argv[2], "JSONEachRow").bytes())
"""

Run = Callable[..., str]


@pytest.fixture
def headrace(tmp_path: Path, endpoints: Endpoints) -> Run:
    """Runs a command in the user's folder, as the user would; its output, once it ended with 0."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    env |= {"HEADRACE_KAFKA": endpoints.kafka}

    def run(*args: str, stdin: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from headrace.cli import main; main()", *args],
            cwd=tmp_path, env=env, input=stdin, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"headrace {' '.join(args)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def configure(folder: Path, name: str, source: str) -> None:
    """headrace.toml as a user would write it."""
    (folder / "headrace.toml").write_text(
        f'[streams.{name}]\n{source}\nmessage = "test.v1.Everything"\nkey = "id"\n'
        'time = "seen_at"\npartitions = 2\nindexes = [["colour", "seen_at"]]\n'
    )


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def in_postgres(url: str, table: str) -> dict[str, tuple[Any, ...]]:
    """Every column's values, in the order of FULL, BARE, ODD."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            f"SELECT * FROM {table} ORDER BY array_position('{{full,bare,odd}}', id)"  # type: ignore[arg-type]
        )
        names = [column.name for column in found.description or ()]
        rows = found.fetchall()
    assert len(rows) == 3
    return dict(zip(names, map(tuple, zip(*rows, strict=True)), strict=True))


def in_chdb(path: Path, table: str) -> dict[str, tuple[Any, ...]]:
    """The same of ClickHouse, without the columns that say where a row came from."""
    sql = (
        f"SELECT * REPLACE (base64Encode(raw) AS raw, base64Encode(raw_w) AS raw_w) FROM {table} "
        "ORDER BY indexOf(['full', 'bare', 'odd'], id)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK, str(path), sql],
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert len(rows) == 3
    for row in rows:
        for name in JSON_TEXT:
            row[name] = None if row[name] is None else json.loads(row[name])
    return {name: tuple(row[name] for row in rows) for name in rows[0] if not name.startswith("_")}


def test_every_kind_of_field_lands_in_both_databases_without_a_line_of_python(
    tmp_path: Path, headrace: Run, database: str, chdb_path: Path, unique: Callable[[str], str]
) -> None:
    name = unique("everything")
    shutil.copy(EVERYTHING_PROTO, tmp_path)
    configure(tmp_path, name, 'proto = "everything.proto"')
    to = f"chdb:{chdb_path}"
    headrace("migrate", "--to", database, "--to", to, "--stream", name)
    said = headrace("publish", name, stdin=lines(FULL, BARE, ODD))
    assert said == "acknowledged 3 of 3 records\n"
    for url in (database, to):
        said = headrace("insert", "--to", url, "--drain", "--stream", name)
        assert said.startswith("landed 3 rows")
        assert "dead" not in said

    assert in_postgres(database, name) == POSTGRES
    assert in_chdb(chdb_path, name) == CLICKHOUSE


def test_dead_letters_are_kept_for_a_month(
    tmp_path: Path, headrace: Run, endpoints: Endpoints, unique: Callable[[str], str]
) -> None:
    name = unique("everything")
    shutil.copy(EVERYTHING_PROTO, tmp_path)
    configure(tmp_path, name, 'proto = "everything.proto"')
    headrace("migrate", "--stream", name)
    admin = AdminClient({"bootstrap.servers": endpoints.kafka})
    asked = [ConfigResource(ConfigResource.Type.TOPIC, f"{name}.dlq")]
    [answer] = admin.describe_configs(asked).values()
    assert timedelta(milliseconds=int(answer.result(15)["retention.ms"].value)) == timedelta(
        days=30
    )


def test_a_descriptor_set_declares_the_same_stream_as_its_proto(
    tmp_path: Path, headrace: Run, database: str, unique: Callable[[str], str]
) -> None:
    name = unique("everything")
    # As `buf build` or another language's build would write it; the .proto is not there.
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{EVERYTHING_PROTO.parent}",
         "--include_imports", f"--descriptor_set_out={tmp_path / 'all.bin'}",
         EVERYTHING_PROTO.name],
        check=True, timeout=60,
    )  # fmt: skip
    configure(tmp_path, name, 'descriptor_set = "all.bin"')
    headrace("migrate", "--to", database, "--stream", name)
    headrace("publish", name, stdin=lines(FULL, BARE, ODD))
    headrace("insert", "--to", database, "--drain", "--stream", name)
    assert in_postgres(database, name) == POSTGRES


def test_the_expectations_cover_what_was_published() -> None:
    """A guard for the tables above: they are typed by hand, and must not forget a field."""
    fields = {line.split("=")[0].split()[-1] for line in _fields_of_everything()}
    assert fields == set(POSTGRES) == set(CLICKHOUSE)
    assert base64.b64decode(FULL["raw"]) == POSTGRES["raw"][0]
    assert POSTGRES["numbers"][0] == [Decimal(n) for n in FULL["numbers"]]


def _fields_of_everything() -> list[str]:
    body = EVERYTHING_PROTO.read_text().split("message Everything {")[1]
    return [line for line in body.splitlines() if "=" in line]
