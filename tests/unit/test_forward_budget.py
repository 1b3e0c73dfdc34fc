"""One budget for what is live and for jobs: together they keep to the rates; live goes first."""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from consumers.forward.budget import Budget, Share
from consumers.vendors import Limits
from consumers.vendors import Rate as Stated

NOBODY: Counter[str] = Counter()


def limits(*rates: Stated) -> Limits:
    return Limits(1, 1, 1, 1, rates=rates)


def pair(*rates: Stated) -> tuple[Share, Share]:
    """What is live, and a job."""
    budget = Budget()
    return budget.share(limits(*rates), last=False), budget.share(limits(*rates), last=True)


def race(live_wants: float, seconds: float = 60.0) -> tuple[float, float]:
    """Events a second that each gets of 1,000, when live events come so many a second."""
    live, job = pair(Stated(1000, 1))
    now, sent = 0.0, Counter[str]()
    while now < seconds:
        while sent["live"] + 10 <= live_wants * now and live.take(now, 10, NOBODY) == (0.0, 0.0):
            sent["live"] += 10
        while job.take(now, 10, NOBODY) == (0.0, 0.0):
            sent["job"] += 10
        now += 0.001
    return sent["live"] / seconds, sent["job"] / seconds


def test_a_job_takes_what_live_events_leave_of_a_rate() -> None:
    live, job = race(400)
    assert 390 < live <= 400
    assert 500 < job < 600
    assert live + job <= 1000


def test_a_job_gets_all_of_it_while_nothing_is_live() -> None:
    live, job = race(0)
    assert (live, 900 < job <= 1000) == (0.0, True)


def test_live_events_get_all_of_a_rate_that_they_need() -> None:
    live, job = race(5000)
    assert live > 900
    assert job < 50


requests = st.tuples(st.booleans(), st.integers(1, 250), st.floats(0, 0.1))


@given(st.lists(requests, min_size=20, max_size=80))
@example([(True, 50, 0.0)] * 20 + [(False, 250, 0.0)])
def test_together_they_keep_to_a_rate_in_any_window(asked: list[tuple[bool, int, float]]) -> None:
    """Whoever sends, whatever sizes: also where large requests come behind small ones."""
    live, job = pair(Stated(1000, 1))
    now, sent = 0.0, []
    for is_live, count, pause_s in asked:
        now += pause_s
        while (wait_s := (live if is_live else job).take(now, count, NOBODY)[0]) > 0:
            now += wait_s
        sent.append((now, count))
    assert max(sum(n for then, n in sent if at <= then < at + 1) for at, _ in sent) <= 1000


def test_requests_of_unlike_sizes_use_a_rate() -> None:
    live, job = pair(Stated(1000, 1))
    now, sent, due = 0.0, 0, 0.0
    while now < 60:
        if now >= due and live.take(now, 90, NOBODY) == (0.0, 0.0):
            sent, due = sent + 90, due + 0.3
        sent += 100 if job.take(now, 100, NOBODY) == (0.0, 0.0) else 0
        now += 0.01
    assert 850 < sent / 60 <= 1000


def test_a_users_rate_is_shared_and_another_user_goes_on() -> None:
    live, job = pair(Stated(30, 1, "user"))
    assert live.take(0.0, 20, Counter({"a": 20})) == (0.0, 0.0)
    wait_s, resting_s = job.take(0.0, 20, Counter({"a": 20}))
    assert (wait_s, resting_s > 0.9) == (0.0, True)
    assert job.take(0.0, 20, Counter({"b": 20})) == (0.0, 0.0)


def test_an_endpoint_with_rates_of_its_own_has_them_for_itself() -> None:
    budget = Budget()
    live = budget.share(limits(Stated(30, 1, "user")), last=False)
    job = budget.share(limits(Stated(1000, 1, "user")), last=True)
    assert live.take(0.0, 30, Counter({"a": 30})) == (0.0, 0.0)
    assert job.take(0.0, 900, Counter({"a": 900})) == (0.0, 0.0)


def test_a_job_rests_after_live_events_were_throttled_and_not_the_other_way_round() -> None:
    live, job = pair()
    job.throttled(0.0)
    assert live.take(0.0, 1, NOBODY) == (0.0, 0.0)
    live.throttled(0.0)
    assert job.take(0.0, 1, NOBODY)[0] > 1
    assert live.take(0.0, 1, NOBODY) == (0.0, 0.0)


def test_both_know_whether_the_vendor_is_away() -> None:
    live, job = pair()
    assert live.breaker is job.breaker


def test_of_a_vendors_rates_those_of_a_day_are_left_to_its_answers() -> None:
    live, _ = pair(Stated(500_000, 86_400, "user"), Stated(1000, 86_400))
    assert live.take(0.0, 600_000, Counter({"a": 600_000})) == (0.0, 0.0)
