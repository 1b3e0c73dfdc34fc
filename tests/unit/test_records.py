"""Records of JSON lines and CSV: each good one as a message, each bad one with line and reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from declared import everything
from hypothesis import given
from hypothesis import strategies as st

from ingest.records import Record, Source, SourceError, format_of, read
from ingest.streams import BUILT_IN, Stream

STATE = BUILT_IN["device_state"]
GOOD = '{"deviceId": "d", "timestamp": "2025-06-16T22:50:12.226Z"}'


def records(
    data: str | bytes, folder: Path, stream: Stream = STATE, name: str = "data", **options: Any
) -> list[Record]:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with Source(str(path), limit=options.pop("limit", 1 << 20)) as source:
        return list(read(source, stream, **options))


def said(found: list[Record]) -> list[tuple[int, str]]:
    """Line and reason of each bad record."""
    return [(r.line, str(r.error)) for r in found if r.error is not None]


# --- JSON lines


def test_each_line_is_a_record_and_blank_ones_are_none(tmp_path: Path) -> None:
    found = records(f"\n{GOOD}\n  \n\t\n{GOOD}\r\n\n{GOOD}", tmp_path)
    assert [(r.line, r.error) for r in found] == [(2, None), (5, None), (7, None)]
    assert all(r.message.device_id == "d" and r.raw.decode() == GOOD for r in found)


def test_a_bad_line_keeps_its_number_and_bytes_and_stops_nothing(tmp_path: Path) -> None:
    bad = [
        (b"{", 'is not JSON (unexpected end of data): "{"'),
        (b"[1]", "is not a JSON object: [1]"),
        (b'{"deviceId": "\xff"}', "is not UTF-8: byte 15 of the line"),
        (b'{"deviceId": 7}', "deviceId: is not text: 7"),
        (b'{"nope": 7}', "nope: is not a field of headrace.v1.DeviceState"),
        (b'{"deviceId": "\\ud800"}', None),
        (b"\0", None),
    ]
    data = b"".join(line + b"\n" + GOOD.encode() + b"\n" for line, _ in bad)
    found = records(data, tmp_path)
    assert [r.error is None for r in found] == [False, True] * len(bad)
    for i, (line, reason) in enumerate(bad):
        assert (found[2 * i].line, found[2 * i].raw) == (2 * i + 1, line)
        assert found[2 * i].message is None
        if reason is not None:
            assert str(found[2 * i].error) == reason


def test_a_line_that_is_too_long_is_one_bad_record(tmp_path: Path) -> None:
    found = records(f"{GOOD}\n{'x' * 5000}\n{GOOD}\n", tmp_path, limit=2000)
    assert said(found) == [(2, "the line is longer than 2,000 bytes")]
    assert len(found) == 3
    assert found[1].raw == b"x" * 1000


def test_a_byte_order_mark_does_not_spoil_the_first_record(tmp_path: Path) -> None:
    for data in (GOOD, "deviceId,timestamp\nd,2025-06-16T22:50:12Z"):
        (found,) = records(b"\xef\xbb\xbf" + data.encode(), tmp_path)
        assert found.error is None


def test_what_comes_before_a_break_is_read_and_then_the_source_is_to_blame(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f'{{"deviceId": "{i}"}}\n' for i in range(100_000)).encode())
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    found = []
    with Source(str(path)) as source, pytest.raises(SourceError, match="is cut off"):
        for record in read(source, STATE):
            found.append(record.message.device_id)
    assert found == [str(i) for i in range(len(found))]
    assert len(found) > 10_000


@pytest.mark.parametrize("data", [f"[{GOOD}]", f" [\n{GOOD},\n{GOOD}\n]\n"])
def test_a_json_array_is_refused_as_a_whole(data: str, tmp_path: Path) -> None:
    """Line by line only its last element, which has no comma, would be a record."""
    with pytest.raises(SourceError, match=r"data is one JSON array; make it lines: jq -c '\.\[\]'"):
        records(data, tmp_path)


def test_a_line_of_text_that_begins_with_a_bracket_is_a_bad_line(tmp_path: Path) -> None:
    """The first line of a log file, for one; what follows is read."""
    first, second = records(f"[2025-06-16] agent started\n{GOOD}\n", tmp_path)
    assert first.error is not None
    assert second.error is None


def test_a_line_that_is_no_csv_inside_an_open_quote_ends_the_source(tmp_path: Path) -> None:
    """What follows stands in its cell, and would be records that nobody wrote."""
    time = "2025-06-16T22:50:12Z"
    rows = f'deviceId,timestamp,status\nd2,{time},"he said \\"x\\":\nd7,{time},evil\nend"\n'
    with pytest.raises(SourceError, match=r"begins in line 2 is not CSV .*what follows was not"):
        records(rows, tmp_path, name="x.csv")


# --- which format


@pytest.mark.parametrize(
    ("name", "begin", "format_"),
    [
        ("x.csv", "{", "csv"), ("x.CSV", "", "csv"), ("x.csv.gz", "", "csv"),
        ("x.jsonl.zst", "a", "json"), ("x.ndjson", "a", "json"), ("x.log", "a", "json"),
        ("x", "{", "json"), ("x", "  {", "json"), ("x", "[", "json"), ("x.gz", "a", "csv"),
        ("x", "device_id,", "csv"), ("x", '"device_id",', "csv"), ("x", "_a,b", "csv"),
        ("x.txt", "", "json"),
    ],
)  # fmt: skip
def test_the_format_is_told_by_the_ending_then_by_the_first_byte(
    name: str, begin: str, format_: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(begin)
    with Source(str(tmp_path / name)) as source:
        assert format_of(source) == format_


def test_a_format_that_is_given_wins(tmp_path: Path) -> None:
    assert records(GOOD, tmp_path, name="x.csv", format="json")[0].error is None


# --- CSV


@given(st.lists(st.tuples(st.text(min_size=1), st.text(), st.text()), max_size=10))
def test_whatever_csv_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    # A lone surrogate is no text, and NUL has no place in a line of CSV.
    def clean(text: str) -> str:
        return text.encode("utf-8", "ignore").decode().replace("\0", "")

    wanted = [tuple(clean(cell) or "x" for cell in row) for row in rows]
    written = io.StringIO()
    quoting = csv.writer(written, quoting=csv.QUOTE_ALL)  # Python 3.11 leaves a lone \r without
    quoting.writerows([("device_id", "colo", "accountId"), *wanted])
    found = records(written.getvalue(), tmp_path_factory.getbasetemp(), name="x.csv")
    assert [r.error for r in found] == [None] * len(wanted)
    assert [(r.message.device_id, r.message.colo, r.message.account_id) for r in found] == wanted


def test_an_empty_cell_and_the_text_for_null_leave_a_field_unset(tmp_path: Path) -> None:
    stream = BUILT_IN["http_test"]
    data = "deviceId,statusCode,dnsMs,error\nd,,NA,\nd,200,1.5,NA\n,0,0,x\n"
    found = records(data, tmp_path, stream, name="x.csv", null="NA")
    unset = [
        [n for n in ("status_code", "dns_ms", "error") if not r.message.HasField(n)] for r in found
    ]
    assert unset == [["status_code", "dns_ms", "error"], ["error"], []]
    assert said(records(data, tmp_path, stream, name="x.csv")) == [
        (2, 'dnsMs: is not a number: "NA"')
    ]


def test_a_record_of_several_lines_has_the_number_of_its_first(tmp_path: Path) -> None:
    data = 'deviceId,colo\na,"one\ntwo"\nb,x,y\n"c\n",d\ne,"f"g\n\nh,i\n'
    found = records(data, tmp_path, name="x.csv")
    assert [(r.line, r.error is None) for r in found] == [
        (2, True), (4, False), (5, True), (7, False), (9, True),
    ]  # fmt: skip
    assert found[0].raw == b'a,"one\ntwo"'
    assert said(found)[0] == (4, "has 3 cells where the header has 2")
    assert said(found)[1][1].startswith("is not CSV (")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quoted_cell_keeps_its_line_ends(end: str, tmp_path: Path) -> None:
    one = 'a,"x\r\ny\nz"'
    (first, last) = records(f"deviceId,colo{end}{one}{end}b,c", tmp_path, name="x.csv")
    assert (first.message.colo, first.raw) == ("x\r\ny\nz", one.encode())
    assert (last.line, last.message.colo) == (5, "c")


def broken_off(data: str | bytes, folder: Path) -> tuple[list[str], str]:
    """The devices of the records of a file whose lines may have 200 bytes, and why it ended."""
    (folder / "x.csv").write_bytes(data.encode() if isinstance(data, str) else data)
    found: list[str] = []
    with Source(str(folder / "x.csv"), limit=200) as source:
        try:
            found += (r.message.device_id for r in read(source, STATE))
        except SourceError as error:
            return found, str(error).removeprefix(f"{source.name}: ")
    pytest.fail("it was read to its end")


def test_a_quote_that_is_never_closed_ends_its_file(tmp_path: Path) -> None:
    """What comes after it may be inside of a cell: it must not be taken for records."""
    found, why = broken_off('deviceId,colo\no,k\na,"x\n' + "b,y\n" * 1000, tmp_path)
    assert why == (
        "the record that begins in line 3 is longer than 200 bytes, and where its quotes end is "
        "not known: what follows was not read"
    )
    assert found == ["o"]


@pytest.mark.parametrize("begin", ["", 'a,"one\n'])
def test_a_line_of_csv_that_is_too_long_ends_its_file(begin: str, tmp_path: Path) -> None:
    data = f'deviceId,colo\no,k\n{begin}{"x" * 300}\nb,"two\nc",three\n'
    found, why = broken_off(data, tmp_path)
    assert why.startswith(f"line {4 if begin else 3} is longer than 200 bytes")
    assert found == ["o"]


def test_a_line_of_csv_may_be_as_long_as_the_limit(tmp_path: Path) -> None:
    for end in ("\n", ""):
        data = f"deviceId,colo\na,{'x' * 198}{end}"
        (found,) = records(data, tmp_path, name="x.csv", limit=200)
        assert len(found.message.colo) == 198


def test_bytes_that_are_no_text_spoil_all_lines_of_their_record(tmp_path: Path) -> None:
    """The rest of the quoted cell looks like a record, and is none."""
    raw = b'a,"one\n\xff\nfake,record\n"'
    found = records(b"deviceId,colo\n" + raw + b"\nb,y\n", tmp_path, name="x.csv")
    assert [(r.line, r.raw) for r in found] == [(2, raw), (6, b"b,y")]
    assert said(found) == [(2, "is not UTF-8: byte 1 of the line")]


def test_bytes_that_are_no_text_spoil_their_own_record_only(tmp_path: Path) -> None:
    found = records(b"deviceId,colo\na,\xff\nb,y\n", tmp_path, name="x.csv")
    assert said(found) == [(2, "is not UTF-8: byte 3 of the line")]
    assert found[1].message.device_id == "b"


def test_a_cell_may_be_as_large_as_a_line(tmp_path: Path) -> None:
    """csv's own limit is 128 KiB."""
    (found,) = records("deviceId,colo\na," + "x" * 500_000, tmp_path, name="x.csv")
    assert len(found.message.colo) == 500_000


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("deviceId,colour", "column 'colour' of the header is not a field of "
                            "headrace.v1.DeviceState; did you mean colo?"),
        ("deviceId,x", "it has: timestamp, accountId, deviceId, colo, status, mode, clientVersion, "
                       "clientPlatform"),
        ("deviceId,device_id", "columns 'deviceId' and 'device_id' of the header are the same"),
        ("deviceId,", "column '' of the header is not a field"),
        ('"deviceId', "the header row can't be read"),
        ("deviceId,\udcff", "the header row can't be read: is not UTF-8: byte 10 of the line"),
    ],
)  # fmt: skip
def test_a_wrong_header_makes_the_file_unusable(header: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as raised:
        records(f"{header}\na,b\n".encode(errors="surrogateescape"), tmp_path, name="x.csv")
    assert reason in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / "x.csv"))


def test_a_file_without_a_line_has_no_records(tmp_path: Path) -> None:
    for name in ("x.csv", "x.jsonl"):
        assert records("", tmp_path, name=name) == []
    assert records("deviceId\n", tmp_path, name="x.csv") == []


def test_json_and_csv_of_the_same_record_make_the_same_message(tmp_path: Path) -> None:
    row = {
        "id": "a", "seenAt": "2025-06-16T22:50:12.226Z", "uint64V": str(2**64 - 1),
        "colour": "COLOUR_RED", "boolV": True, "took": "1.5s", "int32W": 5,
        "texts": ["x", "y"], "counts": {"k": "1"}, "part": {"name": "p"}, "properties": {"a": 1},
    }  # fmt: skip
    written = io.StringIO()
    cells = [json.dumps(v) if isinstance(v, list | dict) else str(v) for v in row.values()]
    csv.writer(written).writerows([row.keys(), cells])
    (by_csv,) = records(written.getvalue(), tmp_path, everything(), name="x.csv")
    (by_json,) = records(json.dumps(row), tmp_path, everything())
    assert by_csv.error is by_json.error is None
    assert by_csv.message == by_json.message
