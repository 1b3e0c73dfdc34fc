"""Lines: events of one user never overtake each other, whatever becomes of those before them."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from vendors_under_test import an_event

from consumers.forward.lines import Lines, Unit, apart, users_of
from consumers.trace.event import Event
from consumers.vendors import Vendor, vendor

A_VENDOR: Vendor = vendor("amplitude", {"api_key_env": "K"}, {"K": "key"})


def event(number: int, user: int, device: int) -> Event:
    return an_event(key=str(number), user_id=f"user-{user}", device_id=f"device-{device}")


def unit(*events: Event) -> Unit:
    return Unit(events, users_of(A_VENDOR, events))


some = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5),
    min_size=1,
    max_size=12,
)


@given(shape=some, seed=st.integers(0, 2**32))
def test_each_users_events_are_done_in_order_and_all_of_them_are(
    shape: list[list[tuple[int, int]]], seed: int
) -> None:
    """Several are under way at a time; each is done, put back, halved, or told apart."""
    chance = random.Random(seed)
    lines, number = Lines(), 0
    for group in shape:
        lines.add(unit(*(event(number + n, u, d) for n, (u, d) in enumerate(group))))
        number += len(group)
    under_way: list[Unit] = []
    done: list[Event] = []
    steps = 0
    while lines:
        steps += 1
        assert steps < 2000, "it ends"
        while (taken := lines.take(float(steps))) is not None:
            busy = {user for other in under_way for user in other.users}
            assert busy.isdisjoint(taken.users), "no user is in two requests at a time"
            under_way.append(taken)
        assert under_way, "as long as something is left, something may go"
        one = under_way.pop(chance.randrange(len(under_way)))
        lot = chance.random()
        if lot < 0.15:
            lines.put_back(one, steps + 0.5)
        elif lot < 0.4 and len(one.events) > 1:
            half = chance.randrange(1, len(one.events))
            parts = (one.events[:half], one.events[half:])
            lines.replace(one, [one.part(A_VENDOR, part) for part in parts])
        elif lot < 0.6:
            now, later = apart(A_VENDOR, one.events, {chance.choice(sorted(one.users))})
            parts = [one.part(A_VENDOR, part) for part in (now, later) if part]
            lines.replace(one, parts)
        else:
            done += one.events
            lines.done(one)
    assert sorted(int(e.key) for e in done) == list(range(number))
    for user in {u for e in done for u in A_VENDOR.users(e)}:
        order = [int(e.key) for e in done if user in A_VENDOR.users(e)]
        assert order == sorted(order), user


def test_who_rests_holds_up_what_is_behind_him_and_nobody_else() -> None:
    events = [event(0, 1, 1), event(1, 2, 2), event(2, 1, 3), event(3, 4, 3), event(4, 5, 5)]
    now, later = apart(A_VENDOR, events, {"device:device-1"})
    assert [e.key for e in now] == ["1", "4"]
    assert [e.key for e in later] == ["0", "2", "3"], "2 is of the same user, 3 of 2's device"


def test_a_part_knows_what_has_happened_to_it() -> None:
    whole = unit(event(0, 1, 1), event(1, 2, 2))
    whole.attempts, whole.sent_us, whole.repeated, whole.failures = 3, 17, True, 2
    part = whole.part(A_VENDOR, whole.events[:1], 5.0)
    assert (part.attempts, part.sent_us, part.repeated, part.failures) == (3, 17, True, 2)
    assert (part.not_before, part.request) == (5.0, None)
    assert part.users == {"device:device-1": 1, "user:user-1": 1}


def test_what_may_go_later_is_not_taken_and_said_when() -> None:
    lines = Lines()
    lines.add(unit(event(0, 1, 1)))
    taken = lines.take(1.0)
    assert taken is not None
    lines.put_back(taken, 3.0)
    assert (lines.take(2.9), lines.due()) == (None, 3.0)
    assert lines.take(3.0) is taken
    assert lines.due() is None
