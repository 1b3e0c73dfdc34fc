"""What `headrace doctor` makes of facts: how bad it is, what to type, and what is safe."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

import pytest

from consumers.batch import Partition, Span
from consumers.behind import Waiting
from consumers.replay.jobs import Job, State
from headrace.doctor.check import Check, Verdict, bounded, fail, ok, warn
from headrace.doctor.edge import Disk, judge_spool
from headrace.doctor.kafka import judge_letters
from headrace.doctor.readers import judge
from headrace.doctor.run import summary
from headrace.readers import Reader, Standing
from ingest.spool.care import Glance
from ingest.spool.reader import State as SpoolState
from ingest.streams import BUILT_IN

NOW_S = 1_750_000_000.0
HOUR, DAY = 3600.0, 86_400.0
STREAM = BUILT_IN["device_state"]


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
        (standing(5, 0, job=JOB.moved(State.PAUSED)), Verdict.WARN, "replay resume 3f9c01d2"),
        (standing(6 * DAY, 0, job=JOB.moved(State.PAUSED)), Verdict.FAIL, READER.start),
        # What is left of it may be in the table of raw events.
        (standing(None, 0, job=replace(JOB, table_until_us=1)), Verdict.WARN, READER.start),
        (standing(None, 1, job=replace(JOB, table_until_us=1)), Verdict.OK, ""),
        (Standing(READER, problem="away"), Verdict.FAIL, "headrace lag"),
    ],
)
def test_a_reader(one: Standing, verdict: Verdict, do: str) -> None:
    found = judge(one, 7 * DAY, NOW_S)
    assert found.verdict is verdict, found
    assert do in found.do
    assert bool(found.safe) == (verdict is not Verdict.OK)
    assert found.lost == (found.safe.startswith("no"))


def test_what_kafka_keeps_for_ever_is_in_no_danger() -> None:
    found = judge(standing(400 * DAY, 2), None, NOW_S)
    assert found.verdict is Verdict.WARN
    assert "removes" not in found.text


def test_what_gives_records_up_is_not_what_to_type_first() -> None:
    found = judge(standing(5, 2, lost=7), 7 * DAY, NOW_S)
    assert "--skip-lost" not in found.do
    assert found.safe.endswith(f"{READER.start} --skip-lost")


def test_the_time_that_is_left_is_said() -> None:
    assert "in 24 h" in judge(standing(6 * DAY, 0), 7 * DAY, NOW_S).text
    assert judge(standing(DAY, 0), 7 * DAY, NOW_S).safe == "yes, Kafka keeps them for 6 d more"


COMMANDS = {"send": "collect", "ask": "readyz", "disk": "df"}


@pytest.mark.parametrize(
    ("waiting", "age_s", "user", "size", "free", "verdict", "do"),
    [
        (0, None, 1, 0.1, 50, Verdict.OK, ""),
        (9, 5, 1, 0.1, 50, Verdict.OK, ""),
        (9, HOUR, 1, 0.1, 50, Verdict.WARN, "readyz"),
        (0, None, None, 0.1, 50, Verdict.WARN, "collect"),
        (9, 5, None, 0.1, 50, Verdict.FAIL, "collect"),
        (9, 5, 1, 0.9, 50, Verdict.WARN, "df"),
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


@pytest.mark.parametrize(
    ("number", "age_s", "verdict"),
    [(0, None, None), (3, HOUR, Verdict.WARN), (3, 25 * DAY, Verdict.FAIL),
     (10**6, None, Verdict.WARN)],
)  # fmt: skip
def test_dead_letters(number: int, age_s: float | None, verdict: Verdict | None) -> None:
    oldest_ms = None if age_s is None else round((NOW_S - age_s) * 1000)
    found = judge_letters(STREAM, number, oldest_ms, 30 * DAY, NOW_S)
    assert (found and found.verdict) == verdict
    if found is not None:
        assert found.do == "headrace dlq ls device_state"
        assert ("about" in found.text) == (age_s is None)


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
