"""The demo's judgement: it says whatever is wrong with what has landed, and nothing else.

The demo is worth what its comparison is worth, so this is where it is told lies.
"""

from __future__ import annotations

import io
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from consumers.decode import Decoder
from headrace.demo import charts
from headrace.demo.act_count import Account, Claim, settle
from headrace.demo.act_rubbish import KINDS, spoil
from headrace.demo.closing import faults, table
from headrace.demo.compare import Difference, compare
from headrace.demo.model import CLICKHOUSE, POSTGRES, DemoError, Kill, Settings
from headrace.demo.place import opened
from headrace.demo.published import DeadLetters, Published
from headrace.demo.story import Story
from headrace.demo.traffic import Tally
from headrace.simulate import Fleet
from ingest.streams import BUILT_IN

ROWS = [("d1", 1, None), ("d2", 1, 0.5), ("d3", 2, 0.5)]
GOOD, BAD = [b"one", b"two", b"three"], b"\xff rubbish"
START_US = 1_750_032_000_000_000


def rows(*values: tuple[Any, ...], text: pa.DataType | None = None) -> pa.Table:
    kind = text or pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([("device_id", kind), ("time", pa.int64()), ("ms", pa.float64())])
    columns = zip(*values, strict=True) if values else ([], [], [])
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )


# -- rows against rows -----------------------------------------------------------------------------


def test_the_same_rows_in_another_order_and_in_other_pieces_are_no_difference() -> None:
    pieces = pa.concat_tables([rows(ROWS[2]), rows(ROWS[0], ROWS[1])])
    assert compare(rows(*ROWS), pieces) == Difference()


def test_nothing_against_nothing_is_no_difference() -> None:
    assert not compare(rows(), rows())


def test_a_lost_row_and_a_doubled_one_do_not_cancel_out() -> None:
    found = compare(rows(*ROWS), rows(ROWS[0], ROWS[1], ROWS[1]))
    assert (found.lost, found.duplicated, found.strange) == (1, 1, 0)


def test_a_row_that_changed_in_one_column_is_lost_and_strange() -> None:
    found = compare(rows(*ROWS), rows(*ROWS[:2], ("d3", 2, 0.25)))
    assert (found.lost, found.duplicated, found.strange) == (1, 0, 1)
    assert any("d3" in example for example in found.examples)


def test_null_is_a_value_of_its_own() -> None:
    assert compare(rows(*ROWS), rows(("d1", 1, 0.0), *ROWS[1:])).strange == 1


def test_a_row_published_twice_has_to_land_twice() -> None:
    assert not compare(rows(ROWS[0], ROWS[0]), rows(ROWS[0], ROWS[0]))
    assert compare(rows(ROWS[0], ROWS[0]), rows(ROWS[0])).lost == 1


def test_all_rows_missing_are_all_lost() -> None:
    assert compare(rows(*ROWS), rows()).lost == len(ROWS)


def test_plain_and_dictionary_text_compare_as_text() -> None:
    assert not compare(rows(*ROWS), rows(*ROWS, text=pa.string()))


def test_a_tally_is_blind_to_order_and_to_nothing_else() -> None:
    one, other = Tally(), Tally()
    one.add([b"a", b"b", b"c"])
    other.add([b"c"])
    other.add([b"b", b"a"])
    assert one == other
    doubled = Tally()
    doubled.add([b"a", b"b", b"b"])
    assert one != doubled


# -- a stream's line in the closing table ----------------------------------------------------------


class Case:
    """One stream of three good records and one of rubbish, as everything should be."""

    def __init__(self, to: str = POSTGRES) -> None:
        self.to = to
        self.sent = Tally()
        self.sent.add([*GOOD, BAD])
        self.acknowledged = 4
        self.read = Tally()
        self.read.add([BAD, *GOOD])
        self.truth = rows(*ROWS)
        self.landed = rows(*ROWS)
        self.rubbish = {(0, 3): BAD}
        self.dead = {(0, 3): BAD}

    def line(self) -> Account:
        places = pa.array([0, 0, 1], pa.int64()), pa.array([0, 1, 0], pa.int64())
        truth = self.truth.append_column("_partition", places[0]).append_column(
            "_offset", places[1]
        )
        landed = self.landed
        if self.to == CLICKHOUSE and "_offset" not in landed.schema.names:
            landed = landed.append_column("_partition", places[0])
            landed = landed.append_column("_offset", places[1])
        return settle(
            Claim(BUILT_IN["device_state"], self.acknowledged, self.sent, frozenset({BAD})),
            Published(truth, self.read, dict(self.rubbish)),
            DeadLetters(dict(self.dead), records=2 * len(self.dead)),
            self.to,
            landed,
        )


@pytest.mark.parametrize("to", [POSTGRES, CLICKHOUSE])
def test_what_is_right_has_no_fault(to: str) -> None:
    line = Case(to).line()
    assert line.faults == ()
    assert (line.published, line.landed, line.dead_letters) == (4, 3, 1)
    assert (line.duplicated, line.lost) == (0, 0)
    assert faults([line], []) == []


@pytest.mark.parametrize("to", [POSTGRES, CLICKHOUSE])
def test_a_row_too_few_is_lost(to: str) -> None:
    case = Case(to)
    case.landed = rows(ROWS[0], ROWS[1])
    if to == CLICKHOUSE:
        for name, places in (("_partition", [0, 0]), ("_offset", [0, 1])):
            case.landed = case.landed.append_column(name, pa.array(places, pa.int64()))
    line = case.line()
    assert line.lost == 1
    assert faults([line], [])


def test_a_row_under_another_records_coordinates_is_a_fault_in_clickhouse() -> None:
    case = Case(CLICKHOUSE)
    case.landed = case.landed.append_column("_partition", pa.array([0, 0, 1], pa.int64()))
    case.landed = case.landed.append_column("_offset", pa.array([0, 0, 0], pa.int64()))
    assert case.line().faults


def test_rubbish_that_is_not_kept_is_lost() -> None:
    case = Case()
    case.dead = {}
    line = case.line()
    assert line.lost == 1
    assert line.faults


def test_rubbish_kept_with_other_bytes_is_lost_and_a_fault() -> None:
    case = Case()
    case.dead = {(0, 3): BAD + b"!"}
    line = case.line()
    assert line.lost == 1
    assert len(line.faults) == 2


def test_a_good_record_among_the_dead_letters_is_a_fault_even_if_it_landed_too() -> None:
    case = Case()
    case.dead[0, 1] = GOOD[1]
    assert case.line().faults


def test_an_acknowledged_record_that_kafka_does_not_hold_is_lost() -> None:
    case = Case()
    case.acknowledged = 5
    case.sent.add([b"gone"])
    line = case.line()
    assert line.lost == 1
    assert line.faults


def test_kafka_holding_one_record_twice_instead_of_two_is_a_fault() -> None:
    case = Case()
    case.read = Tally()
    case.read.add([GOOD[0], GOOD[0], GOOD[2], BAD])
    assert case.line().faults


def test_a_kill_that_did_not_hit_the_middle_is_a_fault() -> None:
    def kill(landed: int) -> Kill:
        return Kill("PostgreSQL 1", 7, 1.0, landed, published=50, total=100)

    assert faults([], [kill(50)]) == []
    assert faults([], [kill(0)])
    assert faults([], [kill(100)])


# -- the rubbish itself ----------------------------------------------------------------------------


def reports(count: int) -> list[bytes]:
    fleet = Fleet(count, 120, START_US, START_US + 120 * 10**6)
    return [value for batch in fleet.batches(count) for value in batch.values]


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_rubbish_decodes_by_chance(kind: str) -> None:
    random = Random(5)
    spoilt = [KINDS[kind](value, random) for value in reports(500)]
    decoded = Decoder(BUILT_IN["device_state"]).decode(spoilt)
    assert sorted(decoded.bad) == list(range(500))


def test_one_record_in_a_hundred_is_spoilt_and_each_differs_from_all_others() -> None:
    values = reports(2000)
    mixed, spoilt = spoil(values, Random(1))
    assert len(spoilt) == len(set(spoilt)) == 20
    assert [new for new, old in zip(mixed, values, strict=True) if new != old] == spoilt


# -- what is shown ---------------------------------------------------------------------------------


def told(encoding: str) -> str:
    """A story on something that is no terminal."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding)
    story = Story(out)
    story.act("An act")
    story.say("A sentence that is too long for one line. " * 5, "bold red")
    with story.meter(10) as meter:
        meter.update({"published": 5})
    latest = {("SJC", "connected"): 7, ("SJC", "paused"): 1, ("LHR", "disconnected"): 4}
    history = {(600, "connected"): 9, (600, "paused"): 1, (1200, "connected"): 5}
    for drawing in (charts.by_status, charts.by_colo):
        story.show(drawing(latest, story.blocks), 4)
    story.show(charts.over_time(history, story.blocks), 4)
    story.show(table([Case().line(), Case(CLICKHOUSE).line()], story.blocks))
    out.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_log_gets_plain_lines_without_control_characters(encoding: str) -> None:
    text = told(encoding)
    assert all(c == "\n" or c.isprintable() for c in text)
    assert not any(line != line.rstrip() for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 96
    assert "SJC" in text


def test_a_closing_table_is_whole_on_eighty_columns() -> None:
    story = Story(io.StringIO())
    story.console.width = 80
    line = Account("traceroute_test", POSTGRES, 540_000, 540_000, 5_400, 0, 0)
    with story.console.capture() as capture:
        story.console.print(table([line], blocks=True))
    shown = capture.get()
    for words in ("published", "landed", "dead", "letters", "duplicated", "lost", "540,000"):
        assert words in shown
    assert "…" not in shown


def test_bars_are_as_long_as_their_figures() -> None:
    bar = charts._stacked({"connected": 60, "paused": 20, "disconnected": 20}, 100, blocks=False)
    assert bar.plain == "#" * 24 + "=" * 8 + "-" * 8


def test_a_sparkline_goes_from_its_least_to_its_largest() -> None:
    assert charts.sparkline([1, 8, 4.5], blocks=False) == "_@+"
    assert charts.sparkline([3, 3], blocks=False) == "__"
    assert charts.sparkline([], blocks=True) == ""


# -- where it works --------------------------------------------------------------------------------


def test_a_directory_with_anything_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "stack.json"
    mine.write_text("{}")
    with (
        pytest.raises(DemoError, match="not empty"),
        opened(Settings(state_dir=tmp_path), Story(io.StringIO())),
    ):
        pass
    assert list(tmp_path.iterdir()) == [mine]
