"""An audit that is watched goes on through outages, whoever says that Kafka is away."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from consumers.errors import Systemic, Unavailable
from consumers.ledger.accepted import Overtaken
from headrace.cli.audit_watch import Kept, Watcher
from ingest.topics import TopicError


@pytest.mark.parametrize("away", [TopicError("Kafka is away"), Unavailable("Kafka is away")])
def test_an_outage_is_waited_out_and_said(
    away: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers: dict[int, Any] = {}
    monkeypatch.setattr("signal.signal", handlers.__setitem__)
    watcher = Watcher(0.0)
    seen: list[str | None] = []

    def once() -> bool:
        seen.append(watcher.problem)
        if len(seen) == 1:
            raise away
        handlers[signal.SIGTERM](signal.SIGTERM, None)
        return True

    assert watcher.run(once)
    # A second Ctrl-C, while the interpreter ends, is no other exit code.
    assert set(handlers.values()) == {signal.SIG_IGN}
    assert seen == ["the first audit is under way", "Kafka is away"]
    assert watcher.problem is None
    assert "trying again: Kafka is away" in capsys.readouterr().err


def test_what_a_person_has_to_mend_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def once() -> bool:
        raise Systemic("no such table")

    with pytest.raises(Systemic):
        Watcher(0.0).run(once)


def test_the_book_is_read_once_and_anew_behind_a_failure_or_for_another_topic() -> None:
    """Of a thousand partitions a watch wrote four million records a day, and read them all for each
    of its audits."""
    opened: list[Any] = []
    kept = Kept(lambda: opened.append(SimpleNamespace(stands=lambda: True)) or opened[-1])
    for _ in range(3):
        assert kept.audited(lambda book: book) is opened[0]

    def failing(_: Any) -> None:
        raise Unavailable("a database is away")

    with pytest.raises(Unavailable):
        kept.audited(failing)
    assert kept.audited(lambda book: book) is opened[1]
    opened[1].stands = lambda: False
    assert kept.audited(lambda book: book) is opened[2]


def test_an_audit_beside_a_watch_is_no_failure_of_it() -> None:
    """Each that somebody typed cost the watch a round, and two watches were never both ready."""
    opened: list[Any] = []
    kept = Kept(lambda: opened.append(SimpleNamespace(stands=lambda: True)) or opened[-1])
    assert kept.audited(lambda book: book) is opened[0]
    overtaken = {0}

    def audit(book: Any) -> Any:
        if opened.index(book) in overtaken:
            raise Overtaken("another audit has begun")
        return book

    assert kept.audited(audit) is opened[1]
    overtaken |= {1, 2}
    with pytest.raises(Overtaken):
        kept.audited(audit)
    assert len(opened) == 3, "of two at the same time one waits"
