"""Events as hypothesis makes them up for the suites of vendors: odd ones, and thousands."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from vendors_under_test import NOW_US

from consumers.trace.event import Event
from consumers.vendors import Sending
from ingest.units import DAY_US

HOLD = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
HOLD_LARGE = settings(HOLD, max_examples=5)

# What stands in an Event and is not for vendors, made to be found again.
OURS = "ours-and-nobody-elses"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = (
    st.none() | st.sampled_from(["user-1", "user-2", "device1", "0", "anon", "", "x" * 300]) | texts
)
names = st.sampled_from(["purchase", "page_view", "Purchase Workers", "session_start", "_x"]) | (
    texts.filter(bool)
)
keys = (
    st.sampled_from(["0", "a", "null", "0191e1a0-0000-7000-8000-000000000001", "k" * 200])
    | st.uuids().map(str)
    | texts.filter(bool)
)
values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63 - 1, 2**64 - 1, 2**64, -(2**70)])
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.sampled_from([120, 300, 1000, 1100]).map(lambda n: "long " + "🚰" * n)
)
property_names = (
    st.sampled_from(["category", "page_location", "time", "token", "event_id", "transaction_id"])
    | st.sampled_from(["distinct_id", "$device_id", "insert_id", "engagement_time_msec"])
    | texts
)
times = st.sampled_from(
    [NOW_US, NOW_US - 1, NOW_US - 4 * DAY_US, NOW_US - 40 * DAY_US, 366 * DAY_US + 1, 10**14]
) | (st.integers(NOW_US - 400 * DAY_US, NOW_US) | st.integers(-(10**18), 10**18))
events = st.builds(
    Event,
    event_id=st.integers(0, 10**6).map(lambda n: f"{OURS}-{n}"),
    key=keys,
    name=names,
    time_us=times,
    received_us=st.integers(NOW_US - 20 * DAY_US, NOW_US),
    user_id=ids,
    device_id=ids,
    properties=st.dictionaries(property_names, values, max_size=4),
    topic=st.just(OURS),
    partition=st.just(987_654_321),
    offset=st.just(987_654_321_987),
    scrubbed=st.sampled_from([(), ("transaction_id",), ("category", "page_location")]),
)
sendings = st.builds(
    Sending,
    now_us=st.just(NOW_US),
    backfill=st.booleans(),
    repeated=st.booleans(),
    allow_redate=st.booleans(),
    allow_duplicates=st.booleans(),
)
some = st.lists(events, max_size=12)


@st.composite
def many(draw: st.DrawFn) -> list[Event]:
    """Thousands of events of few kinds, all that every vendor takes, and a few that are long."""
    sent: list[Event] = []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.sampled_from([1, 29, 30, 31, 1000, 2500]))
        users = draw(st.sampled_from([1, 7, 400]))
        size = draw(st.sampled_from([1, 90, 1000, 20_000, 200_000]))
        if count * size > 6_000_000:
            count = 100
        shape = {
            f"page_location{n}"[: 13 if n == 0 else 20]: "🚰" * min(size, 95) for n in range(20)
        }
        properties = shape if size == 90 else {"page_location": "x" * size}
        sent += (
            Event(
                f"{OURS}-{n}", f"key-{len(sent)}-{n}", "page_view", NOW_US - n, NOW_US,
                f"user-{n % users}", f"device-{n % (users + 1)}", properties,
            )
            for n in range(count)
        )  # fmt: skip
    return sent
