"""Reading a topic between two bounds: just what lies between them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from confluent_kafka import Message

from consumers import bounds
from consumers.batch import Span


def record(offset: int) -> Message:
    return Message(topic="t", partition=0, offset=offset, value=b"x", timestamp=(1, 1))


def test_what_was_published_behind_the_end_is_not_given_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [[record(n) for n in range(2)], [record(n) for n in range(2, 6)]]
    client = SimpleNamespace(
        assign=lambda _: None, pause=lambda _: None, close=lambda: None,
        consume=lambda _n, _s: runs.pop(0),
    )  # fmt: skip
    monkeypatch.setattr(bounds, "_alone", lambda _: client)
    found = [
        ([message.offset() for message in run], span)
        for _, run, span in bounds.pieces({}, "t", {0: Span(0, 4)})
    ]
    assert found == [([0, 1], Span(0, 2)), ([2, 3], Span(2, 4))]
