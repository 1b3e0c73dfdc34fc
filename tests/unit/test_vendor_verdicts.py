"""Verdicts where a vendor says no more than a status, and how long it may ask to be left alone."""

from __future__ import annotations

import pytest
from vendors_under_test import NOW_US, UNDER, an_event, answer, request_of

from consumers.vendors import (
    Accepted,
    Account,
    Code,
    PartlyRejected,
    Reason,
    Request,
    RetryAfter,
    SlowDown,
    Split,
    Stop,
    account,
)
from consumers.vendors.verdicts import by_status, indexes, names, retry_after

WHY = Reason(Code.REJECTED, "no")


def two() -> Request:
    return request_of(UNDER["heap"].make("heap"), an_event(), an_event(key="key-2"))


def test_each_verdict_accounts_for_every_event() -> None:
    everything, nothing = frozenset({0, 1, 2}), frozenset[int]()
    assert account(Accepted(), 3) == Account(everything, {}, nothing)
    partly = PartlyRejected({1: WHY}, frozenset({2}))
    assert account(partly, 3) == Account(frozenset({0}), {1: WHY}, frozenset({2}))
    slow = SlowDown({"user": 1.0}, "", {0: WHY})
    assert account(slow, 3) == Account(nothing, {0: WHY}, frozenset({1, 2}))
    for verdict in (RetryAfter(None, ""), Split(""), Stop("")):
        assert account(verdict, 3) == Account(nothing, {}, everything)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, Accepted), (204, Accepted), (302, Stop), (400, Split), (401, Stop), (402, Stop),
        (403, Stop), (404, Stop), (408, RetryAfter), (409, Split), (413, Split), (422, Split),
        (425, RetryAfter), (429, RetryAfter), (500, RetryAfter), (502, RetryAfter),
        (406, Stop), (411, Stop), (414, Stop), (415, Stop), (421, RetryAfter), (426, Stop),
        (431, Stop), (451, Stop), (501, RetryAfter), (503, RetryAfter), (505, Stop),
        (599, RetryAfter), (0, RetryAfter), (100, RetryAfter), (999, RetryAfter),
    ],
)  # fmt: skip
def test_a_status_has_a_verdict(status: int, kind: type) -> None:
    assert isinstance(by_status(two(), answer(status), NOW_US), kind)


@pytest.mark.parametrize(
    ("status", "unknown"),
    [
        (429, False),
        (503, False),
        (425, False),
        (421, False),
        (408, True),
        (500, True),
        (504, True),
        (0, True),
    ],
)
def test_whether_it_may_have_been_taken_all_the_same(status: int, unknown: bool) -> None:
    verdict = by_status(two(), answer(status), NOW_US)
    assert isinstance(verdict, RetryAfter)
    assert verdict.unknown is unknown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0), ("0", 0.0), ("-5", 0.0), ("1.5", 1.5), ("999999", 3600.0), (" 7 ", 7.0),
        ("Mon, 21 Sep 2026 14:13:30 GMT", pytest.approx(9.876544)),
        ("Mon, 21 Sep 2026 14:13:30 -0000", pytest.approx(9.876544)),
        ("Mon, 21 Sep 2020 14:13:30 GMT", 0.0), ("Mon, 21 Sep 2099 14:13:30 GMT", 3600.0),
        ("nan", None), ("inf", None), ("soon", None), ("", None), ("Mon, 99 Sep", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_an_hour_at_most(
    text: str, seconds: float | None
) -> None:
    assert retry_after(answer(503, retry_after=text), NOW_US) == seconds


def test_what_a_vendor_says_is_one_short_line() -> None:
    long = answer(500, b"<html>\n\x1b[31m\x00" + b"very long " * 1000)
    verdict = by_status(two(), long, NOW_US)
    assert isinstance(verdict, RetryAfter)
    assert verdict.why.startswith("HTTP 500: <html> [31m very long very")
    assert verdict.why.isprintable()
    assert len(verdict.why) < 320


def test_rubbish_in_lists_is_left_out() -> None:
    assert indexes([0, 2, 3, -1, True, "1", None, 1.0, [1]], 3) == [0, 2]
    assert indexes({"0": 1}, 3) == []
    assert names({"a": 1, "b": None}) == {"a", "b"}
    assert names(["a", 1, None]) == {"a"}
    assert names("ab") == set()
