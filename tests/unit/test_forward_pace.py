"""How much at once and how fast: in any window of time a vendor's rates are kept to."""

from __future__ import annotations

from collections import Counter

from hypothesis import example, given
from hypothesis import strategies as st

from consumers.forward.pace import Rate, Users, Window

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=60)
pauses = st.lists(st.floats(0, 0.7), min_size=60, max_size=60)


def most_within(sent: list[tuple[float, int]], seconds: float) -> int:
    """The most events in any window of so many seconds."""
    return max(sum(n for other, n in sent if at <= other < at + seconds) for at, _ in sent)


@given(sizes=sizes, pauses=pauses)
@example(sizes=[5] * 20 + [40], pauses=[0.0] * 21)
def test_a_projects_rate_is_kept_in_any_window(sizes: list[int], pauses: list[float]) -> None:
    rate, now, sent = Rate(100, 1.0), 0.0, []
    for size, pause in zip(sizes, pauses, strict=False):
        now += pause
        now += rate.wait_s(now, size)
        assert rate.wait_s(now, size) < 1e-9
        rate.sent(now, size)
        sent.append((now, size))
    assert most_within(sent, 1.0) <= 100


def test_a_request_of_more_than_a_window_holds_goes_alone() -> None:
    rate = Rate(100, 1.0)
    assert rate.wait_s(0.0, 150) == 0
    rate.sent(0.0, 150)
    assert rate.wait_s(1.0, 1) > 0
    assert rate.wait_s(1.6, 150) == 0


def test_a_projects_rate_is_used() -> None:
    rate, now = Rate(250, 1.0), 0.0
    for _ in range(100):
        now += rate.wait_s(now, 50)
        rate.sent(now, 50)
    assert 0.9 * 250 <= 99 * 50 / now <= 250


@given(sizes=sizes, pauses=pauses)
def test_a_users_rate_is_kept_in_any_window(sizes: list[int], pauses: list[float]) -> None:
    users, now, sent = Users(40, 1.0), 0.0, []
    for size, pause in zip(sizes, pauses, strict=False):
        now += pause
        now += users.wait_s(now, Counter({"a": size})) + 1e-9
        users.sent(now, Counter({"a": size}))
        sent.append((now, size))
    assert most_within(sent, 1.0) <= 40
    assert users.wait_s(now, Counter({"b": 40})) == 0.0, "another user is another matter"


def test_a_users_rate_is_kept_as_the_vendor_sees_requests_arrive() -> None:
    """Each of them takes up to a quarter of a second longer on its way than another."""
    users, now, arrived = Users(30, 1.0), 0.0, []
    for late in (0.25, 0.0) * 10:
        now += users.wait_s(now, Counter({"a": 30})) + 1e-9
        users.sent(now, Counter({"a": 30}))
        arrived.append((now + late, 30))
    assert most_within(arrived, 1.0) <= 30


def test_silent_users_are_forgotten() -> None:
    users = Users(30, 1.0)
    for n in range(120_000):
        users.sent(n / 1000, Counter({f"user-{n}": 1}))
    assert len(users._users) < 60_000


def test_a_429_halves_the_window_once_for_all_that_left_with_it() -> None:
    window = Window(16)
    for _ in range(500):
        window.taken(0.0)
    assert window.size == 16.0
    window.refused(10.0, 9.0, None)
    window.refused(10.1, 9.5, None)
    assert window.size == 8.0
    window.refused(11.0, 10.5, None)
    assert window.size == 4.0


def test_the_window_grows_by_one_for_each_round_and_never_shrinks_below_one() -> None:
    window = Window(16)
    for n in range(10):
        window.refused(n + 1.0, n + 0.5, None)
    assert window.size == 1.0
    before = window.size
    window.taken(100.0)
    assert window.size == before + 1
    for _ in range(2):
        window.taken(100.0)
    assert 2.5 < window.size < 3.1


def test_rests_after_429s_grow_until_one_is_taken_and_the_vendors_word_is_kept() -> None:
    window, now, rests = Window(8), 0.0, []
    for _ in range(9):
        sent_at, now = now + 0.1, now + 0.2
        window.refused(now, sent_at, None)
        rests.append(round(window.rests_until - now, 6))
        now = window.rests_until
    assert rests == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    window.taken(now + 1)
    window.refused(now + 3, now + 2, None)
    assert round(window.rests_until - (now + 3), 6) == 0.5
    window.refused(now + 5, now + 4, 90.0)
    assert window.rests_until == now + 95
