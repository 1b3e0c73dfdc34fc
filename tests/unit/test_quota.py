"""The laws of the bucket and of the day, against a plain list of what was taken."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ingest.collector.key import Key
from ingest.collector.quota import DailyFile, Quota, Used

DAY_S = 86_400
NOON = 20_000 * DAY_S + DAY_S / 2


def key(name: str = "k_1", *, rate: float = 0, burst: int = 0, daily: int = 0) -> Key:
    return Key(name, "web", b"", rate=rate, burst=burst, daily=daily)


def taken(quota: Quota, who: Key, records: int, now: float) -> bool:
    return quota.take(who, records, now) is None


STEPS = st.lists(
    st.tuples(st.floats(0, 30) | st.just(0.0), st.integers(1, 40)), min_size=1, max_size=60
)


@given(STEPS, st.floats(0.01, 50), st.integers(1, 60))
def test_no_window_holds_more_than_the_burst_and_what_came_since(
    steps: list[tuple[float, int]], rate: float, burst: int
) -> None:
    """A request that is larger than the burst counts as the burst; the rest is paid later."""
    quota, who, now = Quota(), key(rate=rate, burst=burst), NOON
    got: list[tuple[float, int]] = []
    for pause, records in steps:
        now += pause
        if taken(quota, who, records, now):
            got.append((now, records))
    for first, (start, _) in enumerate(got):
        inside = 0
        for end, records in got[first:]:
            assert inside + min(records, burst) <= burst + rate * (end - start) + 1e-3
            inside += records


@given(STEPS, st.floats(0.01, 50), st.integers(1, 60))
def test_who_waits_as_long_as_told_is_taken(
    steps: list[tuple[float, int]], rate: float, burst: int
) -> None:
    quota, who, now = Quota(), key(rate=rate, burst=burst), NOON
    for pause, records in steps:
        now += pause
        wait = quota.take(who, records, now)
        if wait is not None:
            assert wait.seconds >= 1
            now += wait.seconds
            assert taken(quota, who, records, now)


@given(STEPS, st.floats(0.01, 50), st.integers(1, 60))
def test_nobody_is_told_to_wait_a_second_more_than_needed(
    steps: list[tuple[float, int]], rate: float, burst: int
) -> None:
    quota, who, now = Quota(), key(rate=rate, burst=burst), NOON
    for pause, records in steps:
        now += pause
        wait = quota.take(who, records, now)
        if wait is not None and wait.seconds > 1:
            assert not taken(quota, who, records, now + wait.seconds - 1.001)
            return


@given(STEPS, st.integers(1, 60), st.floats(0.01, 50))
def test_what_is_refused_or_asked_or_given_back_costs_nothing(
    steps: list[tuple[float, int]], burst: int, rate: float
) -> None:
    """The same answers with and without such calls in between."""
    plain, busy = Quota(), Quota()
    who, now = key(rate=rate, burst=burst, daily=500), NOON
    for pause, records in steps:
        now += pause
        assert (busy.wait(who, now, records) is None) == (plain.wait(who, now, records) is None)
        while busy.wait(who, now, 3) is None and busy.wait(who, now, records) is None:
            assert busy.take(who, 3, now) is None
            busy.give_back(who, 3, now, now)
            break
        assert taken(busy, who, 10**9, now) is False
        assert taken(busy, who, records, now) == taken(plain, who, records, now)


def test_what_was_taken_before_midnight_is_not_given_back_to_the_day_behind_it() -> None:
    quota, who = Quota(), key(daily=100)
    late, early = DAY_S * 20_000 - 0.5, DAY_S * 20_000 + 0.5
    assert quota.take(who, 60, late) is None
    assert quota.take(who, 90, early) is None
    quota.give_back(who, 60, early, late)
    assert taken(quota, who, 11, early) is False
    quota.give_back(who, 90, early, early)
    assert taken(quota, who, 100, early) is True


@given(st.lists(st.tuples(st.floats(0, DAY_S), st.integers(1, 40)), max_size=60),
       st.integers(1, 100))  # fmt: skip
def test_no_day_holds_more_than_its_quota(steps: list[tuple[float, int]], daily: int) -> None:
    quota, who, now = Quota(), key(daily=daily), NOON
    days: dict[int, int] = {}
    for pause, records in steps:
        now += pause
        day = int(now // DAY_S)
        free = days.get(day, 0) + records <= daily
        wait = quota.take(who, records, now)
        assert (wait is None) == free
        if wait is None:
            days[day] = days.get(day, 0) + records
        else:
            assert wait.code == "daily"
            assert int((now + wait.seconds) // DAY_S) == day + 1


def test_a_day_ends_at_midnight_utc() -> None:
    quota, who = Quota(), key(daily=10)
    midnight = 20_001 * DAY_S
    assert taken(quota, who, 10, midnight - 2.5)
    wait = quota.take(who, 1, midnight - 2.5)
    assert wait is not None and wait.seconds == 3
    assert taken(quota, who, 10, midnight)


def test_a_key_without_limits_is_always_taken_and_nothing_is_remembered_of_it() -> None:
    quota = Quota()
    assert all(taken(quota, key(), 10**6, NOON) for _ in range(100))
    assert len(quota) == 0


def test_keys_do_not_spend_each_others_records() -> None:
    quota, one, two = Quota(), key("k_1", rate=1, burst=5), key("k_2", rate=1, burst=5)
    assert taken(quota, one, 5, NOON)
    assert not taken(quota, one, 1, NOON)
    assert taken(quota, two, 5, NOON)


def test_without_a_burst_it_is_ten_seconds_of_the_rate_and_a_thousand_at_least() -> None:
    for rate, burst in ((1, 1_000), (500, 5_000)):
        quota, who = Quota(), key(rate=rate)
        assert taken(quota, who, burst, NOON)
        assert not taken(quota, who, 1, NOON)


def test_a_request_larger_than_the_burst_is_taken_from_a_full_bucket_and_paid_for() -> None:
    quota, who = Quota(), key(rate=10, burst=20)
    assert taken(quota, who, 100, NOON)
    wait = quota.take(who, 1, NOON)
    assert wait is not None and wait.seconds == math.ceil(81 / 10)
    # and not while it is not full
    assert taken(quota, who, 1, NOON + 9)
    assert not taken(quota, who, 100, NOON + 9)


def test_a_refusal_says_which_limit_it_was() -> None:
    quota, who = Quota(), key(rate=2.5, burst=5, daily=7)
    assert taken(quota, who, 5, NOON)
    wait = quota.take(who, 2, NOON)
    assert wait is not None
    assert (wait.code, wait.reason) == ("rate", "the key may send 2.5 records a second, 5 at once")
    wait = quota.take(who, 3, NOON)
    assert wait is not None and wait.code == "daily" and "2 of its 7 records left" in wait.reason


@given(st.lists(st.tuples(st.floats(-5_000, 5_000), st.integers(1, 10)), max_size=60))
def test_a_clock_that_steps_back_gives_nothing(steps: list[tuple[float, int]]) -> None:
    """What is taken is at most the burst and the rate over all the time that went forward."""
    quota, who, now = Quota(), key(rate=1, burst=10), NOON
    forward, got = 0.0, 0
    for step, records in steps:
        now += step
        forward += max(0.0, step)
        got += records if taken(quota, who, records, now) else 0
    assert got <= 10 + forward + 1e-3


def test_a_clock_that_steps_back_takes_nothing_away() -> None:
    quota, who = Quota(), key(rate=1, burst=10)
    assert taken(quota, who, 10, NOON)
    assert not taken(quota, who, 1, NOON - 3_600)
    assert taken(quota, who, 10, NOON - 3_600 + 10), "it goes on from where the clock is now"


def test_a_clock_that_goes_back_over_midnight_gives_no_second_day() -> None:
    quota, who = Quota(), key(daily=5)
    midnight = 20_001 * DAY_S
    assert taken(quota, who, 5, midnight + 1)
    assert not taken(quota, who, 1, midnight - 1)
    assert not taken(quota, who, 1, midnight + 2)


def test_a_clock_that_was_years_ahead_does_not_lock_a_key_out() -> None:
    quota, who = Quota(), key(daily=5)
    assert taken(quota, who, 5, NOON + 9_000 * DAY_S)
    assert taken(quota, who, 5, NOON)


def test_a_limit_that_is_changed_holds_from_the_next_request_on() -> None:
    quota = Quota()
    assert taken(quota, key(rate=1, burst=10), 10, NOON)
    assert not taken(quota, key(rate=1, burst=10), 1, NOON)
    assert taken(quota, key(rate=1, burst=15), 5, NOON)
    assert taken(quota, key(), 100, NOON)


def test_memory_holds_the_keys_of_a_day_and_no_more() -> None:
    quota = Quota()
    for day in range(30):
        for n in range(100):
            who = key(f"k_{day}x{n}", rate=100, burst=100, daily=1000)
            assert taken(quota, who, 5, NOON + day * DAY_S)
        assert len(quota) <= 100


def test_a_bucket_that_is_not_full_yet_is_not_forgotten_at_midnight() -> None:
    quota, slow, other = Quota(), key(rate=0.001, burst=1000), key("k_2", rate=1)
    assert taken(quota, slow, 1000, NOON)
    assert taken(quota, other, 1, NOON + DAY_S)
    assert not taken(quota, slow, 100, NOON + DAY_S)
    assert taken(quota, slow, 86, NOON + DAY_S)


# -- across restarts -------------------------------------------------------------------------------


def test_a_days_count_goes_on_after_a_restart(tmp_path: Path) -> None:
    file, who = DailyFile(tmp_path / "daily.json"), key(daily=10)
    assert file.load() is None
    quota = Quota(file.load())
    assert taken(quota, who, 7, NOON)
    used = quota.due(math.inf)
    assert used is not None
    assert file.write(used)
    again = Quota(file.load())
    assert not taken(again, who, 4, NOON + 1)
    assert taken(again, who, 3, NOON + 1)
    assert taken(Quota(file.load()), who, 10, NOON + DAY_S)
    assert [p.name for p in tmp_path.iterdir()] == ["daily.json"]


def test_counts_are_written_some_seconds_apart_and_only_when_they_changed() -> None:
    quota, who = Quota(every_s=5), key(daily=10)
    assert quota.due(NOON) is None
    assert taken(quota, who, 1, NOON)
    assert quota.due(NOON + 4.9) is None
    assert quota.due(NOON + 5) == Used(20_000, {"k_1": 1})
    assert quota.due(NOON + 50) is None
    assert taken(quota, who, 1, NOON + 51)
    assert quota.due(math.inf) == Used(20_000, {"k_1": 2})


def test_what_is_handed_out_for_writing_does_not_change_any_more() -> None:
    quota, who = Quota(), key(daily=10)
    assert taken(quota, who, 1, NOON)
    used = quota.due(math.inf)
    assert taken(quota, who, 1, NOON)
    assert used == Used(20_000, {"k_1": 1})


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"day": 3}', '{"day": "x", "records": {}}',
     '{"day": 1, "records": {"k": -1}}', '{"day": 1, "records": {"k": "1"}}',
     '{"day": 1, "records": []}', "[" * 100_000],
)  # fmt: skip
def test_a_file_that_can_not_be_read_is_said_and_counts_begin_at_0(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "daily.json"
    path.write_text(text)
    assert DailyFile(path).load() is None
    assert "begin at 0" in caplog.text


def test_a_file_that_can_not_be_written_is_said_and_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = DailyFile(tmp_path / "none" / "daily.json")
    assert not file.write(Used(1, {}))
    assert "can't be written" in caplog.text


@given(st.dictionaries(st.text(max_size=9), st.integers(0, 10**15), max_size=9))
def test_counts_are_read_as_they_were_written(counts: dict[str, int]) -> None:
    assume(json.loads(json.dumps(counts)) == counts)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = DailyFile(Path(folder) / "daily.json")
        assert file.write(Used(5, counts))
        assert file.load() == Used(5, counts)
