"""What `headrace doctor` makes of facts: how bad it is, what to type, and what is safe."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from consumers.batch import Partition, Span
from consumers.behind import Waiting
from consumers.errors import Unavailable
from consumers.replay.job import Job, Origin, State
from headrace.config import Config
from headrace.doctor import kafka, replicas
from headrace.doctor.check import Check, Verdict, bounded, fail, ok, warn
from headrace.doctor.edge import Disk, configuration, judge_spool, spools
from headrace.doctor.kafka import judge_letters, topics
from headrace.doctor.readers import database, judge, not_landed
from headrace.doctor.replicas import judge_replicas
from headrace.doctor.retention import lengthen
from headrace.doctor.run import summary
from headrace.doctor.unread import unread_together
from headrace.readers import Reader, Standing, _replay, standings
from ingest.collector.settings import CollectSettings
from ingest.spool import Spool
from ingest.spool.care import Glance
from ingest.spool.reader import State as SpoolState
from ingest.streams import BUILT_IN
from ingest.topics import Retention, TopicError, retentions

NOW_S = 1_750_000_000.0
HOUR, DAY = 3600.0, 86_400.0
STREAM = BUILT_IN["device_state"]
WEEK, MONTH = Retention(7 * DAY), Retention(30 * DAY)
SMALL = Retention(7 * DAY, 2**30)
SOONER = "(or less, by retention.bytes)"


def nothing(_topic_id: str) -> Mapping[Partition, int]:
    return {}


READER = Reader("postgres", STREAM, ("g",), "headrace insert --to postgres", nothing)
JOB = Job("3f9c01d2", "amplitude", "raw_events", "id", 0, 1, 0.0, {0: Span(0, 9)}, 0)


def standing(
    age_s: float | None, members: int, *, job: Job | None = None, lost: int = 0, cut: int = 0
) -> Standing:
    """100 offsets wait, the oldest for so long; None: nothing does."""
    oldest_ms = None if age_s is None else round((NOW_S - age_s) * 1000)
    position = 600 - lost if not cut else 700 + cut
    part = Waiting(Partition("t", 0), position, Span(600, 700), oldest_ms)
    return Standing(replace(READER, job=job), [part], members)


@pytest.mark.parametrize(
    ("one", "verdict", "do"),
    [
        (standing(None, 2), Verdict.OK, ""),
        (standing(5, 2), Verdict.OK, ""),
        (standing(HOUR, 2), Verdict.WARN, "headrace lag --to postgres --watch"),
        (standing(None, 0), Verdict.WARN, READER.start),
        (standing(5, 0), Verdict.FAIL, READER.start),
        # There is no time left to wait for the morning.
        (standing(6 * DAY, 0), Verdict.FAIL, READER.start),
        (standing(6 * DAY, 2), Verdict.FAIL, "retention.ms"),
        (standing(5, 2, lost=7), Verdict.FAIL, "retention.ms"),
        (standing(None, 2, cut=7), Verdict.FAIL, "headrace audit"),
        (standing(None, 0, job=JOB), Verdict.OK, ""),
        (standing(5, 0, job=JOB), Verdict.WARN, READER.start),
        (standing(5, 0, job=JOB.moved(State.PAUSED)), Verdict.WARN, READER.start),
        (standing(6 * DAY, 0, job=JOB.moved(State.PAUSED)), Verdict.FAIL, READER.start),
        # What is left of it may be in the table of raw events.
        (standing(None, 0, job=replace(JOB, table_until_us=1)), Verdict.WARN, READER.start),
        (standing(None, 1, job=replace(JOB, table_until_us=1)), Verdict.OK, ""),
        (Standing(READER, problem="away"), Verdict.FAIL, "headrace lag"),
    ],
)
def test_a_reader(one: Standing, verdict: Verdict, do: str) -> None:
    found = judge(one, WEEK, NOW_S)
    assert found.verdict is verdict, found
    assert do in found.do
    assert bool(found.safe) == (verdict is not Verdict.OK)
    assert found.lost == (found.safe.startswith("no"))


def test_streams_that_nobody_reads_are_one_line_with_one_command() -> None:
    """With one for each stream there were as many processes; a chDB takes one."""
    now_s = time.time()

    def of(name: str, age_s: float | None, members: int = 0) -> tuple[Standing, Check]:
        reader = replace(READER, stream=BUILT_IN[name], start=f"start {name}")
        oldest_ms = None if age_s is None else round((now_s - age_s) * 1000)
        part = Waiting(Partition(name, 0), 600, Span(0, 700), oldest_ms)
        one = Standing(reader, [part], members)
        return one, judge(one, found[name], now_s)

    found = {"device_state": MONTH, "raw_events": WEEK, "receipts": MONTH, "http_test": WEEK}
    judged = [
        of("device_state", 2 * DAY + HOUR),
        of("receipts", None),
        of("http_test", 5, members=2),
        of("raw_events", DAY - HOUR),
    ]
    config = Config({}, dict(BUILT_IN), Path())
    said, fine = unread_together(config, "my db", judged, found, "g")
    assert said.verdict is Verdict.FAIL
    assert said.text == (
        "nobody reads 3 streams: device_state, receipts, raw_events; 200 offsets wait in 2 of "
        "them, the oldest record for 2 d"
    )
    assert said.do == (
        "headrace insert --to 'my db' --stream device_state --stream receipts --stream raw_events "
        "--group g"
    )
    assert said.safe == "yes, Kafka keeps them for 6 d more", "of those that it removes first"
    assert fine.name == "postgres http_test"
    three = replace(config, streams={one: BUILT_IN[one] for one in found if one != "http_test"})
    (said, _) = unread_together(three, "db", judged, found, None)
    assert said.do == "headrace insert --to db", "it is all of them"
    assert unread_together(config, "db", judged[:1], found, None) == [judged[0][1]]
    idle = unread_together(config, "db", [of("device_state", None), judged[1]], found, None)
    assert [(one.verdict, one.text[-13:]) for one in idle] == [(Verdict.WARN, "nothing waits")]


def test_what_kafka_keeps_for_ever_is_in_no_danger() -> None:
    found = judge(standing(400 * DAY, 2), Retention(), NOW_S)
    assert found.verdict is Verdict.WARN
    assert "removes" not in found.text


def test_what_gives_records_up_is_not_what_to_type_first() -> None:
    found = judge(standing(5, 2, lost=7), WEEK, NOW_S)
    assert "--skip-lost" not in found.do
    assert found.safe.endswith(f"{READER.start} --skip-lost")


def test_the_time_that_is_left_is_said() -> None:
    assert "in 24 h" in judge(standing(6 * DAY, 0), WEEK, NOW_S).text
    assert judge(standing(DAY, 0), WEEK, NOW_S).safe == "yes, Kafka keeps them for 6 d more"


def test_no_time_is_promised_without_what_size_may_take_of_it() -> None:
    found = judge(standing(DAY, 0), SMALL, NOW_S)
    assert found.safe == f"yes, Kafka keeps them for 6 d more {SOONER}"
    found = judge(standing(6 * DAY, 0), SMALL, NOW_S)
    assert f"removes it in 24 h {SOONER};" in found.text
    assert found.safe == f"for 24 h {SOONER}; then not"
    found = judge(standing(DAY, 0), Retention(None, 2**30), NOW_S)
    assert found.safe == "yes, Kafka keeps them for as long as retention.bytes allows"
    config = Config({}, {STREAM.name: STREAM}, Path())
    (said,) = topics(config, {STREAM.topic: SMALL, STREAM.dlq: MONTH})
    assert said.text.endswith(f"which keep records for 7 d {SOONER}")
    (said,) = topics(config, {STREAM.topic: Retention(2 * HOUR, 1), STREAM.dlq: MONTH})
    assert said.safe == f"for 2 h {SOONER} from when it was published"


@pytest.mark.parametrize("name", [STREAM.topic, STREAM.dlq])
def test_a_topic_that_is_compacted_loses_records(name: str) -> None:
    """Whoever made it by hand, or a broker with another default, has one; nobody said so."""
    config = Config({}, {STREAM.name: STREAM}, Path())
    found = {STREAM.topic: WEEK, STREAM.dlq: MONTH}
    found[name] = replace(found[name], compacted=True)
    (said,) = topics(config, found)
    assert said.verdict is Verdict.FAIL
    assert said.text.startswith(f"{name} is compacted")
    assert said.do.endswith(f"--entity-name {name} --add-config cleanup.policy=delete")


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        (Retention(HOUR), "retention.ms=1209600000"),
        # What is kept for longer than that already must not be shortened.
        (MONTH, "retention.ms=5184000000"),
        (Retention(7 * DAY, 2**31), "retention.ms=1209600000,retention.bytes=4294967296"),
        (Retention(None, 1000), "retention.bytes=1073741824"),
    ],
)
def test_what_makes_kafka_keep_more_never_makes_it_keep_less(
    limits: Retention, wanted: str
) -> None:
    command = lengthen("t", limits)
    assert command.endswith(f" --alter --entity-type topics --entity-name t --add-config {wanted}")
    assert "--alter" not in lengthen("t", Retention()), "it keeps all there is"


@pytest.mark.parametrize(
    ("receipts", "wanted"),
    [
        (WEEK, "name r --add-config retention.ms=1209600000"),
        (Retention(14 * DAY), ""),
        (Retention(), ""),
    ],
)
def test_who_keeps_events_for_longer_is_told_to_keep_their_receipts_too(
    receipts: Retention, wanted: str
) -> None:
    """Without them all of it is missing at each vendor, and a replay sends it again."""
    alone = lengthen("t", WEEK)
    longer = lengthen("t", WEEK, ("r", receipts))
    assert longer.startswith(alone)
    assert longer.endswith(wanted)
    assert (" && " in longer) == bool(wanted)
    assert lengthen("t", SMALL, ("r", receipts)).endswith(wanted)
    raw = replace(standing(6 * DAY, 2), reader=replace(READER, stream=BUILT_IN["raw_events"]))
    assert judge(raw, WEEK, NOW_S, ("r", receipts)).do.endswith(wanted)


@pytest.mark.parametrize(
    ("events", "receipts", "do"),
    [
        (WEEK, WEEK, ""),
        (WEEK, MONTH, ""),
        (MONTH, WEEK, "retention.ms=2592000000"),
        (Retention(), WEEK, "retention.ms=-1"),
        (WEEK, Retention(), ""),
    ],
)
@pytest.mark.parametrize("vendors", [False, True])
def test_receipts_that_expire_before_their_events_are_a_warning(
    events: Retention, receipts: Retention, do: str, vendors: bool
) -> None:
    streams = {name: BUILT_IN[name] for name in ("raw_events", "receipts")}
    named = {"heap": Mock()} if vendors else {}
    config = Config({}, streams, Path(), vendors=named)
    found = dict.fromkeys((one.dlq for one in streams.values()), MONTH)
    said = topics(config, {**found, "raw_events": events, "receipts": receipts})
    assert bool(said[0].do) == bool(do and vendors)
    if vendors:
        assert said[0].do.endswith(do)


@pytest.mark.parametrize(
    ("policy", "kept_ms", "size", "limits"),
    [
        ("delete", "604800000", "-1", WEEK),
        ("delete", "604800000", "1073741824", SMALL),
        ("compact,delete", "-1", "0", Retention(None, 0, compacted=True)),
        ("compact", "604800000", "0", Retention(compacted=True)),
        ("", "604800000", "0", Retention()),
    ],
)
def test_what_a_topic_keeps_is_in_its_settings(
    policy: str, kept_ms: str, size: str, limits: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"cleanup.policy": policy, "retention.ms": kept_ms, "retention.bytes": size}
    monkeypatch.setattr("ingest.topics._settings", lambda _kafka, _names: [("t", settings)])
    assert retentions({}, ["t"]) == {"t": limits}


def unbegun(name: str, records: int = 9) -> Standing:
    """A stream that nobody has begun to land, of which there are so many records."""
    oldest_ms = round(NOW_S * 1000) if records else None
    part = Waiting(Partition(name, 0), None, Span(0, records), oldest_ms)
    return Standing(replace(READER, stream=BUILT_IN[name]), [part])


def test_streams_that_a_database_does_not_take_are_named_and_no_warning() -> None:
    """Whoever forwards has receipts in Kafka, and need not land them."""
    here, others = standing(5, 2), [unbegun("receipts"), unbegun("raw_events")]
    (found,) = not_landed("postgres", [here, *others])
    assert found == ok(
        "postgres",
        "not landed here, though Kafka has records: receipts, raw_events. Nobody has begun with "
        "them; `headrace insert --to postgres --stream NAME` would",
    )
    assert not not_landed("postgres", [here, unbegun("receipts", 0)])
    assert not not_landed("postgres", [unbegun("receipts")]), "a warning says more"


COMMANDS = {"send": "collect", "ask": "readyz", "disk": "df"}


@pytest.mark.parametrize(
    ("waiting", "age_s", "user", "size", "free", "verdict", "do"),
    [
        (0, None, 1, 0.1, 50, Verdict.OK, ""),
        (9, 5, 1, 0.1, 50, Verdict.OK, ""),
        (9, HOUR, 1, 0.1, 50, Verdict.WARN, "readyz"),
        (0, None, None, 0.1, 50, Verdict.WARN, "collect"),
        (9, 5, None, 0.1, 50, Verdict.FAIL, "collect"),
        (9, 5, 1, 0.9, 50, Verdict.WARN, "readyz"),
        (9, 5, 1, 1.0, 50, Verdict.FAIL, "readyz"),
        (9, 5, 1, 0.1, 0.5, Verdict.WARN, "df"),
        (9, 5, 1, 0.1, 0.01, Verdict.FAIL, "df"),
    ],
)
def test_a_spool(
    waiting: int, age_s: float | None, user: int | None, size: float, free: float,
    verdict: Verdict, do: str,
) -> None:  # fmt: skip
    state = SpoolState("node", 0, 100 + waiting, 100, round(size * 1000))
    oldest_us = None if age_s is None else round((NOW_S - age_s) * 1e6)
    disk = Disk(round(free * 2**30), 1000)
    found = judge_spool("spool 0", Glance(state, user, oldest_us), disk, NOW_S, COMMANDS)
    assert (found.verdict, found.do) == (verdict, do), found
    assert not found.lost
    # What is to be made larger, if anything is.
    assert ("max_spool_bytes" in found.text) == (size > 0.8)


@pytest.mark.parametrize(
    ("listen", "cert", "do"),
    [
        ("127.0.0.1:8080", None, "curl -s http://127.0.0.1:8080/readyz"),
        # At all of them is at this one, too.
        (":8080", None, "curl -s http://127.0.0.1:8080/readyz"),
        ("[::]:8080", None, "curl -s http://[::1]:8080/readyz"),
        # Its certificate may be nobody's that this machine knows, and names another host.
        ("127.0.0.1:8080", Path("cert.pem"), "curl -sk https://127.0.0.1:8080/readyz"),
    ],
)
def test_a_collector_is_asked_as_it_listens(
    listen: str, cert: Path | None, do: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "spool.db").touch()
    full = Glance(SpoolState("node", 0, 1, 0, 2000), 1, None)
    monkeypatch.setattr("headrace.doctor.edge.glance", lambda _folder: full)
    collect = CollectSettings(
        spool=tmp_path, listen=listen, tls_cert=cert, tls_key=cert, max_spool_bytes=1000
    )
    (found,) = spools(Config({}, {}, Path(), collect=collect))
    assert found.do == do


@pytest.mark.parametrize(
    ("worker", "waiting", "verdict", "do"),
    [
        ("0", 0, Verdict.WARN, "headrace collect"),
        ("1", 1, Verdict.FAIL, "headrace spool drain "),
        # As the drain leaves it: a second one would change nothing.
        ("1", 0, Verdict.OK, ""),
    ],
)
def test_what_is_typed_of_a_spool_that_no_worker_has_any_more_leads_to_ok(
    worker: str, waiting: int, verdict: Verdict, do: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / worker).mkdir()
    (tmp_path / worker / "spool.db").touch()
    idle = Glance(SpoolState("node", 0, 100 + waiting, 100, 0), None, None)
    monkeypatch.setattr("headrace.doctor.edge.glance", lambda _folder: idle)
    collect = CollectSettings(spool=tmp_path, workers=1)
    (found,) = spools(Config({}, {}, Path(), collect=collect))
    assert found.verdict is verdict
    assert found.do.startswith(do) if do else not found.do


@pytest.mark.parametrize(
    ("age_s", "limits", "verdict", "safe"),
    [
        (HOUR, MONTH, Verdict.WARN, "yes, whole in device_state.dlq, for 29 d more"),
        (22 * DAY, MONTH, Verdict.WARN, "yes, whole in device_state.dlq, for 8 d more"),
        (25 * DAY, MONTH, Verdict.FAIL, "for 5 d; then not"),
        (22 * DAY, Retention(30 * DAY, 1), Verdict.WARN,
         f"yes, whole in device_state.dlq, for 8 d more {SOONER}"),
        (25 * DAY, Retention(30 * DAY, 1), Verdict.FAIL, f"for 5 d {SOONER}; then not"),
        (400 * DAY, Retention(), Verdict.WARN, "yes, whole in device_state.dlq, for ever"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [True, False])
def test_dead_letters_are_safe_for_what_is_left_of_their_time(
    age_s: float, limits: Retention, verdict: Verdict, safe: str, read: bool
) -> None:
    oldest_ms = round((NOW_S - age_s) * 1000)
    found = judge_letters(STREAM, 60_000, oldest_ms, limits, NOW_S, read=read)
    assert found is not None
    assert (found.verdict, found.do) == (verdict, "headrace dlq ls device_state")
    assert found.safe.startswith(safe)
    # Of those that are too many to look through the first may be settled.
    assert ("about" in found.text) == ("the oldest record there" in found.text) == (not read)
    assert ("unless it has been redriven" in found.safe) == (verdict is Verdict.FAIL and not read)


@pytest.mark.parametrize(("number", "read"), [(0, True), (60_000, False)])
def test_without_dead_letters_there_is_nothing_to_say(number: int, read: bool) -> None:
    """Also where all that is left of many offsets are markers of transactions."""
    assert judge_letters(STREAM, number, None, MONTH, NOW_S, read=read) is None


def test_a_check_that_raises_or_hangs_is_a_failed_check() -> None:
    def broken() -> list[Check]:
        raise ValueError("no such thing")

    (found,) = bounded("x", broken)
    assert (found.verdict, "no such thing" in found.text) == (Verdict.FAIL, True)
    over = threading.Event()
    (found,) = bounded("x", lambda: [ok("x", "")] if over.wait() else [], most_s=0.01)
    over.set()
    assert (found.verdict, found.text) == (Verdict.FAIL, "no answer within 0.01 s")


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        ([ok("a", ""), ok("b", "")], "all 2 checks are well"),
        ([ok("a", ""), warn("b", "", "", "")], "1 warning; nothing acknowledged is lost"),
        ([fail("a", "", "", ""), fail("b", "", "", "")], "2 problems; nothing acknowledged is"),
        ([fail("kafka", "", "", "")], "1 problem; what lies behind could not be asked"),
        ([fail("a", "", "", "", lost=True), warn("b", "", "", "")], "1 problem, 1 warning; lost:"),
    ],
)  # fmt: skip
def test_the_last_line_sums_up(checks: list[Check], said: str) -> None:
    assert summary(checks).startswith(said)


def test_a_replay_of_before_is_named_without_what_is_secret_in_its_url() -> None:
    to = "postgres://me@db/prod?scram_client_key=hunter2"
    reader = _replay({}, BUILT_IN["raw_events"], replace(JOB, to=to), ())
    found = judge(replace(standing(HOUR, 1), reader=reader), WEEK, NOW_S)
    assert found.name == "replay 3f9c01d2 to postgres://me@db/prod"
    assert "hunter2" not in f"{found.text} {found.do}"


def test_of_a_replay_of_before_the_destination_is_the_one_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    to = "postgres://me@db/prod"
    jobs = {"a": replace(JOB, to=f"{to}?scram_client_key=hunter2"), "b": JOB}
    monkeypatch.setattr("headrace.readers.Jobs", lambda *_, **__: Mock(readable=lambda: jobs))
    monkeypatch.setattr("headrace.readers.topic_ids", lambda *_: {"raw_events": "t"})
    monkeypatch.setattr("headrace.readers.members", lambda *_: defaultdict(Counter))
    monkeypatch.setattr("headrace.readers._readers", lambda *_: [])
    raw = BUILT_IN["raw_events"]
    config = Config({}, {raw.name: raw}, Path())
    (one,) = standings(config, {to: to}, [raw], only=True)
    assert one.reader.to == to


def test_of_a_destination_that_can_not_be_asked_one_line_says_so_and_the_others_have_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = BUILT_IN["raw_events"]

    def ask(to: str, n: int) -> dict[Partition, int]:
        if to == "away" and n:
            raise Unavailable(f"it is away, asked for {n}")
        return {}

    readers = [
        Reader(to, raw, ("group",), "", lambda _, to=to, n=n: ask(to, n))
        for to in ("here", "away", "there")
        for n in range(20)
    ]
    monkeypatch.setattr("headrace.readers.Jobs", lambda *_, **__: Mock(readable=dict))
    monkeypatch.setattr("headrace.readers.topic_ids", lambda *_: {"raw_events": "t"})
    monkeypatch.setattr("headrace.readers.members", lambda *_: defaultdict(Counter))
    monkeypatch.setattr("headrace.readers._readers", lambda *_: readers)
    monkeypatch.setattr("headrace.readers.waiting", lambda *_: ())
    found = list(standings(Config({}, {raw.name: raw}, Path()), {}, [raw]))
    assert [one.reader.to for one in found] == ["here"] * 20 + ["away"] * 2 + ["there"] * 20
    assert [one.problem for one in found if one.problem] == ["it is away, asked for 1"]


def test_what_is_to_be_typed_for_a_replay_is_one_command_whatever_its_record_says() -> None:
    raw = BUILT_IN["raw_events"]
    of_outage = replace(JOB, to="heap; reboot", origin=Origin.OUTAGE)
    vendors = {"heap; reboot"}
    assert _replay({}, raw, of_outage, vendors).start == "headrace forward --vendor 'heap; reboot'"
    paused = replace(JOB, id="a;b", state=State.PAUSED)
    for job in (paused, replace(paused, state=State.OPEN)):
        reader = _replay({}, raw, job, ())
        assert reader.start == "headrace replay resume 'a;b'"
    one = replace(standing(5, 0), reader=_replay({}, raw, paused, ()))
    assert judge(one, WEEK, NOW_S).do == "headrace replay resume 'a;b'"


@pytest.mark.parametrize("state", [State.OPEN, State.PAUSED])
def test_of_a_vendor_that_is_not_configured_any_more_no_forwarder_is_to_be_started(
    state: State,
) -> None:
    """It would answer that there is no such vendor."""
    of_outage = replace(JOB, to="heap", origin=Origin.OUTAGE, state=state)
    reader = _replay({}, BUILT_IN["raw_events"], of_outage, {"ga4"})
    found = judge(replace(standing(5, 0), reader=reader), WEEK, NOW_S)
    assert found.do == (
        "headrace replay cancel 3f9c01d2    # or put its vendor's section back into headrace.toml"
    )


@pytest.mark.parametrize(("kind", "among"), [
    ("chdb", " in the group g (another one is given with --group)"), ("postgres", ""),
])  # fmt: skip
def test_that_nobody_has_begun_is_said_of_the_group_that_was_looked_at(
    monkeypatch: pytest.MonkeyPatch, kind: str, among: str
) -> None:
    place = Mock(one_process=kind == "chdb")
    monkeypatch.setattr("headrace.doctor.readers.destination", lambda _url: place)
    idle = unbegun("receipts")
    idle = replace(idle, reader=replace(idle.reader, by_group=kind != "postgres"))
    monkeypatch.setattr("headrace.doctor.readers._standings", lambda *_: [idle])
    (check,) = database(Config({}, {}, Path()), "here", "url", {}, None)
    assert check.verdict is Verdict.WARN
    said = f"its tables are there, but nobody{among} has begun to land anything in it"
    assert check.text == said


def test_of_a_stream_too_that_is_said_of_the_group_that_was_looked_at() -> None:
    """Somebody in another one may have landed all of it."""
    known = [
        replace(one, reader=replace(one.reader, by_group=True))
        for one in (standing(5, 2), unbegun("receipts"))
    ]
    (found,) = not_landed("chdb:my data", known, "g")
    assert found.text.endswith(
        ". Nobody in the group g (another one is given with --group) has begun with it, or not for "
        "a week; `headrace insert --to 'chdb:my data' --stream NAME --group g` would"
    )


def test_of_a_local_stack_it_is_said_which_part_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Kafka may run: that none is known is then only half of it."""
    gone = "of the local stack in s, kafka is running, postgres is crashed: bring it up"
    monkeypatch.setattr("headrace.doctor.edge.start_the_stack", lambda _state: gone)
    check = configuration(Config({}, {}, Path("s")))
    assert (check.verdict, check.do.split("  ")[0]) == (Verdict.FAIL, "headrace up")
    assert check.text.endswith(f"no Kafka is known: {gone}")


def test_that_no_spool_is_looked_at_is_said_and_no_warning() -> None:
    (check,) = spools(Config({}, {}, Path()))
    assert check == ok(
        "spool",
        "none is named ([collect] spool in headrace.toml); one that is given with --spool is not "
        "looked at",
    )


@pytest.mark.parametrize("closed", ["", "0"])
def test_a_spool_that_this_user_may_not_look_into_is_not_taken_for_none(
    closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's directory is its user's alone. Tests may run as root, who may look into all."""
    Spool(tmp_path / "0").close()
    real, iterdir = Path.stat, Path.iterdir

    def refused(path: Path) -> PermissionError:
        return PermissionError(13, "Permission denied", str(path))

    def may_stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.parent == tmp_path / closed:
            raise refused(path)
        return real(path, follow_symlinks=follow_symlinks)

    def may_list(path: Path) -> Iterator[Path]:
        if path == tmp_path / closed:
            raise refused(path)
        return iterdir(path)

    monkeypatch.setattr(Path, "stat", may_stat)
    monkeypatch.setattr(Path, "iterdir", may_list)
    (check,) = spools(Config({}, {}, Path(), collect=CollectSettings(spool=tmp_path)))
    assert check.verdict == Verdict.FAIL
    assert f"{tmp_path / closed} can't be looked into: Permission denied" in check.text
    assert check.do == "headrace doctor    # as the user that runs the collector, or as root"


def test_one_of_something_is_not_many() -> None:
    part = Waiting(Partition("t", 0), 599, Span(600, 600), None)
    assert judge(Standing(READER, [part], 1), WEEK, NOW_S).text == (
        "1 offset was removed by Kafka's retention before it was read"
    )
    assert judge(standing(5, 2, lost=7), WEEK, NOW_S).text == (
        "7 offsets were removed by Kafka's retention before they were read"
    )
    part = Waiting(Partition("t", 0), 599, Span(500, 600), round((NOW_S - 5) * 1000))
    assert judge(Standing(READER, [part], 1), WEEK, NOW_S).text.startswith("1 offset waits, ")


def test_a_built_in_stream_that_kafka_does_not_let_us_see_is_in_no_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a Kafka with ACLs for one stream all that was said was "Topic authorization failed"."""
    hidden = {stream.topic for stream in BUILT_IN.values()} - {"device_state"}
    config = Config(kafka={}, streams=BUILT_IN, state=Path())

    def topic_ids(_kafka: object, names: list[str]) -> dict[str, str]:
        if refused := hidden & set(names):
            raise TopicError("no", denied=True, topics=list(refused))
        return dict.fromkeys(names, "id")

    admin = SimpleNamespace(list_topics=lambda **_: SimpleNamespace(brokers={1: None}))
    monkeypatch.setattr(kafka, "topic_ids", topic_ids)
    monkeypatch.setattr(kafka, "retentions", lambda _, names: dict.fromkeys(names, Retention()))
    monkeypatch.setattr(kafka, "AdminClient", lambda _: admin)
    check, found, seen = kafka.answers(config)
    assert check.verdict is Verdict.OK
    assert "does not let us see the topics of http_test, raw_events, receipts" in check.text
    assert found is not None
    assert list(found) == ["device_state", "device_state.dlq"]
    assert list(seen.streams) == ["device_state"]
    hidden.add("device_state.dlq")  # which is in use
    check, found, _ = kafka.answers(config)
    assert (check.verdict, found) == (Verdict.FAIL, None)


@pytest.mark.parametrize(
    ("leader", "in_sync", "least", "verdict", "said"),
    [
        (1, [1, 2, 3], 2, Verdict.OK, "in sync"),
        (1, [1, 2], 2, Verdict.WARN, "behind the leader; brokers that are away or not in sync: 3"),
        (1, [1, 2], 3, Verdict.FAIL, r"takes nothing for t\[0\] \(2 of 3\): .* not in sync: 3$"),
        (1, [1, 2, 3], 4, Verdict.FAIL, "there are no more, so lower it$"),
        # The last one in sync is the one that is away.
        (-1, [3], 2, Verdict.FAIL, r"read t\[0\]: without a leader; .* not in sync: 1, 2, 3$"),
    ],
)
def test_a_kafka_that_answers_and_takes_nothing_is_no_kafka_that_is_well(
    leader: int, in_sync: list[int], least: int, verdict: Verdict, said: str
) -> None:
    """With too few replicas in sync, all that was said was that a transaction is open."""
    one = SimpleNamespace(leader=leader, replicas=[1, 2, 3], isrs=in_sync)
    listed: Any = {"t": SimpleNamespace(partitions={0: one})}
    up = {1, 2} if 3 not in in_sync or leader < 0 else {1, 2, 3}
    found = judge_replicas(listed, {"t": least}, up)
    assert found.verdict is verdict
    assert re.search(said, found.text)


@pytest.mark.parametrize("denied", [False, True])
def test_a_topic_that_a_spool_or_a_group_goes_by_is_to_have_a_leader_too(
    monkeypatch: pytest.MonkeyPatch, denied: bool
) -> None:
    """Made with the broker's default of one replica, it was away with one broker, and all was well.

    Where nobody lets us see its settings, too.
    """

    def least_in_sync(_kafka: object, names: Sequence[str]) -> dict[str, int]:
        if denied and "t" not in names:
            raise TopicError("no", denied=True)
        return dict.fromkeys(names, 2)

    def one(leader: int) -> SimpleNamespace:
        return SimpleNamespace(
            partitions={0: SimpleNamespace(leader=leader, replicas=[1, 2], isrs=[1, 2])}
        )

    seen = SimpleNamespace(
        topics={"t": one(1), "headrace_spool": one(-1), "theirs": one(-1)}, brokers={1: None}
    )
    monkeypatch.setattr(replicas, "least_in_sync", least_in_sync)
    monkeypatch.setattr(
        replicas, "AdminClient", lambda _: SimpleNamespace(list_topics=lambda **_: seen)
    )
    (found,) = replicas.replicas(Config(kafka={}, streams={}, state=Path()), ["t"])
    assert found.verdict is Verdict.FAIL
    assert "nobody can write to or read headrace_spool[0]: without a leader" in found.text
