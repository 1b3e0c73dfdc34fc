"""What `headrace lag` says where nobody reads: of whom that is meant, and what to type."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consumers.batch import Partition, Span
from consumers.behind import Waiting
from headrace.cli.lag import Row as LagRow
from headrace.cli.lag import _note, _show, _tell_nobody, _tell_unbegun
from headrace.config import Config
from headrace.readers import Reader, Standing, _readers
from ingest.streams import BUILT_IN

STREAM = BUILT_IN["device_state"]
CONFIG = Config({}, {STREAM.name: STREAM}, Path())
PART = Waiting(Partition(STREAM.topic, 0), None, Span(0, 9), 1)
AMONG = " in the group {} (another one is given with --group)"


def idle(name: str, url: str, group: str | None = None) -> Standing:
    """A database with which nobody in this group has begun."""
    (reader,) = _readers(CONFIG, {name: url}, [STREAM], group)
    return Standing(reader, [PART])


@pytest.mark.parametrize("group", [None, "g"])
def test_that_nobody_reads_is_said_of_the_group_where_another_one_may(
    capsys: pytest.CaptureFixture[str], group: str | None, tmp_path: Path
) -> None:
    url = f"chdb:{tmp_path}"
    here, postgres = idle(url, url, group), idle("postgres", "postgres://db/prod", group)
    among = AMONG.format(group or f"headrace-insert-{url}")
    _tell_nobody([here, postgres])
    assert capsys.readouterr().out == (
        f"nobody{among} reads any of this, nor has for a week: "
        "begin with `headrace insert --to …`\n"
    )
    _tell_unbegun([here, postgres])
    more = "has begun with device_state, of which there are records\n"
    assert capsys.readouterr().out == f"{url}: nobody{among} {more}postgres: nobody {more}"
    assert _note(CONFIG, here, 0, 0) == f"nobody{among} reads, type: {here.reader.start}"
    begun = replace(here, partitions=[replace(PART, position=3)])
    assert _note(CONFIG, begun, 0, 0) == f"nobody reads, type: {here.reader.start}"


def test_where_no_group_has_a_say_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """PostgreSQL has its positions itself."""
    _tell_nobody([idle("postgres", "postgres://db/prod", "g")])
    assert capsys.readouterr().out.startswith("nobody reads any of this, nor has for a week: begin")


def test_groups_of_several_databases_are_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    urls = ("clickhouse://a/x", "clickhouse://b/x")
    _tell_nobody([idle(url, url) for url in urls])
    assert " in the groups headrace-insert-clickhouse:a" in capsys.readouterr().out


def test_a_vendor_that_kafka_may_have_forgotten_is_not_said_to_be_new(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever types this does so for one that was left out for a week as well."""
    (reader,) = _readers(CONFIG, {"heap": None}, [BUILT_IN["raw_events"]], None)
    idle = Standing(reader, [PART])
    _tell_nobody([idle])
    _tell_unbegun([idle])
    assert capsys.readouterr().out == (
        "nobody reads any of this, nor has for a week: begin with `headrace forward`\n"
        "heap: nobody has begun with raw_events, or not for a week, and there are records: "
        "`headrace forward --vendor heap` sends those that it has not accepted yet\n"
    )


def test_one_offset_is_not_many() -> None:
    reader: Any = Reader("postgres", STREAM, ("g",), "start", dict)  # type: ignore[arg-type] # not asked
    note = _note(CONFIG, Standing(reader, [PART], 1), 1, 1)
    assert note == (
        "1 offset was removed by Kafka's retention before it was read; "
        "1 offset was read that Kafka has lost since"
    )


def test_a_table_has_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    where = "postgres://[fe80::1]:5432/db"
    _show([LagRow(where, "device_state", None, None, 1, 2, 1, 3.0, 1)], False)
    assert where in capsys.readouterr().out, "or rich takes a part of it for markup"


def test_what_is_to_be_typed_for_several_streams_is_one_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def row(stream: str, note: str) -> LagRow:
        return LagRow("chdb", stream, None, None, 1, 2, 1, 3.0, 0, note)

    start = "nobody reads, type: headrace insert --to chdb --stream {} --group g"
    rows = [row(name, start.format(name)) for name in ("a", "b", "b", "c")]
    _show([*rows, row("d", "1 offset was removed")], False, 4)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "chdb, a, b, c: nobody reads, type: headrace insert --to chdb --stream a --stream b "
        "--stream c --group g",
        "chdb, d: 1 offset was removed",
    ]
    _show(rows, False, 3)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "chdb, a, b, c: nobody reads, type: headrace insert --to chdb --group g"
    )
