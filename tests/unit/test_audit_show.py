"""What `headrace audit` says in a sentence: how many records, where, and of what it can't be said."""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from consumers.batch import Partition
from consumers.ledger import tally
from consumers.ledger.account import Account, CantBeJudged, PlaceUnknown
from consumers.ledger.audit import Line
from consumers.ledger.crossing import Crossing, Node
from consumers.ledger.finding import MOST, Finding
from consumers.ledger.scan import Whole
from consumers.ledger.truncated import Truncated
from consumers.trace.allowlist import from_table
from headrace.cli import audit as audit_cli
from headrace.cli.audit_edge import edge_tables
from headrace.cli.audit_run import Audit, Unjudged
from headrace.cli.audit_show import _sentence, explained, table
from headrace.config import Config
from ingest.spool.entry import RelaySum
from ingest.streams import BUILT_IN

STATE = BUILT_IN["device_state"]
# Two hours of one stream.
EARLY = Line("device_state", "postgres", 8, 11_781, 11_781, 0, 0, 0)
LATE = replace(EARLY, hour=9, accepted=18_219, landed=18_219)
OTHERS = [replace(line, destination="chdb") for line in (EARLY, LATE)]
EVENTS = [Line("raw_events", name, 9, 5, 5, 0, 0, 0) for name in ("heap", "ga4", "postgres")]
CROSSING = Crossing("device_state", 1, {"": 1}, RelaySum(1, 1), RelaySum(1, 1), 0, False)


def sentence(*lines: Line, unjudged: bool = False) -> str:
    return _sentence(lines, unjudged=unjudged)


# -- how many --------------------------------------------------------------------------------------


def test_a_record_is_accepted_once_however_many_destinations_it_has() -> None:
    assert sentence(EARLY, LATE) == (
        "all 2 hours add up: 30,000 records accepted, each accounted for once"
    )
    assert sentence(EARLY, LATE, *OTHERS) == (
        "all 4 hours add up: 30,000 records accepted, at each of 2 destinations accounted for once"
    )


def test_streams_may_have_other_destinations_each() -> None:
    assert sentence(EARLY, LATE, EVENTS[0]) == (
        "all 3 hours add up: 30,005 records accepted, each accounted for once"
    )
    assert sentence(EARLY, LATE, *OTHERS, *EVENTS[:2]) == (
        "all 6 hours add up: 30,005 records accepted, at each of 2 destinations accounted for once"
    )
    assert sentence(EARLY, LATE, *OTHERS, *EVENTS) == (
        "all 7 hours add up: 30,005 records accepted, each accounted for once at every destination "
        "of its stream"
    )


EXPIRED = "; of the others records had expired before they were counted"
WHERE_JUDGED = "each accounted for once where it could be judged"


def test_what_had_expired_is_not_in_the_sum() -> None:
    said = sentence(EARLY, replace(LATE, partial=True))
    assert said == f"1 of 2 hours adds up: 11,781 records accepted, {WHERE_JUDGED}{EXPIRED}"


def test_of_an_hour_that_had_expired_at_one_destination_only_the_other_is_spoken_of() -> None:
    late = replace(OTHERS[1], partial=True)
    said = sentence(EARLY, LATE, OTHERS[0], late)
    assert said == f"3 of 4 hours add up: 30,000 records accepted, {WHERE_JUDGED}{EXPIRED}"
    assert "at each of" not in sentence(EARLY, OTHERS[0], replace(LATE, partial=True), late)


def test_no_hour_is_said_to_be_at_a_destination_that_has_no_line_of_it() -> None:
    assert sentence(EARLY, LATE, OTHERS[0]).endswith(f"30,000 records accepted, {WHERE_JUDGED}")
    # As many destinations in each hour, and others.
    assert "at each of" not in sentence(EARLY, LATE, OTHERS[0], replace(LATE, destination="ch"))


def test_where_all_had_expired_nothing_adds_up() -> None:
    gone = [replace(line, partial=True) for line in (EARLY, LATE, *OTHERS)]
    why = "be judged: records had expired before they were counted"
    assert sentence(*gone) == f"none of 4 hours can {why}"
    assert sentence(gone[0]) == f"1 hour can't {why}"
    assert sentence(*gone, unjudged=True) == (
        f"none of 4 hours can {why}; nor can what else was asked for"
    )


def test_one_is_not_many() -> None:
    assert sentence(replace(EARLY, accepted=1, landed=1)) == (
        "1 hour adds up: 1 record accepted, each accounted for once"
    )
    wrong = replace(EARLY, findings=(Mock(),))
    assert sentence(wrong, LATE) == "1 of 2 hours does not add up"
    assert sentence(wrong, replace(wrong, hour=9)) == "2 of 2 hours do not add up"


def rows(out: str) -> list[list[str]]:
    """The table's lines that begin with a time, in words."""
    return [line.split() for line in out.splitlines() if line.startswith(" 1970")]


def test_hours_that_add_up_and_follow_each_other_are_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = replace(EARLY, hour=10, differing=(Partition("t", 3),), landed=11_780)
    later = [replace(EARLY, hour=hour, in_flight=1, landed=11_780) for hour in (11, 12, 14)]
    gone = [replace(EARLY, hour=hour, partial=True) for hour in (15, 16)]
    table([EARLY, OTHERS[0], LATE, OTHERS[1], wrong, *later, *gone])
    ok, expired = ["ok"], ["expired", "before", "it", "was", "counted"]
    state = "device_state"
    assert rows(capsys.readouterr().out) == [
        ["1970-01-01T08:00", "2", state, "postgres", "30,000", "30,000", "0", "0", "0", *ok],
        ["1970-01-01T08:00", "2", state, "chdb", "30,000", "30,000", "0", "0", "0", *ok],
        ["1970-01-01T10:00", "1", state, "postgres", "11,781", "11,780", "0", "0", "0",
         "1", "missing", "(partition", "3)"],
        ["1970-01-01T11:00", "2", state, "postgres", "23,562", "23,560", "0", "0", "2", *ok],
        ["1970-01-01T14:00", "1", state, "postgres", "11,781", "11,780", "0", "0", "1", *ok],
        ["1970-01-01T15:00", "2", state, "postgres", "23,562", "23,562", "0", "0", "0", *expired],
    ]  # fmt: skip


def test_what_came_into_kafka_is_told_in_runs_of_hours_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    second = replace(CROSSING, hour=2, sources={"": 2, "web": 3}, accepted=RelaySum(5, 5),
                     entered=RelaySum(6, 6), direct=1)  # fmt: skip
    lost = replace(CROSSING, hour=3, entered=RelaySum(0, 0))
    edge_tables([CROSSING, second, lost, replace(CROSSING, hour=4)], [])
    assert rows(capsys.readouterr().out) == [
        ["1970-01-01T01:00", "2", "device_state", "-", "3,", "web", "3", "6", "7", "1", "ok"],
        ["1970-01-01T03:00", "1", "device_state", "-", "1", "1", "0", "0", "1", "missing"],
        ["1970-01-01T04:00", "1", "device_state", "-", "1", "1", "1", "0", "ok"],
    ]


def test_what_is_neither_missing_nor_too_many_is_said_as_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = replace(EARLY, findings=(Finding(EARLY.hour, 0, "", None, changed=50),))
    assert not changed.holds
    table([changed])
    assert "50 differ from Kafka" in capsys.readouterr().out
    (said,) = explained(changed)
    assert said.endswith(
        "has 50 rows of other values than their records give now, neither missing nor too many: "
        "has the message changed?"
    )
    strange = Finding(EARLY.hour, 1, "id own", None, known=False)
    (said,) = explained(replace(EARLY, findings=(strange,)))
    assert "no record in Kafka has its values" in said
    assert "columnstore" not in said
    moved = replace(EARLY, accepted=1, differing=(Partition("t", 3),), moved=True)
    table([moved])
    out = capsys.readouterr().out
    assert "the same records in other hours (partition 3): has `time` changed?" in out
    assert "missing" not in out
    assert "too many" not in out


def test_spools_are_counted_too(capsys: pytest.CaptureFixture[str]) -> None:
    edge_tables([CROSSING], [Node("a", 1, 0, 0, 0)])
    assert "into Kafka: all 1 from spools, each once" in capsys.readouterr().out
    edge_tables([CROSSING], [Node("a", 1, 0, 1, 0)])
    out = capsys.readouterr().out
    assert "1 was never sent, 0 sent twice" in out
    assert "into Kafka: 1 of 1 spool does not add up" in out
    lost = replace(CROSSING, entered=RelaySum(0, 0))
    edge_tables([lost, CROSSING], [])
    assert "into Kafka: 1 of 2 hours does not add up" in capsys.readouterr().out
    edge_tables([lost, CROSSING], [Node("a", 1, 0, 1, 0), Node("b", 1, 0, 0, 0)])
    out = capsys.readouterr().out
    assert "into Kafka: 1 of 2 hours and 1 of 2 spools do not add up" in out


def test_what_could_not_be_counted_on_its_way_into_kafka_is_not_in_the_sum(
    capsys: pytest.CaptureFixture[str],
) -> None:
    partial = replace(CROSSING, accepted=RelaySum(4, 4), partial=True)
    assert partial.holds
    edge_tables([CROSSING, partial], [Node("a", 5, 0, 0, 0)])
    assert capsys.readouterr().out.splitlines()[-1] == (
        "into Kafka: 1 from spools, each once where it could be judged; 1 of 2 hours can't be"
    )
    edge_tables([partial], [Node("a", 4, 0, 0, 0)])
    assert capsys.readouterr().out.splitlines()[-1] == "into Kafka: no hour can be judged"
    edge_tables([CROSSING], [], unjudged=True)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "into Kafka: 1 from spools, each once where it could be judged; what else was asked for "
        "can't be"
    )
    unheard = replace(CROSSING, entered=RelaySum(4, 4), unheard=True)
    edge_tables([unheard], [])
    out = capsys.readouterr().out
    assert "what relays said of it had expired before it was heard" in out
    assert out.splitlines()[-1] == "into Kafka: no hour can be judged"
    edge_tables([replace(unheard, entered=RelaySum(0, 0))], [])
    out = capsys.readouterr().out
    assert "1 missing" in out
    assert out.splitlines()[-1] == "into Kafka: 1 of 1 hour does not add up"


def test_of_a_spool_that_holds_something_it_is_said_how_old_that_word_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    edge_tables([], [Node("a", 9, 2, 0, 0, 480_000), Node("b", 9, 2, 0, 0)])
    assert capsys.readouterr().out.splitlines() == [
        "spool a: 2 waited in it when it sent last, in the hour of 2024-10-04T00:00",
        "spool b: 2 waited in it when it sent last",
    ]


# -- what can't be said ----------------------------------------------------------------------------


def audited(
    monkeypatch: pytest.MonkeyPatch, said: Mapping[str, Any], broken: Exception | None = None
) -> tuple[Audit, list[str]]:
    """The audit of one stream by name, and the destinations that were judged."""
    config = Config({}, {STATE.name: STATE}, Path())
    run = Audit(
        config, {name: name for name in said}, None, None, None, deep=False, explain=False,
        waiting=True, strangers=False, edge=False,
    )  # fmt: skip

    def destination(url: str) -> Any:
        answer = said[url]
        kind = (
            {"side_effect": answer} if isinstance(answer, Exception) else {"return_value": answer}
        )
        return Mock(account=Mock(**kind))

    judged: list[str] = []

    def audit(*args: Any, **_: object) -> tuple[list[Line], dict[Any, Any]]:
        if broken is not None:
            raise broken
        judged.extend(args[4])
        return [replace(EARLY, destination=name) for name in args[4]], {}

    monkeypatch.setattr("ingest.topics.topic_ids", lambda *_: {STATE.topic: "t"})
    monkeypatch.setattr("consumers.destinations.destination", destination)
    monkeypatch.setattr("consumers.ledger.audit.audit", audit)
    run.lines([STATE], Mock())
    return run, judged


def test_a_database_of_which_nothing_can_be_said_is_not_said_to_have_all_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unknown = PlaceUnknown("device_state", "g", "Start an inserter")
    run, judged = audited(
        monkeypatch, {"empty": None, "unknown": unknown, "known": Account({}, {})}
    )
    assert judged == ["empty", "known"]
    assert [(one.stream, one.destination) for one in run.unjudged] == [("device_state", "unknown")]


@pytest.mark.parametrize(("named", "unnamed"), [(False, False), (False, True), (True, False)])
def test_a_vendor_with_which_nobody_has_begun_is_not_left_out_without_a_word(
    named: bool, unnamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it was forgotten, and its receipts have expired: nobody would see what it lacks."""
    raw = BUILT_IN["raw_events"]
    trace = from_table({"events": {"seen": {"vendors": ["heap"]}}}, ["heap", "ga4"])
    config = Config({}, {raw.name: raw}, Path(), trace=trace)
    run = Audit(
        config, {"heap": None, "ga4": None}, None, None, None,
        deep=False, explain=False, waiting=False, strangers=named, edge=False, unnamed=unnamed,
    )  # fmt: skip
    monkeypatch.setattr("ingest.topics.topic_ids", lambda *_: {raw.topic: "t"})
    monkeypatch.setattr("consumers.replay.jobs.Jobs", Mock())
    monkeypatch.setattr("consumers.ledger.vendor.Receipted.read", lambda *_: None)
    monkeypatch.setattr("consumers.ledger.audit.audit", lambda *_, **__: ([], {}))
    run.lines([raw], Mock(totals=lambda _topic_id: {"bucket": tally.Sum(1, 1)}))
    if named:
        assert [one.destination for one in run.unjudged] == ["heap", "ga4"]
        assert "`headrace forward --vendor heap`" in run.unjudged[0].why
        assert not run.warnings
    else:
        (said,) = run.warnings
        assert said.startswith("heap is not judged: nobody has begun to forward to it"), (
            "nothing is to leave for ga4"
        )


@pytest.mark.parametrize("emptied", [False, True])
def test_where_a_partition_of_receipts_is_emptied_it_is_said_that_it_is_receipts(
    emptied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table says of the hours that something had expired, with all of their events there."""
    raw = BUILT_IN["raw_events"]
    run = Audit(
        Config({}, {raw.name: raw}, Path()), {"heap": None}, None, None, None,
        deep=False, explain=False, waiting=False, strangers=False, edge=False, unnamed=False,
    )  # fmt: skip

    def receipted(*_: object) -> Mock:
        return Mock(receipts=Whole(4_000_000, emptied=emptied))

    monkeypatch.setattr("ingest.topics.topic_ids", lambda *_: {raw.topic: "t"})
    monkeypatch.setattr("consumers.replay.jobs.Jobs", Mock())
    monkeypatch.setattr("consumers.ledger.vendor.Receipted.read", receipted)
    monkeypatch.setattr("consumers.ledger.audit.audit", lambda *_, **__: ([], {}))
    run.lines([raw], Mock())
    said = [one for one in run.warnings if one.startswith("heap: a partition of the topic of")]
    assert len(said) == len(run.warnings) == emptied


@pytest.mark.parametrize(
    ("records", "landed", "unnamed", "red"),
    [
        (5, False, True, ["postgres", "chdb"]),
        # Nothing is published yet; one of them has something; named, or a watch, which may begin.
        (0, False, True, []),
        (5, True, True, []),
        (5, False, False, []),
    ],
)
def test_that_no_database_has_anything_of_what_kafka_has_is_no_proof(
    records: int, landed: bool, unnamed: bool, red: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where HEADRACE_POSTGRES names another database: it was exit code 0."""
    trace = from_table({"events": {"seen": {}}}, ["heap"])
    config = Config({}, {STATE.name: STATE}, Path(), trace=trace)
    run = Audit(
        config, {"postgres": "p", "chdb": "c", "heap": None}, None, None, None, deep=False,
        explain=False, waiting=False, strangers=False, edge=False, unnamed=unnamed,
    )  # fmt: skip
    book = Mock(totals=lambda _topic_id: {"bucket": tally.Sum(records, 1)})
    account = Mock(return_value=Account({}, {}) if landed else None)
    monkeypatch.setattr("ingest.topics.topic_ids", lambda *_: {STATE.topic: "t"})
    monkeypatch.setattr("consumers.destinations.destination", lambda _url: Mock(account=account))
    monkeypatch.setattr("consumers.ledger.audit.audit", lambda *_, **__: ([], {}))
    run.lines([STATE], book)
    assert [one.destination for one in run.unjudged] == red
    for one in run.unjudged:
        assert "nobody has begun to insert into it" in one.why
        assert f"`headrace insert --to {one.destination}`" in one.why


def test_a_database_that_has_gone_back_is_red_and_not_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, judged = audited(monkeypatch, {"back": CantBeJudged("has gone back")})
    assert not judged
    assert [str(one) for one in run.unjudged] == ["back has gone back"]


def test_where_rows_are_right_and_the_ledger_is_not_it_is_said_that_no_replay_mends_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Audit(
        Config({}, {STATE.name: STATE}, Path()), {"postgres": "url"}, None, None, None, deep=False,
        explain=True, waiting=True, strangers=False, edge=False,
    )  # fmt: skip
    wrong = [
        replace(EARLY, landed=0, differing=(Partition(STATE.topic, 0),), hour=hour)
        for hour in (5, 6, 9)
    ]
    missing = Finding(9, -1, "device_id 7", (Partition(STATE.topic, 0), 77))
    monkeypatch.setattr(run._data, "_comparable_us", lambda _: 0)
    monkeypatch.setattr(
        run._data, "_found", lambda *of: [missing] if of[4] <= 9 * 3_600_000_000 < of[5] else []
    )
    lines = run._data.looked_at(STATE, "t", {"postgres": Account({}, {})}, wrong)
    assert [len(line.findings) for line in lines] == [0, 0, 1]
    (said,) = run.warnings
    assert said.startswith("device_state: 2 hours differ in the ledger alone, from 1970-01-01T05")

    many, five_us = [replace(missing, hour=5)] * MOST, 5 * 3_600_000_000
    monkeypatch.setattr(run._data, "_found", lambda *of: many if of[4] <= five_us else [missing])
    run.warnings.clear()
    run._data.looked_at(STATE, "t", {"postgres": Account({}, {})}, wrong)
    assert not run.warnings, "of the hour behind the last that is named nobody has said so"


def test_of_a_kafka_that_has_lost_records_nothing_is_said_to_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = Truncated(Partition(STATE.topic, 1), 9, 7)
    run, judged = audited(monkeypatch, {"known": Account({}, {})}, lost)
    assert judged == []
    (one,) = run.unjudged
    assert f"{one}".startswith("kafka has lost records that it had acknowledged: device_state[1]")
    # Who is told to delete the topic is told what goes with it.
    assert "so copy first what has not landed everywhere" in f"{one}"


@pytest.mark.parametrize("lines", [[EARLY, LATE], [EARLY, LATE, *OTHERS, *EVENTS]])
def test_not_all_add_up_where_something_can_not_be_judged(lines: list[Line]) -> None:
    said = sentence(*lines, unjudged=True)
    assert said.startswith(f"{len(lines)} hours add up: ")
    assert said.endswith(f"accepted, {WHERE_JUDGED}; what else was asked for can't be judged")


# -- what there is to say where there is nothing ---------------------------------------------------


def shown(
    lines: list[Line],
    *,
    crossings: list[Crossing],
    spools: bool,
    as_json: bool,
    nodes: Sequence[Node] = (),
) -> None:
    run = Mock(
        warnings=[], unjudged=[], crossings=crossings, nodes=nodes, held={}, places={},
        against=None,
    )  # fmt: skip
    audit_cli._show(run, lines, as_json, databases=False, spools=spools)


@pytest.mark.parametrize(
    ("spools", "as_json", "crossings", "said"),
    [
        (True, False, [], True), (False, False, [], False), (True, True, [], False),
        (True, False, [CROSSING], False),
    ],
)  # fmt: skip
def test_that_nothing_came_through_spools_is_said_to_who_asks_for_them(
    capsys: pytest.CaptureFixture[str], spools: bool, as_json: bool, crossings: Any, said: bool
) -> None:
    shown([], crossings=crossings, spools=spools, as_json=as_json)
    text = "nothing has come through collectors or spools in that time\n"
    assert (text in capsys.readouterr().out) == said


@pytest.mark.parametrize(
    ("node", "nothing"),
    [
        (Node("a", 9, 0, 0, 0), True), (Node("a", 9, 0, 2, 0), False),
        (Node("a", 9, 0, 0, 2), False), (Node("a", 9, 2, 0, 0), False),
    ],
)  # fmt: skip
def test_where_something_is_said_of_a_spool_it_is_not_said_that_there_is_nothing(
    capsys: pytest.CaptureFixture[str], node: Node, nothing: bool
) -> None:
    shown([], crossings=[], spools=True, as_json=False, nodes=[node])
    out = capsys.readouterr().out
    assert ("nothing has come" in out) == nothing
    assert ("spool" in out.replace("or spools in that time", "")) != nothing


def test_what_was_unjudged_leaves_its_mark_on_the_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Mock(
        warnings=[], unjudged=[Unjudged("device_state", "ch", "can't be judged")], crossings=[],
        nodes=[], held={}, places={"postgres": "x"}, against=None,
    )  # fmt: skip
    audit_cli._show(run, [EARLY], False, databases=True, spools=False)
    said = capsys.readouterr()
    assert "all" not in said.out.splitlines()[-1]
    assert said.err == "headrace: ch can't be judged\n"


@pytest.mark.parametrize("names", [False, True])
def test_an_audit_that_does_not_add_up_says_what_to_type_next(
    capsys: pytest.CaptureFixture[str], names: bool
) -> None:
    """Of each destination and stream its hours, unless their records are named already."""
    late = replace(LATE, landed=3, differing=(Partition("device_state", 0),))
    lost = Finding(9, -1, "event_id e", None, acknowledged=True)
    export = replace(EVENTS[0], findings=(lost,))
    lines = [EARLY, late, replace(late, hour=12), replace(late, destination="my ch"), export]
    run = Mock(
        warnings=[], unjudged=[], crossings=[], nodes=[], held={}, against=None, names=names,
        places=dict.fromkeys(("postgres", "my ch", "heap")),
    )  # fmt: skip
    audit_cli._show(run, lines, False, databases=True, spools=False)
    hours = "--from 1970-01-01T09:00:00Z --until 1970-01-01T"
    said = [line for line in capsys.readouterr().out.splitlines() if "headrace audit" in line]
    expected = (
        []
        if names
        else [
            "which records, and what mends it: headrace audit --explain --to 'my ch' "
            f"--stream device_state {hours}10:00:00Z",
            "which records, and what mends it: headrace audit --explain --to postgres "
            f"--stream device_state {hours}13:00:00Z",
        ]
    )
    assert said == expected
