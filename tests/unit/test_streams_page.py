"""docs/streams.md says what the code does: its table of types, its settings, its example."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from command_lines import complaint, in_markdown
from declared import message
from google.protobuf.descriptor import FieldDescriptor

from consumers.columns import _DYNAMIC, _SCALARS, _WELL_KNOWN
from consumers.sinks import clickhouse_types, postgres_types
from ingest.mapping import mapper
from ingest.stream_settings import _SETTINGS, from_table
from ingest.streams import Stream

PAGE = (Path(__file__).parents[2] / "docs" / "streams.md").read_text(encoding="utf-8")

HEAD = """\
syntax = "proto3";
import "google/protobuf/duration.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
enum State { STATE_UNSPECIFIED = 0; STATE_PAID = 1; }
message Line { string article = 1; uint32 pieces = 2; }
message Node { repeated Node below = 1; }
message Nothing {}
message Row {
  string key = 1;
  google.protobuf.Timestamp at = 2;
"""


def table(after: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    body = PAGE.split(f"\n## {after}\n")[1].split("\n## ")[0]
    rows = [line for line in body.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def codes(cell: str) -> list[str]:
    """What stands in code spans."""
    return [code.strip() for _, code in re.findall(r"(`+)(.+?)\1(?!`)", cell)]


TYPES = [
    (declared, postgres, clickhouse)
    for row in table("Types")
    for declared in codes(row[0])
    for (postgres,), (clickhouse,) in [(codes(row[1]), codes(row[2]))]
]


def block(language: str, containing: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (text,) = (t for t in found if containing in t)
    return str(text)


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A message with one field for each declaration of the table."""
    fields = []
    for number, (declared, _, _) in enumerate(TYPES, 3):
        field = f"{declared.removeprefix('oneof ')} f{number} = {number};"
        fields.append(f"oneof o{number} {{ {field} }}" if declared.startswith("oneof ") else field)
    row = message(HEAD + "\n".join(fields) + "\n}", "Row")
    return Stream("page", row, key="key", time="at", topic="page", table="page")


@pytest.mark.parametrize("number", range(len(TYPES)), ids=[declared for declared, _, _ in TYPES])
def test_each_row_of_the_table_is_what_the_code_makes(stream: Stream, number: int) -> None:
    name = f"f{number + 3}"
    found = (
        postgres_types.column_types(stream)[name],
        clickhouse_types.column_types(stream)[name],
    )
    assert found == TYPES[number][1:]


def test_the_table_has_every_type_that_there_is() -> None:
    declared = {row[0] for row in TYPES}
    assert set(_WELL_KNOWN) | set(_DYNAMIC) <= declared
    names = {
        number: name.removeprefix("TYPE_").lower()
        for name, number in vars(FieldDescriptor).items()
        if name.startswith("TYPE_") and isinstance(number, int)
    }
    scalars = {names[type_] for type_ in _SCALARS} - {"enum"}
    assert scalars <= declared
    assert {"State", "Line", "repeated Line"} <= declared


def test_what_is_said_of_key_and_time_is_so(stream: Stream) -> None:
    types = clickhouse_types.column_types(stream)
    assert f"`{types['at']}`" in PAGE.replace("\n", " ")
    assert types["key"] == "String"
    for name in clickhouse_types.ORIGIN:
        assert f"`{name}`" in PAGE


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = {codes(row[0])[0]: row[1] for row in table("Settings")}
    assert rows.keys() == _SETTINGS
    defaults = {f.name: f.default for f in dataclasses.fields(Stream)}
    for setting in ("dedupe", "indexes", "partitions", "chunk_interval"):
        (said,) = codes(rows[setting])
        value = tomllib.loads(f"x = {said}")["x"]
        assert (tuple(value) if isinstance(value, list) else value) == defaults[setting]
    for setting in ("segment_by", "retention"):
        assert (rows[setting], defaults[setting]) == ("none", None)
    assert (codes(rows["columns"]), defaults["columns"]) == (["{}"], ())


def test_the_example_is_a_stream_and_its_record_fits(tmp_path: Path) -> None:
    (tmp_path / "orders.proto").write_text(block("proto", "message Order"))
    tables = tomllib.loads(block("toml", 'proto = "orders.proto"'))["streams"]
    orders = from_table("orders", tables["orders"], tmp_path)
    import orjson

    made = mapper(orders.descriptor)(orjson.loads(block("json", "orderId")))
    assert made.order_id == "o-1"
    assert made.lines[0].pieces == 2
    device_state = tomllib.loads(block("toml", "fleet.device_state"))["streams"]["device_state"]
    assert from_table("device_state", device_state, tmp_path).dedupe


def test_every_command_on_the_page_is_one() -> None:
    found = list(in_markdown(PAGE))
    assert len(found) >= 5
    assert [(args, said) for args in found if (said := complaint(args))] == []
