"""What `headrace replay` and its commands do with jobs, without Kafka: begin one, go on, list them."""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from consumers.batch import Partition, Span
from consumers.errors import Lost, Systemic
from consumers.intent import FRESH_S, Intent
from consumers.replay import standing
from consumers.replay.dry_rows import RowFigures
from consumers.replay.job import Job, Origin, State
from consumers.sinks import Known
from consumers.vendors import VendorError
from headrace.cli import cli, replay_jobs, replay_run, replay_to
from headrace.cli import replay as replay_cli
from headrace.cli.places import Place
from headrace.cli.replay_dry import row_lines
from headrace.config import ConfigError
from ingest.streams import BUILT_IN

P = Partition("device_state", 0)
URL = "clickhouse://me:pw@ch:8123/logs"
NOW_S = 1_750_000_000.0
NEW = Job("new", URL, "device_state", "t", 1, 9, 0.0, {0: Span(3, 7)}, 11)
OLD = replace(NEW, id="old", to="clickhouse://me@ch:8123/logs", state=State.CANCELLED)


class World:
    """The topic of jobs; of each group its members, and the notes of its offsets."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.puts: list[Job] = []
        self.members: dict[str, int] = {}
        self.notes: dict[str, str] = {}
        self.fails: Exception | None = None
        self.config: Any = SimpleNamespace(
            kafka={}, vendors={}, streams=BUILT_IN, stream=BUILT_IN.__getitem__
        )

    def all(self) -> dict[str, Job]:
        return dict(self.jobs)

    readable = all

    def go_on(self, job: Job) -> int | None:
        known = self.jobs.get(job.id)
        return None if known is not None and known.state.over else self.put(job)

    def get(self, job_id: str) -> Job:
        return self.jobs[job_id]

    def put(self, job: Job) -> int:
        self.jobs[job.id] = job
        self.puts.append(job)
        return len(self.puts)

    def groups(self, _kafka: object) -> list[str]:
        return [*self.members, *self.notes]

    def ask_members(self, _kafka: object, groups: Collection[str]) -> dict[str, dict[str, int]]:
        if self.fails is not None:
            raise self.fails
        return {g: {"device_state": self.members[g]} if g in self.members else {} for g in groups}

    def lookup(self, _kafka: object, group: str, _topics: Sequence[str]) -> Any:
        note = self.notes.get(group, "")
        return SimpleNamespace(
            known=lambda partitions: {p: Known("t", 0, 99, 5, note) for p in partitions},
            all_ends=lambda: {P: 99},
            close=lambda: None,
        )

    def claim(self, job: Job = NEW) -> None:
        replay_to.claim(self.config, self, Place(job.to, job.to), job)  # type: ignore[arg-type] # as much as it needs


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(OLD)
    monkeypatch.setattr(standing, "members", world.ask_members)
    monkeypatch.setattr(standing, "groups", world.groups)
    monkeypatch.setattr(standing, "Lookup", world.lookup)
    monkeypatch.setattr("time.time", lambda: NOW_S)
    return world


# -- into the same table ---------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["headrace-replay-old", "headrace-replay-old-table"])
@pytest.mark.parametrize("announced", [False, True])
def test_a_replay_waits_for_what_a_cancelled_one_may_still_insert(
    world: World, announced: bool, group: str
) -> None:
    if group.endswith("-table"):
        world.jobs["old"] = replace(OLD, table_until_us=5)
    if announced:
        world.notes[group] = Intent("t", {P: Span(5, 7)}, round((NOW_S - 60) * 1000)).note()
        said = r"replay old .* was cancelled in the middle of .* again after 2025-06-15T15:35:40Z$"
    else:
        world.members[group] = 1
        said = r"replay old .* was cancelled, and a process of it is still there: start this again"
    with pytest.raises(ConfigError, match=said):
        world.claim()
    assert world.jobs["new"].state is State.CANCELLED, "or the next one would wait for it"


def test_a_replay_does_not_wait_for_what_can_not_come_any_more(world: World) -> None:
    old = Intent("t", {P: Span(5, 7)}, round((NOW_S - FRESH_S - 1) * 1000))
    for note in ("", Intent.at_rest("t").note(), old.note()):
        world.notes["headrace-replay-old"] = note
        world.claim()
        assert world.jobs.pop("new").state is State.OPEN


def test_a_replay_does_not_wait_for_one_that_is_of_another_table_or_stream_or_done(
    world: World,
) -> None:
    world.members["headrace-replay-old"] = 1
    for other in (
        replace(OLD, to="clickhouse://me@ch:8123/other"), replace(OLD, stream="raw_events"),
        replace(OLD, to="heap"), replace(OLD, state=State.DONE),
    ):  # fmt: skip
        world.jobs = {"old": other}
        world.claim()
        assert world.jobs["new"].state is State.OPEN


def test_a_chdb_takes_one_process_so_nothing_comes_of_a_cancelled_replay_into_it(
    world: World, tmp_path: Path
) -> None:
    world.members["headrace-replay-old"] = 1
    to = f"chdb:{tmp_path}"
    world.jobs = {"old": replace(OLD, to=to)}
    world.claim(replace(NEW, to=to))
    assert world.jobs["new"].state is State.OPEN


def test_a_replay_that_could_not_find_out_leaves_no_open_job(world: World) -> None:
    """The same command would go on with it, and ask nobody."""
    world.notes["headrace-replay-old"] = ""
    world.fails = RuntimeError("by the test")
    with pytest.raises(RuntimeError):
        world.claim()
    assert world.jobs["new"].state is State.CANCELLED


# -- from leg to leg -------------------------------------------------------------------------------


@pytest.mark.parametrize("meanwhile", [State.PAUSED, State.CANCELLED, None])
def test_who_pauses_or_cancels_a_replay_between_its_legs_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch, meanwhile: State | None
) -> None:
    """While Kafka is asked from where on it has the range, nobody watches the job."""
    job = replace(NEW, to="heap", stream="raw_events", table_until_us=5)
    world, ran = World(), []
    session = replay_run._Session(world.config, world, Place("heap"), None, skip_lost=False)  # type: ignore[arg-type] # as much as it needs
    session.note(job)

    def run(_job: Job, leg: Job, _table: object = None) -> bool:
        ran.append(leg.id)
        return True

    def behind_kafka(_config: object, _where: object, job: Job) -> Job:
        if meanwhile is not None:
            world.jobs["new"] = job.moved(meanwhile)
        return replace(job, table_until_us=7)

    monkeypatch.setattr(session, "run", run)
    monkeypatch.setattr(replay_run, "behind_kafka", behind_kafka)
    monkeypatch.setattr(replay_run, "within", lambda _config, _where, job: job)
    monkeypatch.setattr(replay_run, "open_raw", lambda *_: None)
    monkeypatch.setattr(replay_run, "_share", lambda *_: 0.0)
    noted = replay_run._run_legs(world.config, Place("heap"), session, job)
    if meanwhile is None:
        assert world.puts == [job, noted]
        assert ran == ["new-table", "new-table", "new"]
        assert noted.table_until_us == 7
    else:
        assert world.jobs["new"].state is meanwhile
        assert (world.puts, ran, noted) == ([job], ["new-table"], job)


# -- the list --------------------------------------------------------------------------------------


def test_a_job_of_a_stream_that_is_declared_no_more_is_shown_without_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(replace(NEW, id="gone", stream="gone"), NEW)
    monkeypatch.setattr(replay_jobs, "_jobs", lambda *_: (world.config, world))
    monkeypatch.setattr(standing, "passed", lambda *_: {P: 2})
    listed = CliRunner().invoke(cli, ["replay", "ls"])
    assert listed.exit_code == 0, listed.output
    assert [line.split()[:3] for line in listed.output.splitlines()] == [
        ["gone", "open", "-"], ["new", "open", "50%"],
    ]  # fmt: skip
    for id_, done in (("gone", None), ("new", 0.5)):
        shown = CliRunner().invoke(cli, ["replay", "show", id_])
        assert json.loads(shown.output)["done"] == done


def test_a_job_that_is_done_is_shown_so_when_kafka_has_forgotten_its_offsets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A week after its end it was shown as "done 0%". Nor is Kafka asked, job by job."""
    world = World(replace(NEW, state=State.DONE))
    monkeypatch.setattr(replay_jobs, "_jobs", lambda *_: (world.config, world))
    monkeypatch.setattr(standing, "passed", lambda *_: {P: 0})
    listed = CliRunner().invoke(cli, ["replay", "ls", "--all"])
    assert listed.output.split()[:3] == ["new", "done", "100%"]
    shown = CliRunner().invoke(cli, ["replay", "show", "new"])
    assert json.loads(shown.output)["done"] == 1


def test_of_a_job_of_before_no_more_of_its_url_is_shown_or_noted_than_of_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which options are secret was a shorter list once."""
    world = World(replace(NEW, to="postgres://me@db/prod?sslmode=require&scram_client_key=hunter2"))
    kept = "postgres://me@db/prod?sslmode=require"
    monkeypatch.setattr(replay_jobs, "_jobs", lambda *_: (world.config, world))
    monkeypatch.setattr(standing, "passed", lambda *_: {P: 2})
    listed = CliRunner().invoke(cli, ["replay", "ls"])
    assert listed.output.split()[-1] == kept
    assert json.loads(CliRunner().invoke(cli, ["replay", "show", "new"]).output)["to"] == kept
    ran: list[tuple[Place, Job]] = []
    monkeypatch.setattr(replay_jobs, "prepare", lambda: None)
    monkeypatch.setattr(
        replay_jobs, "run", lambda _config, _jobs, where, job, **_: ran.append((where, job))
    )
    CliRunner().invoke(cli, ["replay", "resume", "new"])
    ((where, job),) = ran
    # It is still connected with what there is.
    assert where.url == world.jobs["new"].to
    assert job.to == where.name == kept


def test_a_job_of_before_is_the_same_table_still(world: World) -> None:
    """By where it is, and not by what its URL says besides."""
    world.jobs["old"] = replace(OLD, to="clickhouse://me@ch:8123/logs?a=b", state=State.OPEN)
    with pytest.raises(ConfigError, match="replay old puts rows back into the same table"):
        world.claim()


def test_where_a_replay_went_is_said_as_a_terminal_may_be_given_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, capsys, Place("heap\x1b[2J\u202e"), 2) == (
        "replayed 2 records to heap\\u001b[2J\\u202e\n"
    )


def ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: Place,
    records: int, rows: int = 0, left: int = 0,
) -> str:  # fmt: skip
    """What is said at the end of a replay of so many records, of which a table lacked so many."""
    world = World(NEW)
    session = replay_run._Session(world.config, world, where, None, skip_lost=False)  # type: ignore[arg-type] # as much as it needs
    session._count(records)
    session._count_back(rows, left)
    monkeypatch.setattr(replay_run, "share_done", lambda *_: 1.0)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit):
        replay_run._end(world.config, world, NEW, session.result())  # type: ignore[arg-type] # as much as it needs
    return capsys.readouterr().out


def test_of_a_table_it_is_said_how_many_rows_it_had_lacked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what was read most was there all the time."""
    assert ended(monkeypatch, capsys, Place("chdb", "chdb:/x"), 3000, 1) == (
        "replayed 3,000 records to chdb: 1 row put back, the others were there\n"
    )


def test_what_a_replay_leaves_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that have other values than their records give are neither missing nor all right."""
    left = (
        "2 rows are there by key and time with other values than their records give now, and left "
        "so: has the message changed?"
    )
    assert ended(monkeypatch, capsys, Place("pg", "postgresql:///x"), 3000, 1, 2) == (
        f"replayed 3,000 records to pg: 1 row put back, the others were there; {left}\n"
    )
    figures = RowFigures()
    figures.count_left(0, 2)
    assert list(row_lines(figures))[-1] == left


# -- begun once ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "said"), [
    ([], "no replay is open\n"), (["--all"], "there is no replay\n"),
])  # fmt: skip
def test_that_there_is_no_replay_is_said(
    monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    world = World()
    monkeypatch.setattr(replay_jobs, "_jobs", lambda *_: (world.config, world))
    assert CliRunner().invoke(cli, ["replay", "ls", *options]).output == said


@pytest.mark.parametrize("of_before", [False, True])
def test_the_same_command_goes_on_also_with_a_job_that_has_noted_more_of_its_url(
    monkeypatch: pytest.MonkeyPatch, of_before: bool
) -> None:
    url = "postgres://me:pw@db/prod?sslmode=require&scram_client_key=hunter2"
    kept = "postgres://me@db/prod?sslmode=require"
    noted = f"{kept}&scram_client_key=hunter2" if of_before else kept
    job = Job("old", noted, "device_state", "t", 0, 10**6, 3600.0, {0: Span(3, 7)}, 1)
    world, ran = World(job), []
    monkeypatch.setattr(replay_cli, "prepare", lambda: None)
    monkeypatch.setattr(replay_cli, "load", lambda *_, **__: world.config)
    monkeypatch.setattr(replay_cli, "require_topics", lambda *_: None)
    monkeypatch.setattr("ingest.topics.topic_ids", lambda *_: {"device_state": "t"})
    monkeypatch.setattr("consumers.replay.jobs.Jobs", lambda _kafka: world)
    monkeypatch.setattr(replay_cli, "run", lambda _config, _jobs, _where, job, **_: ran.append(job))
    done = CliRunner().invoke(
        cli,
        ["replay", "--to", url, "--stream", "device_state", "--from", "1970-01-01T00:00:00Z",
         "--until", "1970-01-01T00:00:01Z"],
    )  # fmt: skip
    assert done.output == "replay old goes on\n", done.exception
    assert ran == [replace(job, to=kept)]


def test_a_vendor_that_can_not_be_made_leaves_no_replay_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next command would go on with it, and a person would wonder who has left it."""
    world, job = World(), replace(NEW, to="heap", stream="raw_events")
    settings = Mock()
    settings.vendor.side_effect = VendorError("HEAP_APP_ID is not set")
    world.config.vendors, world.config.trace = {"heap": settings}, None
    monkeypatch.setattr("consumers.replay.ranges.find", Mock(side_effect=AssertionError))
    where = Place("heap")
    with pytest.raises(VendorError):
        replay_run.found(world.config, where, job)
    with pytest.raises(VendorError):
        replay_run.run(world.config, world, where, job, skip_lost=False)  # type: ignore[arg-type] # as much as it needs
    assert not world.puts


def test_one_record_is_not_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, capsys, Place("heap"), 1) == "replayed 1 record to heap\n"
    figures = RowFigures()
    figures.refused, figures.undecodable = 1, 2
    assert list(row_lines(figures))[-2:] == [
        "1 row the database does not take; it is in the dead letters",
        "2 records can't be decoded; they are in the dead letters",
    ]


# -- a cancel meanwhile ----------------------------------------------------------------------------


def test_a_replay_that_is_cancelled_while_its_export_is_read_sends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paused = replace(NEW, to="heap", stream="raw_events", state=State.PAUSED, against="export.json")
    world = World(paused)
    world.config.vendors = {"heap": Mock()}
    world.config.trace = Mock()

    def exported(*_: object) -> None:
        world.jobs["new"] = paused.moved(State.CANCELLED)

    monkeypatch.setattr("consumers.vendors.exported.Exported", exported)
    monkeypatch.setattr(replay_run, "_check_vendor", lambda *_: None)
    monkeypatch.setattr(replay_run, "share_done", lambda *_: 0.5)
    monkeypatch.setattr("consumers.fetch.calm_gc", lambda: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(replay_run, "target", Mock(side_effect=AssertionError))
    with pytest.raises(SystemExit) as ended:
        replay_run.run(
            world.config, world, Place("heap"), paused.moved(State.OPEN),  # type: ignore[arg-type] # as much as it needs
            skip_lost=False,
        )  # fmt: skip
    assert ended.value.code == 0
    assert capsys.readouterr().out == "replayed 0 records to heap\nit was cancelled\n"
    assert not world.puts


@pytest.mark.parametrize(("command", "origin"), [("pause", "command"), ("resume", "outage")])
def test_a_pause_or_resume_that_comes_too_late_says_so(
    monkeypatch: pytest.MonkeyPatch, command: str, origin: str
) -> None:
    job = replace(NEW, origin=Origin(origin))
    world = World(job)

    def ended_meanwhile(_: Job) -> None:
        world.jobs["new"] = job.moved(State.CANCELLED)

    monkeypatch.setattr(world, "go_on", ended_meanwhile)
    monkeypatch.setattr(replay_jobs, "_jobs", lambda *_: (world.config, world))
    monkeypatch.setattr(replay_jobs, "prepare", lambda: None)
    done = CliRunner().invoke(cli, ["replay", command, "new"])
    assert done.exit_code == 1
    assert "the replay new is cancelled: that is final" in str(done.exception) + done.output
    assert not world.puts


@pytest.mark.parametrize("raw", [None, "clickhouse://ch/events"])
@pytest.mark.parametrize("of_table", [False, True])
def test_where_retention_has_overtaken_a_replay_another_one_finds_in_the_table_what_is_lost(
    monkeypatch: pytest.MonkeyPatch, of_table: bool, raw: str | None
) -> None:
    """--skip-lost alone would leave out what another replay sends. A replay that was paused for a
    day may have begun when Kafka had all of it."""
    job = replace(NEW, to="heap", table_until_us=5 if of_table else None)
    world = World()
    world.config.raw = raw
    monkeypatch.setattr(replay_run, "_check_vendor", lambda *_: None)
    monkeypatch.setattr(replay_run, "_run_legs", Mock(side_effect=Lost("lost, by the test.")))
    monkeypatch.setattr("consumers.fetch.calm_gc", lambda: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(Systemic) as raised:
        replay_run.run(world.config, world, Place("heap"), job, skip_lost=False)  # type: ignore[arg-type] # as much as it needs
    said = str(raised.value)
    assert said.startswith("lost, by the test. ")
    assert said.endswith("To go on then: headrace replay resume new")
    assert ("headrace replay cancel new, and the same command with --only-missing" in said) is (
        of_table or raw is not None
    )


def test_an_event_that_would_not_leave_for_the_vendor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is mistyped would replay nothing, and be done with exit code 0."""
    monkeypatch.setattr(replay_cli, "prepare", lambda: None)
    monkeypatch.chdir(tmp_path)
    Path("headrace.toml").write_text(
        '[vendors.heap]\napp_id_env = "HEAP"\n[trace.events.checkout]\n'
        '[trace.events.signup]\nvendors = ["heap"]\n[trace.events.refund]\nvendors = ["ga4"]\n'
    )
    for event in ("chekout", "refund"):
        done = CliRunner().invoke(
            cli, ["replay", "--to", "heap", "--from", "-1d", "--event", event, "--kafka", "k:1"]
        )
        assert str(done.exception) == (
            f"--event {event!r}: [trace] lets no event of this name leave for heap; those that may "
            "are: 'checkout', 'signup'"
        )
