"""Packing: in as few requests as is simple, and no user's events in another order."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from vendors_under_test import an_event

from consumers.trace.event import Event
from consumers.vendors.packing import Limits, pack

LIMITS = Limits(max_events=5, max_bytes=100, max_event_bytes=60, max_user_events=2)


def users(event: Event) -> tuple[str, ...]:
    return tuple(event.name.split(","))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", "d,a", "d,e"]), st.integers(1, 60)), max_size=60
    )
)
def test_requests_are_within_each_limit_and_in_each_users_order(
    sent: list[tuple[str, int]],
) -> None:
    fit = [(an_event(name=n, offset=at), b"x" * size) for at, (n, size) in enumerate(sent)]
    packed = pack(fit, LIMITS, b"[", b"]", users)
    assert sorted(e.offset for p in packed for e in p.events) == list(range(len(sent)))
    last: dict[str, int] = {}
    for p in packed:
        assert 1 <= len(p.events) <= 5
        assert len(p.body) <= 100
        assert p.body.startswith(b"[x")
        assert p.body.count(b",") == len(p.events) - 1
        assert p.body == b"[" + b",".join(fit[e.offset][1] for e in p.events) + b"]"
        for user in "abcde":
            offsets = [e.offset for e in p.events if user in users(e)]
            assert len(offsets) <= 2
            assert [last.get(user, -1), *offsets] == sorted([last.get(user, -1), *offsets])
            last[user] = offsets[-1] if offsets else last.get(user, -1)


def test_a_request_is_filled_to_its_last_byte() -> None:
    fit = [(an_event(), b"x" * 48), (an_event(), b"y" * 49), (an_event(), b"z")]
    bodies = [p.body for p in pack(fit, replace(LIMITS, max_user_events=5), b"[", b"]")]
    assert list(map(len, bodies)) == [100, 3]


def test_one_event_too_many_of_a_user_leaves_room_for_others() -> None:
    names = ["a", "a", "a", "b", "c", "d"]
    fit = [(an_event(name=name), b"x") for name in names]
    packed = pack(fit, LIMITS, b"[", b"]", users)
    assert [[e.name for e in p.events] for p in packed] == [["a", "a", "b", "c", "d"], ["a"]]
