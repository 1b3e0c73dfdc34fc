"""What is missing at a vendor, and what of it somebody else will send."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from consumers.batch import Partition, Span
from consumers.errors import Systemic
from consumers.forward.gap import Gap
from consumers.intent import Intent
from consumers.ledger.scan import Whole
from consumers.replay import dry, missing, run
from consumers.replay.job import Job, Origin, State
from consumers.replay.missing import left_to_outages, without
from consumers.replay.run import selection_of
from consumers.sinks import Known
from headrace.cli import replay_dry, replay_to
from ingest.streams import BUILT_IN
from ingest.units import HOUR_US

TOPIC = "raw_events"
A, B = Partition(TOPIC, 0), Partition(TOPIC, 1)
COMMAND = Job(
    "command", "ga4", "raw_events", "t", 1, 9, 0.0, {0: Span(100, 500), 1: Span(0, 0)}, 11,
    only_missing=True,
)  # fmt: skip
OUTAGE = Job(
    "3f9c01d2", "ga4", "raw_events", "t", 1, 9, 0.0, {0: Span(200, 300), 1: Span(7, 9)}, 11,
    origin=Origin.OUTAGE,
)  # fmt: skip


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


class World:
    """The topic of jobs, the live group's notes, and no receipts; and what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: dict[str, Job] = {}
        self.notes: dict[Partition, str] = {}
        self.asked: list[str] = []
        # Since when all receipts are there; 0: none has expired.
        self.receipts_since_us = 0
        monkeypatch.setattr(missing, "whole_since", lambda *_, **__: Whole(self.receipts_since_us))
        # The first of the ranges was published then.
        monkeypatch.setattr(missing, "firsts", lambda *_: {0: 4000, 1: 5000})
        monkeypatch.setattr(missing, "Jobs", lambda *_, **__: self)
        monkeypatch.setattr(missing, "Lookup", self.lookup)
        monkeypatch.setattr(run.Accepted, "load", lambda *_: self.asked.append("receipts"))

    def all(self) -> dict[str, Job]:
        self.asked.append("jobs")
        return dict(self.jobs)

    def lookup(self, _kafka: object, group: str, topics: Sequence[str]) -> World:
        assert (group, list(topics)) == ("headrace-forward-ga4", [TOPIC])
        return self

    def known(self, partitions: Sequence[Partition]) -> dict[Partition, Known]:
        self.asked.append("notes")
        return {p: Known("t", 0, 999, 450, self.notes.get(p, "")) for p in partitions}

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        return dict.fromkeys(partitions, 450)

    def close(self) -> None: ...

    def left(self, *jobs: Job) -> Mapping[str, Mapping[Partition, Span]]:
        self.jobs = {job.id: job for job in jobs}
        return left_to_outages({}, TOPIC, COMMAND)


def test_what_an_outage_has_left_to_a_replay_that_is_not_over_is_somebody_elses(
    world: World,
) -> None:
    theirs = {OUTAGE.id: {A: Span(200, 300), B: Span(7, 9)}}
    assert world.left(OUTAGE) == theirs
    assert world.left(replace(OUTAGE, state=State.PAUSED)) == theirs
    for nobodys in (
        replace(OUTAGE, state=State.DONE),
        replace(OUTAGE, state=State.CANCELLED),
        replace(OUTAGE, to="amplitude"),
        replace(OUTAGE, origin=Origin.COMMAND),
        replace(OUTAGE, topic_id="of a topic that was deleted"),
        replace(OUTAGE, spans={0: Span(500, 600), 1: Span(7, 9)}),
        replace(OUTAGE, spans={2: Span(200, 300)}),
    ):
        assert not world.left(nobodys)


def test_a_gap_that_is_no_job_yet_is_one_as_well(world: World) -> None:
    """The forwarder was killed as it had leapt; whoever comes next notes the job."""
    gap = Gap(OUTAGE.id, "t", {A: Span(200, 300)}, 1, 2, begun=False)
    world.notes = {A: gap.note(), B: Intent("t", {B: Span(1, 2)}, 3).note()}
    assert world.left() == {OUTAGE.id: {A: Span(200, 300)}}
    assert not world.left(replace(OUTAGE, state=State.DONE)), "the job knows better"
    world.notes[A] = replace(gap, topic_id="of a topic that was deleted").note()
    assert not world.left()


def test_what_is_somebody_elses_is_not_wanted() -> None:
    wanted = without(lambda _p, offset, _id: offset % 2 == 0, {"a": {A: Span(3, 6)}, "b": {}})
    assert [n for n in range(10) if wanted(A, n, "e")] == [0, 2, 6, 8]
    assert [n for n in range(10) if wanted(B, n, "e")] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("against", [False, True])
def test_only_what_is_missing_is_not_what_an_outages_replay_is_about_to_send(
    world: World, against: bool
) -> None:
    world.jobs = {OUTAGE.id: OUTAGE}
    exported: Any = SimpleNamespace(holds=lambda event_id: event_id == "held") if against else None
    selection = selection_of({}, BUILT_IN, COMMAND, exported)
    assert selection.wanted is not None
    offsets = (100, 199, 200, 299, 300, 499)
    assert [n for n in offsets if selection.wanted(A, n, "e")] == [100, 199, 300, 499]
    assert not against or not selection.wanted(A, 100, "held")
    # Else one that is done meanwhile would be in neither.
    assert world.asked == ["notes", "jobs", *([] if against else ["receipts"])]


def test_a_replay_of_all_there_is_asks_nobody(world: World) -> None:
    world.jobs = {OUTAGE.id: OUTAGE}
    assert selection_of({}, BUILT_IN, replace(COMMAND, only_missing=False)).wanted is None
    assert not world.asked


@pytest.mark.parametrize("only_missing", [False, True])
def test_a_dry_run_says_the_same(world: World, only_missing: bool) -> None:
    world.jobs = {OUTAGE.id: OUTAGE}
    job = replace(COMMAND, only_missing=only_missing)
    records = dry.KafkaRecords({}, TOPIC, job, run.Accepted(job.spans_of(TOPIC)))
    assert records.lacks(A, 250, "e"), "no receipt says that the vendor has it"
    assert bool(records.others) is only_missing


def test_a_dry_run_asks_in_the_same_order(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry, "dry_run", lambda *_: None)
    config: Any = Mock(kafka={}, stream=BUILT_IN.__getitem__, vendors={"ga4": Mock()})
    config.vendors["ga4"].vendor().limits().rates = ()
    assert list(replay_dry._to_vendor(config, COMMAND))
    assert world.asked == ["notes", "jobs", "receipts"]


@pytest.mark.parametrize("against", [None, "/export.json"])
def test_a_dry_run_waits_for_receipts_to_land_where_the_table_says_what_is_missing(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    against: str | None,
) -> None:
    """As the replay does. It showed all that was accepted lately as to be sent."""
    answers = [[1], [1], []]
    monkeypatch.setattr(run, "bounds", lambda *_: Mock(spans={1: Span(0, 9)}))
    monkeypatch.setattr(run, "topic_ids", lambda *_: {"receipts": "r"})
    monkeypatch.setattr(run, "not_landed", lambda *_: answers.pop(0))
    monkeypatch.setattr("time.sleep", lambda _: None)
    left: list[int] = []
    monkeypatch.setattr(dry, "dry_run", lambda *_: left.append(len(answers)))
    monkeypatch.setattr("consumers.vendors.exported.Exported", Mock())
    table = Mock(url="postgres://db/events", receipts=BUILT_IN["receipts"])
    lacking = None if against else "ga4"
    opened = run.OpenTable(lambda: table, lacking)
    monkeypatch.setattr(replay_dry, "open_raw", lambda *_: opened)
    config: Any = Mock(kafka={}, stream=BUILT_IN.__getitem__, vendors={"ga4": Mock()})
    config.vendors["ga4"].vendor().limits().rates = ()
    job = replace(COMMAND, table_until_us=5, against=against)
    assert list(replay_dry._to_vendor(config, job))
    # Of the table's leg and of Kafka's.
    assert left == ([3, 3] if against else [0, 0])
    said = capsys.readouterr().err
    assert said.count("receipts at db:5432/events has not landed yet") == (0 if against else 1), (
        said
    )


def test_the_operator_is_told_whose_it_is(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.jobs = {OUTAGE.id: OUTAGE, "other": replace(OUTAGE, id="other", to="amplitude")}
    config: Any = SimpleNamespace(kafka={}, stream=lambda name: BUILT_IN[name])
    where: Any = SimpleNamespace(url=None)
    found = replay_to.within(config, where, COMMAND)
    assert found.spans == {0: Span(100, 450), 1: Span(0, 0)}, "what is live is not cut in two"
    said = capsys.readouterr().err
    assert f"left to replay {OUTAGE.id}" in said
    assert "other" not in said
    assert replay_to.within(config, where, replace(COMMAND, only_missing=False)).spans == (
        COMMAND.spans
    )
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("since_us", "refused"), [(0, False), (4_000_000, False), (4_000_001, True)]
)
@pytest.mark.parametrize("begin_us", [1, 5_000_000])
def test_what_is_missing_is_not_asked_of_receipts_that_have_expired(
    world: World, since_us: int, refused: bool, begin_us: int
) -> None:
    """All of it would be missing, and be sent again: the audit has even printed the command."""
    world.receipts_since_us = since_us
    job = replace(COMMAND, begin_us=begin_us)
    config: Any = SimpleNamespace(kafka={}, stream=lambda name: BUILT_IN[name])
    where: Any = SimpleNamespace(url=None)
    if refused and begin_us < since_us:
        for ask in (
            lambda: replay_to.within(config, where, job),
            lambda: selection_of({}, BUILT_IN, job),
        ):
            with pytest.raises(Systemic, match=r"--from 1970-01-01T00:00:05\+00:00 or later"):
                ask()
    else:
        replay_to.within(config, where, job)
        selection_of({}, BUILT_IN, job)
    replay_to.within(config, where, replace(job, against="/export.json"))
    # Who takes it over then knows no more; and it is marked as sent before.
    selection_of({}, BUILT_IN, replace(OUTAGE, only_missing=True))


def test_receipts_that_expire_while_they_are_asked_for_are_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked before said that all are there: events with a receipt were sent again."""

    def load(*_: object) -> None:
        world.receipts_since_us = 6_000_000

    monkeypatch.setattr(run.Accepted, "load", load)
    with pytest.raises(Systemic, match="have expired in receipts"):
        selection_of({}, BUILT_IN, COMMAND)


def test_of_receipts_of_which_a_partition_is_emptied_no_later_beginning_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be the moment of the question, and be refused again in the next one."""
    since_us = time.time_ns() // 1000
    monkeypatch.setattr(missing, "whole_since", lambda *_, **__: Whole(since_us, emptied=True))
    with pytest.raises(Systemic, match=r"has no receipts left.* --against FILE") as refused:
        selection_of({}, BUILT_IN, COMMAND)
    assert "--from" not in str(refused.value)


def test_a_receipt_that_is_dated_ahead_leaves_no_partition_without_receipts(world: World) -> None:
    """Of a forwarder whose clock is: it was said that one had none left."""
    world.receipts_since_us = time.time_ns() // 1000 + HOUR_US
    with pytest.raises(Systemic, match=r"have expired.*--from"):
        selection_of({}, BUILT_IN, COMMAND)
